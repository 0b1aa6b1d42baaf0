"""`sparse_decode` on a mesh: each device decodes its own latents, and the parts are added."""

from collections.abc import Callable
from functools import partial

import jax

from jaxsae import parallel
from jaxsae.kernels.sharded.axes import Split, if_live, split_of
from jaxsae.kernels.sharded.sums import Owned


def sparse_decode(run: Callable, values, indices, W, live):
    """`run`, an implementation of the op, on the mesh in force; see `jaxsae.kernels.sparse_decode.api`."""
    split = split_of(len(values), W.shape[0])
    if split is None:
        return run(values, indices, W, live)
    return _decode(split, values, indices, W, live)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _decode(split, values, indices, W, live):
    return _forward(split, values, indices, W, live)


def _forward(split: Split, values, indices, W, live):
    def local(values, indices, W):
        own = Owned(values, indices, split.first(len(W)), len(W), split.latent)
        return split.sum_latents(own.decode(W))

    placed = parallel.shard(local, split.specs("BK", "BK", "SE"), split.spec("BE"))
    return if_live(live, placed, (values, indices, W))


def _fwd(split, values, indices, W, live):
    return _forward(split, values, indices, W, live), (values, indices, W, live)


def _bwd(split: Split, residuals, g):
    values, indices, W, live = residuals

    def local(values, indices, W, g):
        own = Owned(values, indices, split.first(len(W)), len(W), split.latent)
        dW = split.sum_rows(own.outer_sum(g, W.dtype)[0])
        return split.sum_latents(own.dots(g, W)), dW

    placed = parallel.shard(local, split.specs("BK", "BK", "SE", "BE"), split.specs("BK", "SE"))
    d_values, dW = if_live(live, placed, (values, indices, W, g))
    return d_values.astype(values.dtype), None, dW, None


_decode.defvjp(_fwd, _bwd)
