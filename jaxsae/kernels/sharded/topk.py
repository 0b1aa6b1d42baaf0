"""`topk` along latents that are spread over devices: local candidates, then a merge."""

from collections.abc import Callable

import jax

from jaxsae import parallel
from jaxsae.kernels.entries import pick
from jaxsae.kernels.sharded.axes import split_of
from jaxsae.kernels.sharded.merge import merge


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
