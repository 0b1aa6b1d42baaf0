"""Residual of a sparse reconstruction and its squared norm, with the gradient of the codes from the same pass."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxsae.kernels import _gpu, _tpu
from jaxsae.kernels._control import either, when
from jaxsae.kernels._dispatch import Available, Implementation, axes, choose, no_entries, on_mesh
from jaxsae.kernels.decode_residual_sddmm import reference, xla, xla_rows
from jaxsae.kernels.sharded import sparse_decode as sharded
from jaxsae.kernels.sharded.axes import split_of
from jaxsae.kernels.sparse_decode import few
from jaxsae.kernels.sparse_decode.api import PallasGpu as _PallasGpuDecode
from jaxsae.kernels.sparse_decode.api import PallasTpu as _PallasTpuDecode
from jaxsae.kernels.sparse_decode.api import SparseCore as _SparseCoreDecode

Second = tuple[jax.Array, jax.Array, jax.Array]


def differentiable(backend: Any) -> Callable:
    """The op over an implementation's `residual` and `residual_and_dots`, and what its backward pass then needs.

    `residual_and_dots` may return None for the products, where holding the rows would not save fetching them again;
    then `gradients` gives those of the values and of W, otherwise `row_grads` that of W and `dots` the rest.  An
    optional `prepare(indices, size)` makes further arguments of `gradients` or `row_grads`, outside of any branch.

    Returns:
        op(values, indices, W, e0, second) -> (sse, e, rows of the second list or None).
    """

    @jax.custom_vjp
    def op(values, indices, W, e0, second):
        e = backend.residual(values, indices, W, e0)
        return jnp.sum(e**2, axis=-1), e, _second_rows(second, W)

    def fwd(*args):
        values, indices, W, e0, second = jax.tree.map(
            lambda a: a.value, args, is_leaf=lambda a: hasattr(a, "perturbed")
        )
        e, p = backend.residual_and_dots(values, indices, W, e0)
        out = jnp.sum(e**2, axis=-1), e, _second_rows(second, W)
        return out, (values, indices, W, second, e, p, jnp.zeros((), e0.dtype))

    def bwd(residuals, cotangents):
        """With d sse / d v_j = -2 p_j known, only a gradient that reaches e itself fetches the rows again."""
        values, indices, W, second, e, p, like_e0 = residuals
        g_sse, g_e, g_rows = (None if isinstance(c, SymbolicZero) else c for c in cotangents)
        total = jnp.zeros_like(e) if g_e is None else g_e
        known = None if p is None else jnp.zeros_like(p)
        if known is not None and g_e is not None:
            known = -backend.dots(g_e, indices, W)
        if g_sse is not None:
            total = total + 2 * g_sse[:, None] * e
            known = None if known is None else known - 2 * g_sse[:, None] * p

        def main(values, indices, away, W, *prepared):
            if known is not None:
                return jnp.zeros(()), backend.row_grads(values, indices, away, len(W), *prepared)
            return backend.gradients(values, indices, away, W, *prepared)

        prepare = getattr(backend, "prepare", lambda indices, size: ())
        args = values, indices, -total, W, *prepare(indices, len(W))
        (d_values, dW), d_second = (main(*args), None) if g_rows is None else _with_second(main, args, second, g_rows)
        d_values = d_values if known is None else known
        return d_values.astype(values.dtype), None, dW.astype(W.dtype), total.astype(like_e0.dtype), d_second

    op.defvjp(fwd, bwd, symbolic_zeros=True)
    return op


def _second_rows(second: Second | None, W: jax.Array) -> jax.Array | None:
    """The decoded second list, zeros where it is not live."""
    return None if second is None else when(second[2], few.forward, (*second[:2], W))


def _with_second(main: Callable, args: tuple, second: Second, g_rows: jax.Array) -> tuple[tuple, tuple]:
    """Gradients of both lists: one sum for W, to which a second list that is not live adds nothing, not even zeros."""
    second_values, second_indices, live = second

    def both(second_values, second_indices, g_rows, *args):
        d_values, dW = main(*args)
        start = dW, jnp.zeros(len(dW))
        dW = few.outer_sum(second_values, second_indices, g_rows, len(dW), start)[0]
        return d_values, dW, few.dots(g_rows, second_indices, args[3])

    def only_main(second_values, second_indices, g_rows, *args):
        return *main(*args), jnp.zeros(second_values.shape)

    *found, d_second = either(live, both, only_main, (second_values, second_indices, g_rows, *args))
    return tuple(found), (d_second.astype(second_values.dtype), None, None)


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


class _WithoutDots:
    """What a way has in common that does not hold the rows: their products cost a pass of their own, backward."""

    residual: Any

    @classmethod
    def residual_and_dots(cls, values, indices, W, e0):
        return cls.residual(values, indices, W, e0), None


class PallasGpu(_WithoutDots):
    """The parts of the op on a GPU: rows of the table are fetched once, rows of the batch come from its cache."""

    gradients, prepare = _PallasGpuDecode.gradients, _PallasGpuDecode.prepare

    @staticmethod
    def residual(values, indices, W, e0):
        return _PallasGpuDecode.forward(values, indices, W, e0)


class SparseCore(_WithoutDots):
    """The parts of the op with the rows of the forward pass summed on SparseCores."""

    gradients = _SparseCoreDecode.gradients

    @staticmethod
    def residual(values, indices, W, e0):
        return e0.astype(jnp.float32) - _SparseCoreDecode.forward(values, indices, W)


IMPLEMENTATIONS: Available = {
    "pallas_gpu": replace(_gpu.implementation(differentiable(PallasGpu)), leaves=_PallasGpuDecode.leaves),
    "xla_rows": Implementation(differentiable(xla_rows), ("cpu",), leaves=xla_rows.leaves),
    "xla": differentiable(xla),
    "pallas_tpu": replace(_tpu.implementation(differentiable(PallasTpu)), leaves=no_entries),
    "sparsecore": Implementation(differentiable(SparseCore), ("tpu",), _SparseCoreDecode.refuse, no_entries),
    "reference": reference.decode_residual_sddmm,
}


def decode_residual_sddmm(
    values: jax.Array,
    indices: jax.Array,
    W: jax.Array,
    e0: jax.Array,
    second: Second | None = None,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, ...]:
    """e[b] = e0[b] - sum_j values[b, j] W[indices[b, j]] and its squared norm, summed in f32 as `sparse_decode` does.

    The loss of the plain coder reads nothing else.  Its gradient with respect to the codes is a sampled product of
    dense matrices (SDDMM), -2 <e_b, W[i_bj]>, with the very rows that the decoding fetched: an implementation that
    holds them takes both from one pass over the rows.  When only the squared norm is differentiated the backward pass
    fetches no row; a gradient that reaches e costs one more pass.

    Args:
        values: [B, K] f32; 0 means absent.
        indices: [B, K] int32, every one in 0..S-1; repeated indices add.
        W: [S, E] dictionary, f32 or bf16.
        e0: [B, E] what is to be reconstructed.
        second: values [B, L], indices [B, L] and a bool [] `live`: another list to decode with the same W, such as that
            of dead latents.  With `live` False its values must be 0; then it costs nothing, forward or backward.
        implementation: None (best here), "xla", "xla_rows" (CPU, lists shorter than S / 32), "pallas_tpu",
            "sparsecore" (f32 on a v5p or v6e), "pallas_gpu" (lists shorter than S / 64) or "reference".  It decodes the
            first list; `second` is always summed in XLA.  On a mesh each device sums its own latents in XLA, and only
            "xla" can be named.

    Returns:
        sse [B] f32 (sum over E) and e [B, E] f32; with `second` also its decoded rows [B, E] f32.

    Raises:
        ConfigError: shapes that do not belong together, or an implementation that cannot serve the call.

    Example:
        >>> values, indices = jnp.array([[3.0, 1.0]]), jnp.array([[1, 0]])
        >>> sse, e = decode_residual_sddmm(values, indices, jnp.eye(2), jnp.array([[1.0, 5.0]]))
        >>> sse.tolist(), e.tolist()
        ([4.0], [[0.0, 2.0]])
    """
    values, indices, W, e0 = map(jnp.asarray, (values, indices, W, e0))  # numpy's cannot be indexed by what is traced
    operands = {"values": (values, "BK"), "indices": (indices, "BK"), "W": (W, "SE"), "e0": (e0, "BE")}
    shape = axes("decode_residual_sddmm", **operands)
    if second is not None:
        codes = {"values": (second[0], "BL"), "indices": (second[1], "BL"), "live": (second[2], "")}
        axes("decode_residual_sddmm (second list)", **codes, e0=(e0, "BE"))
    split = split_of(len(values), len(W)) if values.size else None  # of nothing nothing is spread
    available = IMPLEMENTATIONS if split is None else on_mesh(IMPLEMENTATIONS, "xla")
    run = choose("decode_residual_sddmm", implementation, available, shape, W.dtype)
    if split is not None:  # every device decodes what it holds, and the parts are added
        if second is None:
            main, *others = (sharded.decode(split, values, indices, W, None),)
        else:
            main, *others = sharded.decode_both(split, values, indices, W, second)
        e = e0.astype(jnp.float32) - main
        return jnp.sum(e**2, axis=-1), e, *others
    out = run(values, indices, W, e0, second)
    return out[:2] if second is None else out
