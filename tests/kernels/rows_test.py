"""Rows in tiles: the same results, whatever the number of rows and the limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsae.kernels import encode_topk
from jaxsae.kernels._rows import by_rows
from jaxsae.kernels.encode_topk import api


@given(rows=st.integers(0, 40), row_bytes=st.integers(1, 12), limit=st.integers(1, 100))
@settings(max_examples=30, deadline=None)
def test_any_number_of_rows_within_any_limit(rows, row_bytes, limit):
    x, seen = jnp.arange(rows * 2.0).reshape(rows, 2), []

    def f(tile):
        seen.append(len(tile))
        return tile[:, :1], tile.sum(1)

    first, total = by_rows(f, x, row_bytes, limit)
    np.testing.assert_array_equal(first, np.asarray(x)[:, :1])
    np.testing.assert_array_equal(total, np.asarray(x).sum(1))
    assert all(n * row_bytes <= max(limit, row_bytes) for n in seen)


@pytest.mark.parametrize("name", ["xla", "xla_counting"])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_encoder_in_tiles_is_the_encoder(name, share, monkeypatch, key):
    """In bits, forward and backward; 21 rows, of which 4 fit the limit."""
    kx, kw, kd = jax.random.split(key, 3)
    x, W = jax.random.normal(kx, (21, 16)), jax.random.normal(kw, (16, 1024))
    dead = jax.random.bernoulli(kd, share, (1024,))

    def run(x, W):
        out = encode_topk(x, W, jnp.zeros(1024), jnp.zeros(16), None, dead, 4, 8, implementation=name)
        return jnp.sum(out[0] ** 2) + jnp.sum(out[2] ** 2), out

    whole = jax.grad(run, (0, 1), has_aux=True)(x, W)
    monkeypatch.setattr(api, "WRITTEN", 4 * 4 * 1024)
    tiled = jax.grad(run, (0, 1), has_aux=True)(x, W)
    text = str(jax.make_jaxpr(run)(x, W))
    assert "f32[4,1024]" in text
    assert "f32[21,1024]" not in text
    jax.tree.map(np.testing.assert_array_equal, tiled, whole)
