"""Gradients of weight rows from sparse codes: a sum of outer products that touches few rows."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxsae.kernels import _gpu, _tpu
from jaxsae.kernels._dispatch import Available, axes, choose, no_entries
from jaxsae.kernels.sparse_decode import xla
from jaxsae.kernels.sparse_grad import reference


def _pallas_tpu(values, indices, rows, size):
    kernel = _tpu.module("sparse_grad").sparse_grad
    return _tpu.run(lambda v, i, r: kernel(v, i, r, size), values, indices, rows)


def _pallas_gpu(values, indices, rows, size):
    return _gpu.module("sparse_grad").sparse_grad(values, indices, rows, size)


IMPLEMENTATIONS: Available = {
    "pallas_gpu": replace(_gpu.implementation(_pallas_gpu), leaves=no_entries),
    "xla": xla.outer_sum,
    "pallas_tpu": replace(_tpu.implementation(_pallas_tpu), leaves=no_entries),
    "reference": reference.sparse_grad,
}


def sparse_grad(
    values: jax.Array,
    indices: jax.Array,
    rows: jax.Array,
    size: int,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """dW[s] = sum over (b, j) with indices[b, j] = s of values[b, j] rows[b], and the sum of those values.

    With the codes as values and the gradient of the reconstruction as rows this is the gradient of the decoder; with
    the gradient of the codes and the inputs it is that of the encoder (one row per latent) and of its bias.  Not
    differentiable itself: it is the backward pass of other ops.

    Args:
        values: [B, K] real; 0 means absent.
        indices: [B, K] int32, every one in 0..size-1; repeated indices add.
        rows: [B, E] f32 or bf16.
        size: number of rows of the result, S.
        implementation: None (best here), "xla", "pallas_tpu", "pallas_gpu" or "reference".

    Returns:
        dW [S, E] f32 and sums [S] f32; rows that no entry names are 0.

    Raises:
        ConfigError: shapes that do not belong together, or an unknown implementation.

    Example:
        >>> values, indices = jnp.array([[2.0], [3.0]]), jnp.array([[1], [1]])
        >>> dW, sums = sparse_grad(values, indices, jnp.array([[1.0, 0.0], [0.0, 1.0]]), 2)
        >>> dW.tolist(), sums.tolist()
        ([[0.0, 0.0], [2.0, 3.0]], [0.0, 5.0])
    """
    values, indices, rows = map(jnp.asarray, (values, indices, rows))  # numpy's cannot be indexed by what is traced
    shape = {"S": size, **axes("sparse_grad", values=(values, "BK"), indices=(indices, "BK"), rows=(rows, "BE"))}
    return choose("sparse_grad", implementation, IMPLEMENTATIONS, shape, rows.dtype)(values, indices, rows, size)
