"""Sparse and dense codes are two forms of one thing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.sae import DenseCodes, SparseCodes

S, E = 20, 6


def pair(lead=(5,), k=4, seed=0):
    """Sparse codes with an absent entry, and the dense array they stand for."""
    rng = np.random.default_rng(seed)
    index = np.stack([rng.permutation(S)[:k] for _ in range(int(np.prod(lead)))]).reshape(*lead, k)
    values = rng.standard_normal((*lead, k)).astype(np.float32)
    values[..., 1] = 0.0
    dense = np.zeros((*lead, S), np.float32)
    np.put_along_axis(dense, index, values, axis=-1)
    return SparseCodes(jnp.asarray(values), jnp.asarray(index), S), DenseCodes(jnp.asarray(dense))


@pytest.mark.parametrize("lead", [(5,), (2, 3), ()])
def test_both_forms_say_the_same(lead):
    sparse, dense = pair(lead)
    W = jax.random.normal(jax.random.key(0), (S, E))
    np.testing.assert_array_equal(sparse.dense(), dense.values)
    np.testing.assert_allclose(sparse.decode(W), dense.decode(W), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(sparse.l0(), dense.l0())
    assert sparse.d_sae == dense.d_sae == S


def test_tally_counts_per_latent_and_honours_the_mask():
    sparse, dense = pair()
    mask = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])
    on = lambda v: (v != 0).astype(jnp.float32)  # noqa: E731
    expected = (np.asarray(dense.values) != 0)[[0, 2, 3]].sum(0)
    np.testing.assert_array_equal(sparse.tally(on, mask), expected)
    np.testing.assert_array_equal(dense.tally(on, mask), expected)


def test_a_per_latent_array_read_at_the_entries_gives_the_same_sum():
    sparse, dense = pair()
    norms = jnp.arange(1.0, S + 1)
    a = jnp.sum(sparse.values * sparse.at(norms), -1)
    np.testing.assert_allclose(a, jnp.sum(dense.values * dense.at(norms), -1), rtol=1e-6)


def test_repeated_indices_add():
    codes = SparseCodes(jnp.array([[1.0, 2.0]]), jnp.array([[3, 3]]), S)
    assert float(codes.dense()[0, 3]) == 3.0
    np.testing.assert_allclose(codes.decode(jnp.eye(S))[0, 3], 3.0)


def test_codes_that_are_not_live_decode_to_zero():
    sparse, dense = pair()
    W = jnp.ones((S, E))
    assert not np.any(sparse.decode(W, live=jnp.array(False)))
    assert not np.any(dense.decode(W, live=jnp.array(False)))
