"""Residual of a sparse reconstruction and its squared norm, with the gradient of the codes from the same pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxsae.errors import ConfigError
from jaxsae.kernels import _tpu
from jaxsae.kernels._dispatch import Available, choose
from jaxsae.kernels.decode_residual_sddmm import reference, xla
from jaxsae.kernels.sharded.axes import split_of
from jaxsae.kernels.sparse_decode.api import PallasTpu as _PallasTpuDecode
from jaxsae.kernels.sparse_decode.api import sparse_decode


def differentiable(backend: Any) -> Callable:
    """The op over an implementation's `residual`, `residual_and_dots`, `dots` and `row_grads`.

    `residual_and_dots` may return None for the products, where holding the rows would not save fetching them again.
    """

    @jax.custom_vjp
    def op(values, indices, W, e0):
        e = backend.residual(values, indices, W, e0)
        return jnp.sum(e**2, axis=-1), e

    def fwd(values, indices, W, e0):
        values, indices, W, e0 = (a.value for a in (values, indices, W, e0))
        e, p = backend.residual_and_dots(values, indices, W, e0)
        return (jnp.sum(e**2, axis=-1), e), (values, indices, W, e, p, jnp.zeros((), e0.dtype))

    def bwd(residuals, cotangents):
        """With d sse / d v_j = -2 p_j known, only a gradient that reaches e itself fetches the rows again."""
        values, indices, W, e, p, like_e0 = residuals
        g_sse, g_e = (None if isinstance(c, SymbolicZero) else c for c in cotangents)
        total = jnp.zeros_like(e) if g_e is None else g_e
        d_values = None if p is None else jnp.zeros_like(p)
        if d_values is not None and g_e is not None:
            d_values = -backend.dots(g_e, indices, W)
        if g_sse is not None:
            total = total + 2 * g_sse[:, None] * e
            d_values = None if d_values is None else d_values - 2 * g_sse[:, None] * p
        d_values = -backend.dots(total, indices, W) if d_values is None else d_values
        dW = -backend.row_grads(values, indices, total, W.shape[0])
        return d_values.astype(values.dtype), None, dW.astype(W.dtype), total.astype(like_e0.dtype)

    op.defvjp(fwd, bwd, symbolic_zeros=True)
    return op


class PallasTpu:
    """The parts of the op on a TPU."""

    dots = _PallasTpuDecode.dots

    @staticmethod
    def residual(values, indices, W, e0):
        return e0.astype(jnp.float32) - _PallasTpuDecode.forward(values, indices, W)

    @staticmethod
    def residual_and_dots(values, indices, W, e0):
        return _tpu.run(_tpu.module("sparse_decode").decode_and_dots, values, indices, W, e0)

    @staticmethod
    def row_grads(values, indices, rows, size):
        return _PallasTpuDecode.outer_sum(values, indices, rows, size)[0]


IMPLEMENTATIONS: Available = {
    "xla": differentiable(xla),
    "pallas_tpu": _tpu.implementation(differentiable(PallasTpu)),
    "reference": reference.decode_residual_sddmm,
}


def decode_residual_sddmm(
    values: jax.Array,
    indices: jax.Array,
    W: jax.Array,
    e0: jax.Array,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """e[b] = e0[b] - sum_j values[b, j] W[indices[b, j]] and its squared norm, summed in f32.

    The loss of the plain coder reads nothing else.  Its gradient with respect to the codes is a sampled product of
    dense matrices (SDDMM), -2 <e_b, W[i_bj]>, with the very rows that the decoding fetched: an implementation that
    holds them takes both from one pass over the rows.  When only the squared norm is differentiated the backward pass
    fetches no row; a gradient that reaches e costs one more pass.

    Args:
        values: [B, K] f32; 0 means absent.
        indices: [B, K] int32, every one in 0..S-1; repeated indices add.
        W: [S, E] dictionary, f32 or bf16.
        e0: [B, E] what is to be reconstructed.
        implementation: None (best here), "xla", "pallas_tpu" or "reference".

    Returns:
        sse [B] f32 (sum over E) and e [B, E] f32.

    Raises:
        ConfigError: shapes that do not belong together, or an unknown implementation.

    Example:
        >>> values, indices = jnp.array([[3.0, 1.0]]), jnp.array([[1, 0]])
        >>> sse, e = decode_residual_sddmm(values, indices, jnp.eye(2), jnp.array([[1.0, 5.0]]))
        >>> sse.tolist(), e.tolist()
        ([4.0], [[0.0, 2.0]])
    """
    if values.shape != indices.shape or e0.shape != (len(values), W.shape[1]):
        raise ConfigError(
            "decode_residual_sddmm: expected values and indices [B, K], W [S, E] and e0 [B, E], found "
            f"{values.shape}, {indices.shape}, {W.shape} and {e0.shape}"
        )
    if split_of(len(values), len(W)) is not None:  # every device decodes what it holds, and the parts are added
        e = e0.astype(jnp.float32) - sparse_decode(values, indices, W)
        return jnp.sum(e**2, axis=-1), e
    shape = {"B": len(values), "K": values.shape[1], "S": len(W), "E": W.shape[1]}
    return choose("decode_residual_sddmm", implementation, IMPLEMENTATIONS, shape, W.dtype)(values, indices, W, e0)
