"""Exact two-stage top-k: the k best groups by their maximum hold the k best entries."""

import jax
import jax.numpy as jnp

from jaxsae.kernels.topk import reference

#: Entries of a group.  The two stages together rank size / GROUP + k * GROUP candidates, fewest where GROUP is about
#: sqrt(size / k); on a CPU at size 24,576 and k = 32 groups of 32 took the time of 16, and less than 64 or 128.
GROUP = 32


def can_group(size: int, k: int, group: int = GROUP) -> bool:
    """Whether two stages are possible for rows of this size, and worth it."""
    return size % group == 0 and k * 4 <= size // group


def group_maxima(grouped: jax.Array) -> jax.Array:
    """The maximum of every group [..., G] by the total order in which `lax.top_k` ranks: -0 < +0, and NaN largest.

    Floats are compared as integers of the same bits (negative ones turned round), because a maximum of floats may
    return either zero, and a group whose +0 was taken for -0 would lose its place.
    """
    if not jnp.issubdtype(grouped.dtype, jnp.floating):
        return grouped.max(-1)
    kind = jnp.dtype(f"int{8 * grouped.dtype.itemsize}")
    turn = lambda bits: bits ^ ((bits >> (8 * kind.itemsize - 1)) & jnp.iinfo(kind).max)  # noqa: E731
    best = turn(jax.lax.bitcast_convert_type(grouped, kind)).max(-1)
    return jax.lax.bitcast_convert_type(turn(best), grouped.dtype)


def best_groups(maxima: jax.Array, k: int) -> jax.Array:
    """The k groups that hold the k best entries, in index order, from the maxima [B, G] of all groups: [B, k] int32.

    Exact with ties too: an entry outside the chosen groups is preceded, in (value descending, index ascending) order,
    by the maxima of k groups.  In index order, so that a position among the candidates breaks ties as the index would.
    """
    return jnp.sort(reference.topk(maxima, k)[1], axis=-1)


def within_groups(candidates: jax.Array, best: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Places [B, k] of the k best among candidates [B, k * group], and the indices they stand for."""
    group = candidates.shape[1] // best.shape[1]
    at = reference.topk(candidates, k)[1]
    return at, jnp.take_along_axis(best, at // group, axis=1) * group + at % group


def topk(x: jax.Array, k: int, group: int = GROUP) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.topk.api.topk`."""
    rows, size = x.shape
    if not can_group(size, k, group):
        return reference.topk(x, k)
    grouped = x.reshape(rows, size // group, group)
    best = best_groups(group_maxima(grouped), k)
    candidates = jnp.take_along_axis(grouped, best[:, :, None], axis=1).reshape(rows, k * group)
    at, index = within_groups(candidates, best, k)
    return jnp.take_along_axis(candidates, at, axis=1), index
