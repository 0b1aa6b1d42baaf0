"""Residual, squared norm and every gradient, against autodiff of the plain reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import kernels
from jaxsae.errors import ConfigError
from jaxsae.kernels.decode_residual_sddmm import api


def inputs(k, dtype=jnp.float32, rows=6, width=12, size=300):
    rng = np.random.default_rng(0)
    indices = rng.integers(0, size, (rows, k))
    indices[:, -1] = indices[:, 0]
    make = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return make(rows, k), jnp.asarray(indices), make(size, width).astype(dtype), make(rows, width)


def losses():
    """By name, losses that send a gradient to the squared norm, to the residual, and to both."""
    weigh = jnp.arange(1.0, 7.0)
    return {
        "sse": lambda sse, e: jnp.sum(weigh * sse),
        "residual": lambda sse, e: jnp.sum(jnp.abs(e) ** 1.5),
        "both": lambda sse, e: jnp.sum(weigh * sse) + jnp.sum(jnp.sin(e)),
        "detached": lambda sse, e: jnp.sum(sse) * jnp.sum(jax.lax.stop_gradient(e) ** 2),
    }


OPS = {"xla": api.IMPLEMENTATIONS["xla"], "xla_rows": api.IMPLEMENTATIONS["xla_rows"].run}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("k", [3, 20])  # below and above the switch to a dense product
@pytest.mark.parametrize("name", losses())
def test_gradients_equal_autodiff_of_the_reference(op, k, name):
    values, indices, W, e0 = inputs(k)

    def gradient(op):
        f = lambda v, W, e0: losses()[name](*op(v, indices, W, e0, None)[:2])  # noqa: E731
        return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(values, W, e0)

    found, expected = gradient(OPS[op]), gradient(api.IMPLEMENTATIONS["reference"])
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * float(jnp.abs(e).max()))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("sends", ["both", "second"])
def test_a_second_list_adds_its_gradients_to_the_same_sum(op, live, sends):
    values, indices, W, e0 = inputs(3)
    rng = np.random.default_rng(1)
    second = jnp.asarray(rng.standard_normal((6, 5)), jnp.float32) * live, jnp.asarray(rng.integers(0, 300, (6, 5)))

    def loss(op, v, W, e0, v2):
        sse, e, rows = op(v, indices, W, e0, (v2, second[1], jnp.array(live)))
        main = jnp.sum(jnp.arange(1.0, 7.0) * sse) + jnp.sum(jnp.sin(e))
        target = jax.lax.stop_gradient(e)
        return (main if sends == "both" else 0.0) + live * jnp.sum((target - rows) ** 2)

    def gradients(op):
        return jax.jit(jax.value_and_grad(lambda *a: loss(op, *a), argnums=(0, 1, 2, 3)))(values, W, e0, second[0])

    found, expected = gradients(OPS[op]), gradients(api.IMPLEMENTATIONS["reference"])
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * max(float(jnp.abs(e).max()), 1e-6))


@pytest.mark.parametrize("runs", [0, 2])
def test_blocks_of_rows_and_entries_sorted_once_are_the_same_sums(runs):
    """On a CPU 512 rows of 8 entries of width 1024 are four blocks, and 4096 entries are two sorted chunks."""
    B, K, E, S = 512, 8, 1024, 1100
    keys = jax.random.split(jax.random.key(0), 5)
    values, W, e0 = (jax.random.normal(k, s) for k, s in zip(keys, ((B, K), (S, E), (B, E)), strict=False))
    indices = jax.random.randint(keys[3], (B, K), 0, S)
    second = jax.random.normal(keys[4], (B, 3)), jax.random.randint(keys[4], (B, 3), 0, S)

    def gradients(op, live):
        def loss(v, W, e0, v2):
            sse, e, rows = op(v, indices, W, e0, (v2 * live, second[1], live))
            return jnp.sum(sse) + jnp.sum(jnp.cos(e)) + jnp.sum(rows**2)

        f = lambda live: jax.grad(lambda *a: loss(*a), argnums=(0, 1, 2))(values, W, e0, second[0] * live)  # noqa: E731
        return jax.jit(jax.vmap(f))(jnp.full(runs, live)) if runs else jax.jit(f)(live)

    for live in (True, False):
        found = gradients(OPS["xla_rows"], jnp.array(live))
        expected = gradients(api.IMPLEMENTATIONS["reference"], jnp.array(live))
        for a, e in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=2e-6 * float(jnp.abs(e).max()))


def test_runs_of_a_sweep_with_and_without_a_live_second_list():
    values, indices, W, e0 = inputs(3)

    def gradient(live):
        def loss(W):
            sse, _, rows = kernels.decode_residual_sddmm(values, indices, W, e0, (values * live, indices, live))
            return jnp.sum(sse) + jnp.where(live, jnp.sum(rows**2), 0.0)

        return jax.grad(loss)(W)

    together = jax.jit(jax.vmap(gradient))(jnp.array([False, True]))
    for run, live in enumerate((False, True)):
        np.testing.assert_allclose(together[run], jax.jit(gradient)(jnp.array(live)), rtol=1e-5, atol=1e-5)


def test_the_residual_by_hand_with_repeated_indices():
    values, indices, W, e0 = inputs(3)
    sse, e = kernels.decode_residual_sddmm(values, indices, W, e0)
    rows = np.asarray(W, np.float64)[np.asarray(indices)]
    expected = np.asarray(e0, np.float64) - np.einsum("bk,bke->be", np.asarray(values, np.float64), rows)
    np.testing.assert_allclose(e, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sse, (expected**2).sum(1), rtol=1e-5)


def test_the_gradient_of_the_squared_norm_alone_fetches_no_row_in_the_backward_pass():
    values, indices, W, e0 = inputs(3)

    def gathers(loss):
        run = jax.vjp(lambda v: loss(*OPS["xla_rows"](v, indices, W, e0, None)[:2]), values)[1]
        return str(jax.make_jaxpr(run)(jnp.float32(1.0))).count(" gather")

    assert gathers(losses()["sse"]) == gathers(losses()["detached"]) == 0 < gathers(losses()["residual"])


def test_refuses_a_target_of_another_width():
    values, indices, W, e0 = inputs(3)
    with pytest.raises(ConfigError, match="e0"):
        kernels.decode_residual_sddmm(values, indices, W, e0[:, 1:])
    with pytest.raises(
        ConfigError, match=r"second list.: expected values \[B, L\], indices \[B, L\], live \[\] and e0"
    ):
        kernels.decode_residual_sddmm(values, indices, W, e0, (values[1:], indices[1:], jnp.array(True)))
