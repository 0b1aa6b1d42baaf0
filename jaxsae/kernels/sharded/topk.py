"""`topk` along latents that are spread over devices: local candidates, then a merge."""

from collections.abc import Callable

import jax

from jaxsae import parallel
from jaxsae.kernels.entries import pick
from jaxsae.kernels.sharded.axes import split_of
from jaxsae.kernels.sharded.merge import merge


def local_shape(rows: int, latents: int, k: int) -> dict[str, int]:
    """What a device ranks: its part of the rows and of the latents, and as many of them as there can be."""
    split = split_of(rows, latents)
    if split is not None:
        rows, latents = rows // split.data, latents // split.latent
    return {"B": rows, "S": latents, "K": min(k, latents)}


def topk(run: Callable, x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`run`, an implementation of the op, on the mesh in force; see `jaxsae.kernels.topk.api`."""
    split = split_of(*x.shape) if x.ndim == 2 else None
    if split is None:
        return run(x, k)

    def local(x):
        size = x.shape[1]
        score, index = run(x, min(k, size))
        if split.latent == 1:
            return index
        return merge(score, (index + split.first(size),), k, split.latent)[0]

    index = parallel.shard(local, (split.spec("BS"),), split.spec("BK"))(jax.lax.stop_gradient(x))
    return pick(x, index), index
