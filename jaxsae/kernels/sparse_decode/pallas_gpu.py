"""Gather-sum on a GPU: one warpgroup per row of the batch, K rows of the table through its registers."""

import jax
import jax.numpy as jnp

from jaxsae.kernels import _gpu_rows as rows_of


def decode(values: jax.Array, indices: jax.Array, W: jax.Array, e0: jax.Array | None = None) -> jax.Array:
    """sum_j values[b, j] W[indices[b, j]], or e0[b] less that sum: [B, E] f32."""
    (B, K), E = values.shape, W.shape[1]

    def body(b, value, index, table, *rest):
        *start, out = rest
        fetch = lambda j: rows_of.load(table, index[b, j])  # noqa: E731
        add = lambda acc, j, row: rows_of.add(acc, value[b, j], row)  # noqa: E731
        total = rows_of.over_rows(0, K, fetch, add, rows_of.zeros(E))
        if start:
            total = rows_of.add(rows_of.load(start[0], b), -1.0, total)
        rows_of.store(out, b, total)

    args = (values.astype(jnp.float32), indices, W, *(() if e0 is None else (e0.astype(jnp.float32),)))
    return rows_of.kernel(body, rows_of.shaped(((B, E), jnp.float32)), B, *args)[0]


def dots(g: jax.Array, indices: jax.Array, W: jax.Array) -> jax.Array:
    """g[b] . W[indices[b, j]]: [B, K] f32."""
    (B, K), E = indices.shape, W.shape[1]

    def body(b, index, table, rows, out):
        own = rows_of.load(rows, b)

        def use(acc, j, row):
            out[b, j] = rows_of.dot(own, row, E)
            return acc

        rows_of.over_rows(0, K, lambda j: rows_of.load(table, index[b, j]), use, [])

    return rows_of.kernel(body, rows_of.shaped(((B, K), jnp.float32)), B, indices, W, g.astype(jnp.float32))[0]
