"""Rows in tiles, so that what is written for each of them never takes more than so many bytes at a time."""

from collections.abc import Callable
from typing import Any

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


def in_blocks(f: Callable, row_bytes: int, limit: int, *arrays: jax.Array) -> Any:
    """`f(*arrays)` in equal blocks of rows, one after another, small enough for what each reads to stay in a cache.

    Args:
        f: of arrays with the same rows; what it computes for a row depends on no other row.
        row_bytes: what f reads for a row.
        limit: bytes that a block reads at most, if it is not a single row.
        arrays: [B, ...].

    Example:
        >>> in_blocks(lambda a, b: a + b, 4, 8, jnp.ones(6), jnp.ones(6)).tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """
    rows = len(arrays[0])
    each = _divisor(rows, limit // max(row_bytes, 1))
    if each == rows:
        return f(*arrays)
    out = jax.lax.map(lambda block: f(*block), tuple(a.reshape(rows // each, each, *a.shape[1:]) for a in arrays))
    return jax.tree.map(lambda a: a.reshape(rows, *a.shape[2:]), out)


def _divisor(rows: int, most: int) -> int:
    """The largest divisor of `rows` up to `most`, at least 1."""
    return next((n for n in range(min(rows, most), 0, -1) if rows % n == 0), 1)
