"""Row gradients from sparse codes against a literal loop in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import kernels
from jaxsae.errors import ConfigError


def by_hand(values, indices, rows, size):
    dW, sums = np.zeros((size, rows.shape[1])), np.zeros(size)
    for b in range(len(values)):
        for v, i in zip(values[b], indices[b], strict=True):
            dW[i] += v * rows[b]
            sums[i] += v
    return dW, sums


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize(("k", "size"), [(3, 400), (9, 40)])  # below and above the switch to a dense product
def test_equals_a_loop_with_repeated_indices_and_absent_latents(implementation, k, size):
    rng = np.random.default_rng(0)
    values, rows = rng.standard_normal((7, k)), rng.standard_normal((7, 10))
    indices = rng.integers(0, size - 5, (7, k))  # the last five latents have no entry
    indices[:, 1] = indices[:, 0]
    args = jnp.asarray(values, jnp.float32), jnp.asarray(indices), jnp.asarray(rows, jnp.float32)
    found = kernels.sparse_grad(*args, size, implementation=implementation)
    for a, e in zip(found, by_hand(values, indices, rows, size), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)
        assert not np.any(a[-5:])


def test_refuses_rows_of_another_batch():
    with pytest.raises(ConfigError, match="rows"):
        kernels.sparse_grad(jnp.ones((2, 3)), jnp.zeros((2, 3), jnp.int32), jnp.ones((4, 5)), 8)
