"""Exact top-k for CPUs by counting: vector instructions where `lax.top_k` walks a heap, row by row, on one core.

The k-th best maximum of the groups bounds the k-th best entry from below, and few entries reach it.  Those are named
by the set bits of a mask, 32 columns a word, and only they are ranked.  Rows where ties or a skewed order let too many
through get the k-th best entry itself for a bound, and what is left after that is ranked whole.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsae.kernels._control import either
from jaxsae.kernels._dispatch import Shape
from jaxsae.kernels._ordered import from_order, repair, total_order
from jaxsae.kernels.topk import reference, xla
from jaxsae.kernels.topk_mask.xla import LOWEST, largest_with

#: Columns of a mask word.
WORD = 32
#: Longest list: naming columns compares every entry of it with every word of the mask.
LONGEST = 256
#: Columns of a group, of which `group_for` picks.
GROUPS = (8, 16, 32)
#: Rows that are ranked whole at once where counting could not tell them apart.
REPAIRED_AT_ONCE = 64
#: Where more than this part of the rows is left so, all are ranked whole instead.
MOST_REPAIRED = 1 / 8


def topk(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.topk.api.topk`."""
    rows, size = x.shape
    group = group_for(size, k)
    grouped = x.reshape(rows, size // group, group)
    best = best_groups(xla.group_maxima(grouped), k)
    candidates = jnp.take_along_axis(grouped, best[:, :, None], axis=1).reshape(rows, k * group)
    at, index = within_groups(candidates, best, k)
    return jnp.take_along_axis(candidates, at, axis=1), index


def refuse(shape: Shape, dtype: str) -> str | None:
    """Why counting cannot serve a call, or is not worth it, or None.

    Example:
        >>> refuse({"S": 16384, "K": 257}, "float32"), refuse({"S": 2048, "K": 4}, "float32")
        ('ranks at most 256 entries, not 257', None)
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        return f"takes float32, bfloat16 and float16, not {dtype}"
    size, k = shape["S"], shape["K"]
    if k > LONGEST:
        return f"ranks at most {LONGEST} entries, not {k}"
    if size % WORD:
        return f"needs rows whose length {WORD} divides, not {size}"
    if not xla.can_group(size, k, GROUPS[0]):
        return f"needs rows of at least {4 * k * GROUPS[0]} entries for k {k}, not {size}"
    return None


def group_for(size: int, k: int) -> int:
    """Columns of a group: nearest the root of size / k, where maxima and candidates together are fewest.

    Example:
        >>> group_for(8192, 32), group_for(24576, 32), group_for(8192, 128), group_for(24576, 128)
        (16, 32, 8, 16)
    """
    possible = [g for g in GROUPS if xla.can_group(size, k, g)]
    return min(possible, key=lambda g: abs(math.log2(size / k) / 2 - math.log2(g)))


def best_groups(maxima: jax.Array, k: int) -> jax.Array:
    """As `xla.best_groups`: the k groups with the best of the maxima [B, G], in index order."""
    keys = total_order(maxima)
    reached = keys >= kth_largest(keys, k)[:, None]
    best, count = first_columns(reached, k)
    return _exact(best, count == k, lambda maxima: xla.best_groups(maxima, k), maxima)


def within_groups(candidates: jax.Array, best: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """As `xla.within_groups`: places of the k best among the candidates [B, k * group], and what they stand for."""
    keys, group = total_order(candidates), candidates.shape[1] // best.shape[1]
    most = 2 * k
    bound = keys.reshape(len(keys), -1, group).max(-1).min(-1)  # k groups have a maximum at least as large
    reached = lambda bound: keys >= bound[:, None]  # noqa: E731
    too_many = jnp.any(jnp.sum(reached(bound), axis=1) > most)
    bound = either(too_many, lambda keys, _: kth_largest(keys, k), lambda _, bound: bound, (keys, bound))
    few, count = first_columns(reached(bound), most)
    # The few are in index order, so ties among them end as ties among all; what is absent ranks last.
    there = jnp.arange(most)[None] < count[:, None]
    left = jnp.where(there, jnp.take_along_axis(keys, few, axis=1), LOWEST)
    order = reference.topk(from_order(left), k)[1]  # of floats: a top-k of integers is a whole sort on CPUs
    at = jnp.take_along_axis(few, order, axis=1)
    at = _exact(at, count <= most, lambda candidates: reference.topk(candidates, k)[1], candidates)
    return at, jnp.take_along_axis(best, at // group, axis=1) * group + at % group


def _exact(found: jax.Array, fine: jax.Array, whole: Callable, rows: jax.Array) -> jax.Array:
    """`found`, with what is not `fine` replaced by `whole` of those rows."""

    def some(found, fine, rows):
        return repair((found,), fine, REPAIRED_AT_ONCE, lambda i: (whole(rows[i]),))[0]

    too_many = jnp.sum(~fine) > MOST_REPAIRED * len(fine)
    return either(too_many, lambda found, fine, rows: whole(rows), some, (found, fine, rows))


def kth_largest(keys: jax.Array, k: int) -> jax.Array:
    """The k-th largest of each row of integers [B, N]: [B], by bisection.

    Example:
        >>> kth_largest(jnp.array([[5, -7, 5, 2]]), 3).tolist()
        [2]
    """
    rows = len(keys)
    counted = lambda t: jnp.sum(keys >= t[:, None], axis=1)  # noqa: E731
    return largest_with(counted, jnp.full(rows, k, jnp.int32), jnp.full(rows, LOWEST, jnp.int32), 32)


def first_columns(mask: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Columns of the first n true entries of each row, in order, and how many are true: [B, n], [B] int32.

    Where fewer than n are true the rest of the columns mean nothing, but are valid.

    Example:
        >>> first_columns(jnp.array([[False, True, False, True, True]]), 2)[0].tolist()
        [[1, 3]]
    """
    rows, size = mask.shape
    bits = jnp.pad(mask, ((0, 0), (0, -size % WORD))).reshape(rows, -1, WORD).astype(jnp.uint32)
    places = jnp.arange(WORD, dtype=jnp.uint32)[None, None]
    words = jnp.sum(bits << places, axis=-1, dtype=jnp.uint32)
    ones = jax.lax.population_count(words).astype(jnp.int32)
    until = jnp.cumsum(ones, axis=1)
    nth = jnp.arange(n, dtype=jnp.int32)[None]
    word = jnp.sum(until[:, None, :] <= nth[:, :, None], axis=-1, dtype=jnp.int32)
    word = jnp.minimum(word, words.shape[1] - 1)
    pick = lambda a: jnp.take_along_axis(a, word, axis=1)  # noqa: E731
    column = word * WORD + nth_bit(pick(words), nth - pick(until - ones))
    return jnp.minimum(column, size - 1), until[:, -1]


def nth_bit(word: jax.Array, n: jax.Array) -> jax.Array:
    """Place of the n-th set bit (from 0) of each uint32: halves, quarters ... are passed over by their counts.

    Example:
        >>> int(nth_bit(jnp.uint32(0b101100), jnp.int32(1)))
        3
    """
    place = jnp.zeros_like(n)
    for half in (16, 8, 4, 2, 1):
        low = jax.lax.population_count(word & jnp.uint32((1 << half) - 1)).astype(jnp.int32)
        above = n >= low
        place = place + jnp.where(above, half, 0)
        n, word = jnp.where(above, n - low, n), jnp.where(above, word >> half, word)
    return place
