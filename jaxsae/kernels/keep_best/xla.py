"""The best entries of a matrix by bisection on integers in the order of the floats: counts, no sort."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def ordered(score: jax.Array) -> jax.Array:
    """uint32 in the order of f32 scores: -0.0 as 0.0, NaN as -inf."""
    score = jnp.where(score == 0, 0.0, jnp.where(jnp.isnan(score), -jnp.inf, score)).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(score, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def keep_best(
    score: jax.Array,
    count: jax.Array,
    total: Callable = lambda n: n,
    before: Callable = jnp.zeros_like,
    left_of: Callable = lambda n: (n, jnp.zeros_like(n)),
) -> jax.Array:
    """See `jaxsae.kernels.keep_best.api.keep_best`.

    Args:
        score: [b, c], the whole or a device's part of it.
        count: [] how many of the whole.
        total: from a device's count to that of all devices.
        before: from a device's count to that of the devices with lower rows.
        left_of: from a device's counts per row to those of whole rows, and of the devices with lower columns.
    """
    key, count = ordered(score), jnp.maximum(count, 0).astype(jnp.int32)
    # Counts above `count` are as good as `count`: saturated, their sum over many devices stays an int32.
    at_least = lambda t: total(jnp.minimum(jnp.sum(key >= t, dtype=jnp.int32), count))  # noqa: E731
    threshold = _largest(at_least, count)
    above, tie = key > threshold, key == threshold
    left = count - total(jnp.sum(above, dtype=jnp.int32))
    per_row, lower = left_of(jnp.sum(tie, axis=1, dtype=jnp.int32))
    start = jnp.cumsum(per_row) - per_row + before(jnp.sum(per_row)) + lower
    place = start[:, None] + jnp.cumsum(tie, axis=1, dtype=jnp.int32) - 1
    return above | (tie & (place < left))


def of_columns(
    score: jax.Array, count: jax.Array, total: Callable = lambda n: n, before: Callable = jnp.zeros_like
) -> jax.Array:
    """Every column by itself: its `count` [c] largest entries, ties to the lower row; arguments as `keep_best`."""
    key, count = ordered(score), jnp.maximum(count, 0).astype(jnp.int32)
    threshold = _largest(lambda t: total(jnp.sum(key >= t[None], axis=0, dtype=jnp.int32)), count)
    above, tie = key > threshold[None], key == threshold[None]
    left = count - total(jnp.sum(above, axis=0, dtype=jnp.int32))
    ties = jnp.cumsum(tie, axis=0, dtype=jnp.int32)
    return above | (tie & (ties - 1 + before(ties[-1])[None] < left[None]))


def _largest(at_least: Callable, count: jax.Array) -> jax.Array:
    """The largest uint32 that at least `count` keys reach, a bit at a time, for each entry of count."""

    def bit(i: jax.Array, t: jax.Array) -> jax.Array:
        higher = t | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(at_least(higher) >= count, higher, t)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros(count.shape, jnp.uint32))
