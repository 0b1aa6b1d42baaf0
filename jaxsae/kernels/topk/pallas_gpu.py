"""The k best of integer rows on a GPU: a row stays in a warpgroup's registers while its k-th best is found by counting.

Wider rows go in stages: the k groups with the best maxima hold the k best entries (see `topk.xla`).
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxsae.kernels import _gpu_rows as rows_of
from jaxsae.kernels._gpu import THREADS
from jaxsae.kernels._ordered import from_order, total_order

#: Entries of a group.
GROUP = 32
#: Widest row that is ranked in one stage.
WIDEST = 4096
#: Longest list: the time grows with it, and a sort is faster in the end.
LONGEST = 128
LOWEST = -(2**31)


def refuse(shape, dtype: str) -> str | None:
    """Why this way cannot serve a call with these sizes, or None; the dtype of the keys is always int32."""
    if shape["K"] > LONGEST:
        return f"ranks at most {LONGEST} entries, not {shape['K']}"
    return None


def ranked(keys: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest keys of each row and their columns, by (key descending, column ascending).

    Args:
        keys: [B, N] int32.
        k: at most N.
    """
    column = kept(keys, k)
    found = jnp.take_along_axis(keys, column, axis=1)
    turned, column = jax.lax.sort((~found, column), num_keys=2, is_stable=False)
    return ~turned, column


def kept(keys: jax.Array, k: int) -> jax.Array:
    """Columns [B, k] of the k largest keys of each row, ascending; of equal keys the lowest columns are kept."""
    rows, size = keys.shape
    if size <= WIDEST:
        return _one_stage(keys, k)
    padded = jnp.pad(keys, ((0, 0), (0, -size % GROUP)), constant_values=LOWEST)
    grouped = padded.reshape(rows, -1, GROUP)
    best = kept(grouped.max(-1), k)
    candidates = jnp.take_along_axis(grouped, best[:, :, None], axis=1).reshape(rows, k * GROUP)
    at = kept(candidates, k)
    return jnp.take_along_axis(best, at // GROUP, axis=1) * GROUP + at % GROUP


def topk(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.topk.api.topk`."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return ranked(x.astype(jnp.int32), k)
    keys, index = ranked(total_order(x), k)
    return from_order(keys).astype(x.dtype), index


def _one_stage(keys: jax.Array, k: int) -> jax.Array:
    """Finds the k-th largest key bit by bit, then where its equals must end, then names the columns one by one."""
    B, size = keys.shape
    keys = jnp.pad(keys, ((0, 0), (0, -size % THREADS)), constant_values=LOWEST)
    N = keys.shape[1]
    spread = rows_of.layout(N, N)

    def body(b, table, column):
        x = plgpu.load(table.at[b], layout=spread, optimized=False)
        place = plgpu.broadcasted_iota(jnp.int32, (N,), 0, layout=spread)
        count = lambda where: jnp.sum(jnp.where(where, 1, 0))  # noqa: E731

        def bit(i, threshold):
            higher = threshold + jax.lax.shift_left(jnp.int32(1), jnp.int32(31) - i)  # the first one wraps to 0
            return jnp.where(count(x >= higher) >= k, higher, threshold)

        threshold = jax.lax.fori_loop(0, 32, bit, jnp.int32(LOWEST))
        above, equal = x > threshold, x == threshold
        wanted = k - count(above)  # of the equals, at least one

        def place_bit(i, last):
            later = last + jax.lax.shift_left(jnp.int32(1), jnp.int32(N.bit_length() - 1) - i)
            return jnp.where(count(equal & (place < later)) < wanted, later, last)

        surplus = count(equal) > wanted
        last = jax.lax.fori_loop(0, jnp.where(surplus, N.bit_length(), 0), place_bit, jnp.where(surplus, 0, N))
        left = jnp.where(above | (equal & (place <= last)), N - place, 0)  # larger for lower columns

        def name(j, bound):
            found = jnp.max(jnp.where(left < bound, left, 0))
            column[b, j] = N - found
            return found

        jax.lax.fori_loop(0, k, name, jnp.int32(N + 1))

    return rows_of.kernel(body, rows_of.shaped(((B, k), jnp.int32)), B, keys)[0]
