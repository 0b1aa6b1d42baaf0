"""The op for CPUs: rows of the batch in blocks, whose dictionary rows stay in the cache for residual and products."""

import jax
import jax.numpy as jnp

from jaxsae.kernels._dispatch import Shape, no_entries
from jaxsae.kernels.decode_residual_sddmm import xla
from jaxsae.kernels.sparse_decode import xla as sparse

residual, dots, prepare = xla.residual, sparse.dots, sparse.order_for


def leaves(shape: Shape) -> str | None:
    """Why lists are left to others, or None."""
    return "takes lists shorter than S / 32" if sparse.is_long(shape["K"], shape["S"]) else no_entries(shape)


def residual_and_dots(values: jax.Array, indices: jax.Array, W: jax.Array, e0: jax.Array) -> tuple[jax.Array, ...]:
    """The residual [B, E] and its products with the rows of W that are named [B, K], f32."""

    def block(rows, values, e0):
        e = e0 - jnp.einsum("bk,bke->be", values, rows)
        return e, jnp.einsum("be,bke->bk", e, rows)

    return sparse.with_rows(block, W, indices, values.astype(jnp.float32), e0.astype(jnp.float32))


def row_grads(values: jax.Array, indices: jax.Array, rows: jax.Array, size: int, *order: jax.Array) -> jax.Array:
    """sum_b,j values[b, j] e_indices[b, j] (x) rows[b]: [size, E] f32.  The encoder's sum is made in the same order."""
    return sparse.outer_sum(values, indices, rows, size, None, *order)[0]
