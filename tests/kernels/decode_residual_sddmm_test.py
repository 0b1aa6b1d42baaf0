"""Residual, squared norm and every gradient, against autodiff of the plain reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import kernels
from jaxsae.errors import ConfigError
from jaxsae.kernels.decode_residual_sddmm import api, xla


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


class HoldsRows:
    """The parts of an implementation that takes the products while it has the rows, as the TPU kernel does."""

    residual, dots, row_grads = xla.residual, xla.dots, xla.row_grads

    @staticmethod
    def residual_and_dots(values, indices, W, e0):
        e = xla.residual(values, indices, W, e0)
        return e, xla.dots(e, indices, W)


OPS = {"xla": api.IMPLEMENTATIONS["xla"], "holds rows": api.differentiable(HoldsRows)}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("k", [3, 20])  # below and above the switch to a dense product
@pytest.mark.parametrize("name", losses())
def test_gradients_equal_autodiff_of_the_reference(op, k, name):
    values, indices, W, e0 = inputs(k)

    def gradient(op):
        f = lambda v, W, e0: losses()[name](*op(v, indices, W, e0))  # noqa: E731
        return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(values, W, e0)

    found, expected = gradient(OPS[op]), gradient(api.IMPLEMENTATIONS["reference"])
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * float(jnp.abs(e).max()))


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
        run = jax.vjp(lambda v: loss(*OPS["holds rows"](v, indices, W, e0)), values)[1]
        return str(jax.make_jaxpr(run)(jnp.float32(1.0))).count(" gather")

    assert gathers(losses()["sse"]) == gathers(losses()["detached"]) == 0 < gathers(losses()["residual"])


def test_refuses_a_target_of_another_width():
    values, indices, W, e0 = inputs(3)
    with pytest.raises(ConfigError, match="e0"):
        kernels.decode_residual_sddmm(values, indices, W, e0[:, 1:])
