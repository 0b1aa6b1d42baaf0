"""Spread arrays arrive whole, piece by piece."""

import jax
import numpy as np
import pytest

from jaxsae import parallel
from jaxsae.parallel import whole


@pytest.mark.parametrize(("letters", "shape"), [("DS", (7, 16)), ("SD", (16, 7)), ("S", (16,)), ("BS", (4, 8))])
@pytest.mark.parametrize("piece", [1, 200, 1 << 28])
def test_pieces_make_up_the_array(monkeypatch, letters, shape, piece):
    monkeypatch.setattr(whole, "PIECE", piece)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    spread = jax.device_put(x, parallel.sharding(parallel.make_mesh(2, 4), letters))
    np.testing.assert_array_equal(whole.in_pieces(spread), x)


def test_what_is_here_stays_as_it_is():
    tree = {"a": np.ones(3), "b": jax.numpy.ones(3)}
    found = parallel.to_host(tree)
    assert found["a"] is tree["a"]
    assert found["b"] is tree["b"]
