"""Branches that stay branches under vmap."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.kernels._control import unless, when


def slow(a):
    return jnp.cumsum(a) * 2.0


def test_unless_picks_per_run_and_keeps_one_conditional():
    ok = jnp.array([True, False])
    x = jnp.arange(6.0).reshape(2, 3)
    f = jax.vmap(lambda ok, x: unless(ok, x, slow, (x,)))
    np.testing.assert_array_equal(jax.vmap(lambda o, x: unless(o, x, slow, (x,)))(jnp.array([True, True]), x), x)
    # One run that fails makes all runs take the slow path: it is exact, so the fast ones lose nothing.
    np.testing.assert_array_equal(f(ok, x), jax.vmap(slow)(x))
    assert "conditional" in jax.jit(f).lower(ok, x).compile().as_text()


def test_when_skips_unless_some_run_is_live():
    x = jnp.arange(3.0)
    masked = lambda live, a: jnp.where(live, slow(a), 0.0)  # noqa: E731
    f = jax.vmap(lambda live, x: when(live, masked, (live, x)), in_axes=(0, None))
    out = f(jnp.array([True, False]), x)
    np.testing.assert_array_equal(out, jnp.stack([slow(x), jnp.zeros(3)]))
    assert not np.any(f(jnp.array([False, False]), x))
