"""Row gradients on a GPU: entries sorted by latent, one warpgroup per latent, one write per row of the result.

The rows of the batch are worked through in parts of their width that fit the L2 cache of a large GPU, so what travels
from memory is little more than the result.  Sums are made in the order of the sorted entries: every run gives the same
bits.
"""

import jax
import jax.numpy as jnp

from jaxsae.kernels import _gpu
from jaxsae.kernels import _gpu_rows as rows_of

#: Share of a large GPU's L2 cache (50 MB) that rows of the batch may fill beside what streams through it.
CACHED_BYTES = 20 * 2**20


def segments(indices: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Entries [B, K] sorted by latent: their flat places [B K], and where each latent's begin and how many [size]."""
    flat = indices.reshape(-1)
    ordered, order = jax.lax.sort_key_val(flat, jnp.arange(flat.size, dtype=jnp.int32))
    count = jnp.zeros(size, jnp.int32).at[ordered].add(1)
    first = jnp.zeros(size, jnp.int32).at[ordered].max(flat.size - jnp.arange(flat.size, dtype=jnp.int32))
    return order, flat.size - first, count


def sparse_grad(
    values: jax.Array, indices: jax.Array, rows: jax.Array, size: int, *sorted_already: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.sparse_grad.api.sparse_grad`; `sorted_already` are the `segments` of the indices."""
    return _sums(values, indices, rows, size, None, sorted_already)[:2]


def sparse_grad_and_dots(
    values: jax.Array, indices: jax.Array, rows: jax.Array, W: jax.Array, *sorted_already: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradient [S, E] of W and <rows[b], W[indices[b, j]]> [B, K], both f32, from one pass over the entries."""
    dW, _, products = _sums(values, indices, rows, len(W), W, sorted_already)
    return dW, products


def parts(batch: int, width: int, itemsize: int) -> int:
    """Into how many parts of its width the work is cut, one after another, so that a part of all rows fits the cache.

    Example:
        >>> parts(4096, 4096, 4), parts(1024, 576, 4)
        (4, 1)
    """
    most = max(width // _gpu.THREADS, 1)
    fits = lambda n: batch * width * itemsize <= n * CACHED_BYTES  # noqa: E731
    return next((n for n in range(1, most + 1) if width % (n * _gpu.THREADS) == 0 and fits(n)), 1)


def _sums(values, indices, rows, size, W, sorted_already):
    (B, E), K = rows.shape, indices.shape[1]
    order, first, count = sorted_already or segments(indices, size)
    value = values.astype(jnp.float32).reshape(-1)[order]
    with_dots, n = W is not None, parts(B, E, rows.dtype.itemsize)
    width = E // n

    def body(program, first, count, value, row, rows, *rest):
        table, (out, total, *products) = (rest[0] if with_dots else None), (rest[1:] if with_dots else rest)
        part, s = program // size, program % size
        here = {"start": part * width, "width": width}
        atom = rows_of.load(table, s, **here) if with_dots else None

        def use(carry, p, fetched):
            if with_dots:
                products[0][part, p] = rows_of.dot(atom, fetched, width)
            weight = value[p]
            return [*rows_of.add(carry[:-1], weight, fetched), carry[-1] + weight]

        start = [*rows_of.zeros(width), jnp.float32(0.0)]
        fetch = lambda p: rows_of.load(rows, row[p], **here)  # noqa: E731
        *acc, weight = rows_of.over_rows(first[s], count[s], fetch, use, start)
        rows_of.store(out, s, acc, **here)
        total[s] = weight  # by every part, the same

    out = rows_of.shaped(((size, E), jnp.float32), ((size,), jnp.float32))
    args = (first, count, value, order // K, rows)
    if with_dots:
        out, args = [*out, *rows_of.shaped(((n, order.size), jnp.float32))], (*args, W)
    dW, sums, *products = rows_of.kernel(body, out, n * size, *args)
    placed = [jnp.zeros(order.size).at[order].set(p.sum(0), unique_indices=True) for p in products]
    return dW, sums, *(p.reshape(indices.shape) for p in placed)
