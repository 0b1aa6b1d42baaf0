"""Stochastic rounding is unbiased and repeatable; Adam with rounded moments follows Adam with exact ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsae.optim import Adam, AdamBf16
from jaxsae.optim.adam_bf16 import noise, stochastic_round

N = 200_000


def test_rounds_to_one_of_the_two_neighbours_with_the_right_probability():
    x = jnp.float32(1.0 + 0.3 * 2**-7)  # between 1 and 1 + 2**-7, at 0.3 of the way
    found = np.asarray(stochastic_round(jnp.full(N, x), noise(jnp.uint32(1), (N,))).astype(jnp.float32))
    assert set(np.unique(found)) == {1.0, 1.0 + 2**-7}
    share, sigma = np.mean(found > 1), np.sqrt(0.3 * 0.7 / N)
    assert abs(share - 0.3) < 4 * sigma


@pytest.mark.parametrize("scale", [-3e-20, 7e-4, 1e30])
def test_the_mean_of_many_roundings_is_the_value(scale):
    x = jnp.float32(scale) * jnp.linspace(1, 2, 7)
    bits = noise(jnp.uint32(5), (N, 7))
    mean = np.asarray(stochastic_round(jnp.broadcast_to(x, (N, 7)), bits).astype(jnp.float32), np.float64).mean(0)
    sigma = 0.5 * 2**-7 / np.sqrt(N)  # of a relative rounding step, at most
    np.testing.assert_allclose(mean, np.asarray(x), rtol=4 * sigma)


def test_special_values_keep_their_kind():
    x = jnp.array([0.0, -0.0, jnp.inf, -jnp.inf, jnp.nan, 1.5])
    for bits in (0, 0xFFFF):
        found = stochastic_round(x, jnp.full(6, bits, jnp.uint32)).astype(jnp.float32)
        np.testing.assert_array_equal(found, x)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(x))


def test_noise_is_uniform_and_uncorrelated_between_positions_steps_and_halves():
    first, second = (np.asarray(noise(jnp.uint32(k), (400, 500)), np.uint64) for k in (1, 2))
    unit = lambda a: (a & 0xFFFF) / 65536 - 0.5  # noqa: E731
    low, high, later = unit(first), unit(first >> 16), unit(second)
    sigma = 1 / 12 / np.sqrt(first.size)  # of the mean of a product of two uniform variables
    for a, b in ((low, high), (low, later), (low[1:], low[:-1]), (low[:, 1:], low[:, :-1])):
        assert abs(np.mean(a * b)) < 5 * sigma
    counts = np.bincount((first & 0xFF).astype(int).ravel(), minlength=256)
    expected = first.size / 256
    assert np.sum((counts - expected) ** 2 / expected) < 255 + 5 * np.sqrt(2 * 255)  # chi squared


def run(optimizer, steps, key):
    """Parameters after noisy gradient steps on a quadratic bowl, and the state."""
    tx, goal = optimizer.build(), jnp.linspace(-1, 1, 64)
    w = {"w": jnp.zeros(64)}

    def one(carry, k):
        w, state = carry
        grads = {"w": w["w"] - goal + 0.1 * jax.random.normal(k, (64,))}
        direction, state = tx.update(grads, state, w)
        return (optax.apply_updates(w, jax.tree.map(lambda d: -3e-3 * d, direction)), state), None

    return jax.lax.scan(one, (w, tx.init(w)), jax.random.split(key, steps))[0]


def test_follows_adam_with_f32_moments(key):
    ours, state = run(AdamBf16(clip=None), 1500, key)
    plain, exact = run(Adam(clip=None), 1500, key)
    assert state.mu["w"].dtype == state.nu["w"].dtype == jnp.bfloat16
    assert ours["w"].dtype == jnp.float32
    np.testing.assert_allclose(ours["w"], plain["w"], atol=0.02)
    ratio = np.asarray(state.nu["w"], np.float64) / np.asarray(exact.nu["w"], np.float64)
    assert abs(ratio.mean() - 1) < 0.02
    assert ratio.std() < 0.08


def test_the_second_moment_moves_where_rounding_to_nearest_would_stop_it():
    """From a large value, nu must decay by exp(-1) in 1000 steps without gradient."""
    tx = AdamBf16(clip=None).build()
    zero = {"w": jnp.zeros(512)}
    state = tx.init(zero)._replace(nu={"w": jnp.ones(512, jnp.bfloat16)})
    state = jax.lax.fori_loop(0, 1000, lambda _, s: tx.update(zero, s)[1], state)
    np.testing.assert_allclose(np.asarray(state.nu["w"], np.float64).mean(), 0.999**1000, rtol=0.02)


def test_repeats_exactly_and_depends_on_the_seed():
    g = {"w": jnp.linspace(0.1, 1, 64)}

    def after(seed):
        tx = AdamBf16(clip=None, seed=seed).build()
        return tx.update(g, tx.init(g))[1].nu["w"]

    np.testing.assert_array_equal(after(0), after(0))
    assert np.any(np.asarray(after(0) != after(1)))


def test_the_first_step_equals_adam(key):
    g = {"a": jax.random.normal(key, (5, 7)), "b": jnp.ones(3)}
    pair = [o.build() for o in (AdamBf16(), Adam())]
    ours, plain = (tx.update(g, tx.init(g))[0] for tx in pair)
    for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5)
