"""Rows in tiles, so that what is written for each of them never takes more than so many bytes at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def by_rows(f: Callable, x: jax.Array, row_bytes: int, limit: int) -> tuple[jax.Array, ...]:
    """`f(x)`, whose results have a row for each of x, in tiles of rows one after another.

    Args:
        f: of [b, D] rows; what it computes for a row depends on no other row.
        x: [B, D].
        row_bytes: what f writes for a row.
        limit: bytes that it may write for a tile; a tile has at least one row.

    Example:
        >>> by_rows(lambda rows: (2 * rows,), jnp.ones((5, 1)), row_bytes=4, limit=8)[0].ravel().tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    rows = len(x)
    each = max(1, min(rows, limit // row_bytes))
    tiles = -(-rows // each)
    if tiles <= 1:  # none for a batch without rows
        return f(x)
    each = -(-rows // tiles)  # as even as can be; the last tile is filled up with zeros
    filled = jnp.pad(x, ((0, tiles * each - rows), (0, 0)))
    out = jax.lax.map(f, filled.reshape(tiles, each, -1))
    return tuple(a.reshape(tiles * each, *a.shape[2:])[:rows] for a in out)
