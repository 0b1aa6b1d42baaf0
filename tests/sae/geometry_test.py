"""Norms, directions, medians."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.sae.geometry import geometric_median, remove_parallel, unit


def test_a_zero_row_stays_zero_and_others_get_norm_one():
    w = unit(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(jnp.linalg.norm(w, axis=1), [1.0, 0.0], atol=1e-6)


def test_what_is_left_of_a_gradient_is_orthogonal_to_the_atom():
    k = jax.random.split(jax.random.key(0))
    g, w = jax.random.normal(k[0], (7, 5)), 3.0 * jax.random.normal(k[1], (7, 5))
    left = remove_parallel(g, w)
    np.testing.assert_allclose(jnp.sum(left * w, -1), np.zeros(7), atol=1e-4)
    np.testing.assert_allclose(remove_parallel(left, w), left, atol=1e-5)  # a projection


def test_geometric_median_minimises_the_summed_distance():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 4)).astype(np.float32)
    x[:5] += 1e4  # five enormous rows move the mean, not the median
    m = np.asarray(geometric_median(jnp.asarray(x)), np.float64)

    def cost(p):
        return np.linalg.norm(x.astype(np.float64) - p, axis=1).sum()

    best = cost(m)
    assert all(cost(m + d) >= best - 1e-3 for d in 0.05 * rng.standard_normal((50, 4)))
    assert np.linalg.norm(m) < 0.5 < np.linalg.norm(x.mean(0))


def test_median_of_identical_rows_is_that_row():
    np.testing.assert_allclose(geometric_median(jnp.ones((9, 3))), np.ones(3), rtol=1e-6)
