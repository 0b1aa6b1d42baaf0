"""Reading and adding at the entries of sparse codes: [S] or [B, S] at indices [B, K], and back.

Plain gathers and scatters; on a mesh each device serves the latents it holds, and [S] or [B, S] never travel.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxsae import parallel
from jaxsae.kernels.sharded.axes import Split, owned, split_of


def take(v: jax.Array, index: jax.Array) -> jax.Array:
    """v[index]: a per-latent array [S] at indices [B, K], giving [B, K].

    Example:
        >>> take(jnp.array([5.0, 6.0, 7.0]), jnp.array([[2, 0]])).tolist()
        [[7.0, 5.0]]
    """
    split = split_of(len(index), len(v)) if index.ndim == 2 else None
    return v[index] if split is None else _take(split, v, index)


def add_at(weight: jax.Array, index: jax.Array, size: int) -> jax.Array:
    """The sum of weight [B, K] per latent index [B, K]: [size].  Repeated indices add.

    Example:
        >>> add_at(jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([[0, 1], [1, 1]]), 3).tolist()
        [1.0, 5.0, 0.0]
    """
    split = split_of(len(index), size) if index.ndim == 2 else None
    if split is None:
        return jnp.zeros(size, weight.dtype).at[index].add(weight)
    return _add_at(split, size, weight, index)


def pick(a: jax.Array, index: jax.Array) -> jax.Array:
    """a[b, index[b, j]]: a per-row, per-latent array [B, S] at indices [B, K], giving [B, K].

    Example:
        >>> pick(jnp.array([[5.0, 6.0], [7.0, 8.0]]), jnp.array([[1], [0]])).tolist()
        [[6.0], [7.0]]
    """
    split = split_of(*a.shape) if a.ndim == 2 else None
    return jnp.take_along_axis(a, index, axis=-1) if split is None else _pick(split, a.shape[1], a, index)


# ------------------------------------------------------------------------------------------------------- on a mesh
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take(split: Split, v, index):
    def local(v, index):
        mine, place = owned(index, split.first(len(v)), len(v))
        return split.sum_latents(jnp.where(mine, v[place], jnp.zeros((), v.dtype)))

    if v.dtype == jnp.bool_:
        return _take(split, v.astype(jnp.int32), index) > 0
    return parallel.shard(local, split.specs("S", "BK"), split.spec("BK"))(v, index)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _add_at(split: Split, size: int, weight, index):
    def local(weight, index):
        own = size // split.latent
        mine, place = owned(index, split.first(own), own)
        total = jnp.zeros(own, weight.dtype).at[place].add(jnp.where(mine, weight, jnp.zeros((), weight.dtype)))
        return split.sum_rows(total)

    return parallel.shard(local, split.specs("BK", "BK"), split.spec("S"))(weight, index)


_take.defvjp(
    lambda split, v, index: (_take(split, v, index), (index, len(v))),
    lambda split, saved, g: (_add_at(split, saved[1], g, saved[0]), None),
)
_add_at.defvjp(
    lambda split, size, weight, index: (_add_at(split, size, weight, index), index),
    lambda split, size, index, g: (_take(split, g, index), None),
)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pick(split: Split, size: int, a, index):
    def local(a, index):
        mine, place = owned(index, split.first(a.shape[1]), a.shape[1])
        found = jnp.take_along_axis(a, place, axis=1)
        return split.sum_latents(jnp.where(mine, found, jnp.zeros((), a.dtype)))

    return parallel.shard(local, split.specs("BS", "BK"), split.spec("BK"))(a, index)


def _pick_bwd(split: Split, size: int, index, g):
    def local(index, g):
        own = size // split.latent
        mine, place = owned(index, split.first(own), own)
        rows = jnp.arange(len(index))[:, None]
        zeros = jnp.zeros((len(index), own), g.dtype)
        return zeros.at[rows, place].add(jnp.where(mine, g, jnp.zeros((), g.dtype)))

    return parallel.shard(local, split.specs("BK", "BK"), split.spec("BS"))(index, g), None


_pick.defvjp(lambda split, size, a, index: (_pick(split, size, a, index), index), _pick_bwd)
