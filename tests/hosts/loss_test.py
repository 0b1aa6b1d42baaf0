"""Next-token cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, softmax

from jaxsae.hosts import cross_entropy


def test_each_position_pays_for_the_token_that_follows_it(key):
    logits = np.asarray(3 * jax.random.normal(key, (3, 5, 11)), np.float64)
    tokens = np.random.default_rng(0).integers(0, 11, (3, 5))
    got = cross_entropy(logits.astype(np.float32), tokens)
    assert (got.shape, got.dtype) == ((3, 4), jnp.float32)
    for b in range(3):
        for t in range(4):
            np.testing.assert_allclose(got[b, t], -log_softmax(logits[b, t])[tokens[b, t + 1]], rtol=1e-5)


def test_large_and_bfloat16_logits_stay_finite():
    logits = jnp.zeros((1, 3, 8), jnp.bfloat16).at[..., 2].set(1000)
    got = cross_entropy(logits, jnp.array([[2, 2, 5]]))
    np.testing.assert_allclose(got, [[0, 1000]])


def test_the_gradient_is_softmax_minus_one_hot(key):
    logits = jax.random.normal(key, (2, 4, 9))
    tokens = jnp.array([[1, 2, 3, 4], [8, 0, 0, 5]])
    gradient = jax.grad(lambda x: cross_entropy(x, tokens).sum())(logits)
    expected = softmax(np.asarray(logits), axis=-1) - np.eye(9)[np.roll(tokens, -1, axis=1)]
    np.testing.assert_allclose(gradient[:, :-1], expected[:, :-1], atol=1e-6)
    np.testing.assert_array_equal(gradient[:, -1], 0)


def test_nothing_of_the_size_of_the_logits_is_made_beside_them():
    logits, tokens = jnp.zeros((8, 16, 4096)), jnp.zeros((8, 16), int)
    memory = cross_entropy.lower(logits, tokens).compile().memory_analysis()
    assert memory.temp_size_in_bytes < logits.nbytes / 3
