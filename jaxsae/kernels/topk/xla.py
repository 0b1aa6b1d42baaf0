"""Exact two-stage top-k: the k best groups by their maximum hold the k best entries."""

import jax
import jax.numpy as jnp

from jaxsae.kernels.topk import reference

GROUP = 128


def can_group(size: int, k: int, group: int = GROUP) -> bool:
    """Whether two stages are possible for rows of this size, and worth it."""
    return size % group == 0 and k * 4 <= size // group


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
    best = best_groups(grouped.max(-1), k)
    candidates = jnp.take_along_axis(grouped, best[:, :, None], axis=1).reshape(rows, k * group)
    at, index = within_groups(candidates, best, k)
    return jnp.take_along_axis(candidates, at, axis=1), index
