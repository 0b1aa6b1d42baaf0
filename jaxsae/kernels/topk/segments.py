"""Top-k of bf16 rows from the best 32 of each segment, which XLA has a fast path for on TPUs.

`lax.top_k` on a TPU scans a row once per k.  For bf16 rows shorter than 2^16 and k <= 32 XLA keeps a small sorted set
instead, which costs about a tenth.  So a row is cut into segments, the best 32 of each are merged, and the result is
certified: nothing left behind in a segment can belong to the k best if the segment's 32nd is strictly below the k-th.
Rows that fail are done again by `lax.top_k`.

Segments are dealt blocks of 128 columns in turn, like cards, so that latents that are strong together because they
are neighbours (sorted dictionaries, Matryoshka prefixes) do not meet in one segment.
"""

import jax
import jax.numpy as jnp

from jaxsae.kernels._ordered import best_first, repair
from jaxsae.kernels.topk import reference

BLOCK = 128
#: Length of XLA's small sorted set.
KEPT = 32
#: Columns of a segment: outside these XLA sorts the whole row or scans it once per k.
SHORTEST, LONGEST = 4096, 32768
#: Rows done again at a time.
AGAIN_ROWS = 64


def refuse(shape, dtype: str) -> str | None:
    """Why this way cannot serve a call, or None."""
    if dtype != "bfloat16":
        return f"takes bfloat16, not {dtype}"
    if n_segments(shape["S"], shape["K"]) is None:
        return f"needs segments of at least {SHORTEST} columns, {shape['K']} of {shape['S']} columns leave fewer"
    return None


def n_segments(size: int, k: int) -> int | None:
    """How many: one per 8 wanted (k = 64 of 8 segments then misses in 3 of 10^12 rows), fewer where k <= 32.

    Example:
        >>> n_segments(131072, 32), n_segments(131072, 64), n_segments(8192, 64)
        (4, 8, None)
    """
    n = max(-(-size // LONGEST), 1 if k <= KEPT else -(-k // 8))
    return n if size // n >= SHORTEST else None


def topk(x: jax.Array, k: int, segments: int | None = None) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.topk.api.topk`; `segments` overrides their number."""
    rows, size = x.shape
    n = segments or n_segments(size, k) or 1
    padded = -(-size // (BLOCK * n)) * BLOCK * n
    # Absent columns come last of all equals; the k best, at most `size`, reach them only past NaN of negative sign.
    dealt = jnp.pad(x, ((0, 0), (0, padded - size)), constant_values=-jnp.inf)
    dealt = dealt.reshape(rows, -1, n, BLOCK).swapaxes(1, 2).reshape(rows * n, padded // n)
    best, at = jax.lax.top_k(dealt, min(KEPT, padded // n))
    column = (at // BLOCK * n + jnp.tile(jnp.arange(n), rows)[:, None]) * BLOCK + at % BLOCK
    best = best.reshape(rows, n, -1)
    values, index = best_first(best.reshape(rows, -1), column.reshape(rows, -1).astype(jnp.int32), k)
    out = values.astype(x.dtype), index
    if k <= KEPT and padded == size:
        return out
    fine = jnp.all(index < size, axis=1)
    if k > KEPT:
        fine &= jnp.all(best[:, :, -1].astype(jnp.float32) < values[:, -1:], axis=1)
    again = lambda at: reference.topk(jnp.take(x, at, axis=0, mode="clip"), k)  # noqa: E731
    return repair(out, fine, min(AGAIN_ROWS, rows), again)
