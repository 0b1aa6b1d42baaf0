"""Exact two-stage top-k: the k best groups by their maximum hold the k best entries."""

import jax
import jax.numpy as jnp

from jaxsae.kernels.topk import reference

GROUP = 128


def topk(x: jax.Array, k: int, group: int = GROUP) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.topk.api.topk`.

    Exact with ties too: an entry outside the chosen groups is preceded, in (value descending, index ascending)
    order, by the maxima of k groups.  The chosen groups are put back in index order before the second stage, so
    that a position among the candidates breaks ties as the index would.
    """
    rows, size = x.shape
    n_groups = size // group
    if size % group or k * 4 > n_groups:
        return reference.topk(x, k)
    grouped = x.reshape(rows, n_groups, group)
    _, best = reference.topk(grouped.max(-1), k)
    best = jnp.sort(best, axis=-1)
    candidates = jnp.take_along_axis(grouped, best[:, :, None], axis=1).reshape(rows, k * group)
    values, at = reference.topk(candidates, k)
    index = jnp.take_along_axis(best, at // group, axis=1) * group + at % group
    return values, index
