"""One Adam step of one leaf: every implementation against optax and the projection, written one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsae import kernels

S, E = 24, 16


def leaves(seed: int = 0):
    W, mu, nu, g = (jax.random.normal(k, (S, E)) for k in jax.random.split(jax.random.key(seed), 4))
    return W / jnp.linalg.norm(W, axis=1, keepdims=True), mu, nu**2, g


def by_optax(W, mu, nu, g, lr, count, factor, unit, b1, b2, eps):
    if unit:
        u = W / jnp.linalg.norm(W, axis=1, keepdims=True)
        g = g - jnp.sum(g * u, axis=1, keepdims=True) * u
    state = optax.ScaleByAdamState(jnp.int32(count - 1), mu, nu)
    direction, state = optax.scale_by_adam(b1, b2, eps).update(factor * g, state)
    W = W - lr * direction
    return W / jnp.linalg.norm(W, axis=1, keepdims=True) if unit else W, state.mu, state.nu


@pytest.mark.parametrize("implementation", [None, "xla", "reference"])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("count", [1, 7, 100_000])
@pytest.mark.parametrize("settings", [(0.9, 0.999, 1e-8), (0.0, 0.999, 6.25e-10), (0.9, 0.95, 1e-2)])
def test_it_is_a_step_of_optax(implementation, unit, count, settings):
    names = dict(zip(("b1", "b2", "eps"), settings, strict=True))
    scalars = jnp.float32(0.01), jnp.int32(count), jnp.float32(0.3)
    step = jax.jit(lambda *a: kernels.adam(*a, *scalars, **names, unit=unit, implementation=implementation))
    found = step(*leaves())
    expected = by_optax(*leaves(), 0.01, count, 0.3, unit, **names)
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6)
    if unit:
        np.testing.assert_allclose(np.linalg.norm(found[0], axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_rows_without_length_or_gradient_stay_finite(implementation):
    W, mu, nu, g = leaves()
    W, mu, nu, g = W.at[0].set(0), jnp.zeros_like(mu), jnp.zeros_like(nu), g.at[0].set(0).at[1].set(0)
    scalars = jnp.float32(0.01), jnp.int32(1), jnp.float32(1.0)
    found = kernels.adam(W, mu, nu, g, *scalars, unit=True, implementation=implementation)
    assert all(jnp.isfinite(a).all() for a in found)
    np.testing.assert_array_equal(found[0][0], 0)
    np.testing.assert_allclose(found[0][1], W[1], rtol=1e-6)
