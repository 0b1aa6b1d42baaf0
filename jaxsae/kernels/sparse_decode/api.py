"""Decoding of sparse codes: a weighted sum of K dictionary rows per row of the batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.kernels import _gpu, _tpu
from jaxsae.kernels._chip import objection
from jaxsae.kernels._control import when
from jaxsae.kernels._dispatch import Available, Implementation, axes, choose, no_entries, on_mesh
from jaxsae.kernels.sharded import sparse_decode as sharded
from jaxsae.kernels.sharded.axes import split_of
from jaxsae.kernels.sparse_decode import reference, xla


def _op(backend: Any) -> Callable:
    """The differentiable op over an implementation's `forward` and `gradients` (of the values, and of W)."""

    def forward(values, indices, W, live):
        args = (values, indices, W)
        return backend.forward(*args) if live is None else when(live, backend.forward, args)

    @jax.custom_vjp
    def op(values, indices, W, live):
        return forward(values, indices, W, live)

    def fwd(values, indices, W, live):
        return forward(values, indices, W, live), (values, indices, W, live)

    def bwd(residuals, g):
        values, indices, W, live = residuals

        def grads(values, indices, W, g):
            return backend.gradients(values, indices, g, W)

        args = (values, indices, W, g)
        d_values, dW = grads(*args) if live is None else when(live, grads, args)
        return d_values.astype(values.dtype), None, dW.astype(W.dtype), None

    op.defvjp(fwd, bwd)
    return op


class PallasTpu:
    """The parts of the op on a TPU."""

    @staticmethod
    def forward(values, indices, W):
        return _tpu.run(_tpu.module("sparse_decode").decode, values, indices, W)

    @staticmethod
    def dots(g, indices, W):
        return _tpu.run(_tpu.module("sparse_decode").dots, g, indices, W)

    @staticmethod
    def outer_sum(values, indices, rows, size):
        kernel = _tpu.module("sparse_grad").sparse_grad
        return _tpu.run(lambda v, i, r: kernel(v, i, r, size), values, indices, rows)

    @classmethod
    def gradients(cls, values, indices, g, W):
        return cls.dots(g, indices, W), cls.outer_sum(values, indices, g, len(W))[0]


class SparseCore:
    """The forward pass on the SparseCores of a TPU, the rest as in `xla`."""

    gradients = xla.gradients

    @staticmethod
    def forward(values, indices, W):
        return _tpu.run(_tpu.module("sparse_decode", "sparsecore").decode, values, indices, W)

    @staticmethod
    def refuse(shape, dtype):
        if why := objection(dtype):
            return why
        kernel = _tpu.module("sparse_decode", "sparsecore")
        return kernel.refuse(shape["E"], dtype, kernel.cores_here())


class PallasGpu:
    """The parts of the op on a GPU."""

    @staticmethod
    def forward(values, indices, W, *e0):
        return _gpu.module("sparse_decode").decode(values, indices, W, *e0)

    @staticmethod
    def prepare(indices, size):
        """What sums by latent need to know of the indices: equal calls in one program are made once."""
        return _gpu.module("sparse_grad").segments(indices, size)

    @staticmethod
    def gradients(values, indices, g, W, *prepared):
        dW, dots = _gpu.module("sparse_grad").sparse_grad_and_dots(values, indices, g, W, *prepared)
        return dots, dW

    @staticmethod
    def leaves(shape):
        """Long lists, which a dense product serves better, and empty ones."""
        if not xla.is_long(shape["K"], shape["S"]):
            return no_entries(shape)
        return (
            f"takes lists of fewer than {-(-shape['S'] // xla.dense_ratio())} of {shape['S']} latents, not {shape['K']}"
        )


def _reference(values, indices, W, live):
    out = reference.sparse_decode(values, indices, W)
    return out if live is None else jnp.where(live, out, 0.0)


IMPLEMENTATIONS: Available = {
    "pallas_gpu": replace(_gpu.implementation(_op(PallasGpu)), leaves=PallasGpu.leaves),
    "xla": _op(xla),
    "pallas_tpu": replace(_tpu.implementation(_op(PallasTpu)), leaves=no_entries),
    "sparsecore": Implementation(_op(SparseCore), ("tpu",), SparseCore.refuse, no_entries),
    "reference": _reference,
}


def sparse_decode(
    values: jax.Array,
    indices: jax.Array,
    W: jax.Array,
    *,
    live: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """y[b] = sum_j values[b, j] W[indices[b, j]], summed in f32.

    Products are f32, with one exception: in XLA a long list (K >= S / 64, on a CPU S / 32) over a bf16 W is a product
    of bf16 matrices, so its codes, and in the backward pass the gradient of y, are rounded to bf16 first; an f32 copy
    of W would be larger than W itself.  That is one rounding of each, at most 2^-9 of it.

    Args:
        values: [B, K] f32; 0 means absent.
        indices: [B, K] int32, every one in 0..S-1; repeated indices add.
        W: [S, E] dictionary, f32 or bf16.
        live: [] bool; when False the codes count as absent: the result and every gradient are 0, at no cost.
        implementation: None (best here), "xla", "pallas_tpu", "sparsecore" (f32 on a v5p or v6e), "pallas_gpu" (lists
            shorter than S / 64) or "reference".  On a mesh each device sums its own latents in XLA, and only "xla" can
            be named.

    Returns:
        [B, E] f32.

    Raises:
        ConfigError: shapes that do not belong together, or an implementation that cannot serve the call.

    Example:
        >>> W = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> sparse_decode(jnp.array([[3.0, 1.0]]), jnp.array([[1, 0]]), W).tolist()
        [[1.0, 6.0]]
    """
    values, indices, W = map(jnp.asarray, (values, indices, W))  # numpy's cannot be indexed by what is traced
    shape = axes("sparse_decode", values=(values, "BK"), indices=(indices, "BK"), W=(W, "SE"))
    split = split_of(len(values), len(W)) if values.size else None  # of nothing nothing is spread
    available = IMPLEMENTATIONS if split is None else on_mesh(IMPLEMENTATIONS, "xla")
    run = choose("sparse_decode", implementation, available, shape, W.dtype)
    return run(values, indices, W, live) if split is None else sharded.decode(split, values, indices, W, live)
