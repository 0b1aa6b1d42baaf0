"""`sparse_decode` on a mesh: each device decodes its own latents, and the parts are added."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxsae import parallel
from jaxsae.kernels._control import either
from jaxsae.kernels.sharded.axes import Split, after, if_live
from jaxsae.kernels.sharded.sums import Owned


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def decode(split: Split, values, indices, W, live):
    """The op on the mesh in force, in XLA; see `jaxsae.kernels.sparse_decode.api`."""
    return _forward(split, values, indices, W, live)


def _forward(split: Split, values, indices, W, live, dead=False):
    def local(values, indices, W):
        own = Owned(values, indices, split.first(len(W)), len(W), split.latent, dead=dead)
        return split.sum_latents(own.decode(W))

    placed = parallel.shard(local, split.specs("BK", "BK", "SE"), split.spec("BE"))
    return if_live(live, placed, (values, indices, W))


def _fwd(split, values, indices, W, live):
    return _forward(split, values, indices, W, live), (values, indices, W, live)


def _bwd(split: Split, residuals, g):
    values, indices, W, live = residuals
    d_values, dW = if_live(live, _gradients(split), (values, indices, W, g))
    return d_values.astype(values.dtype), None, dW, None


def _gradients(split: Split) -> Callable:
    """(values, indices, W, g) -> gradients of values and W, placed."""

    def local(values, indices, W, g):
        own = Owned(values, indices, split.first(len(W)), len(W), split.latent)
        dW = split.sum_rows(own.outer_sum(g, W.dtype)[0])
        return split.sum_latents(after(own.dots(g, W), dW)), dW

    return parallel.shard(local, split.specs("BK", "BK", "SE", "BE"), split.specs("BK", "SE"))


decode.defvjp(_fwd, _bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def decode_both(split: Split, values, indices, W, second):
    """Decoded rows [B, E] of two lists on the mesh in force, with one gradient of W.

    Args:
        split: how they are spread.
        values, indices, W: of the first list.
        second: values, indices and `live` of the other, which costs nothing where `live` is False.
    """
    return _forward(split, values, indices, W, None), _forward(split, second[0], second[1], W, second[2], dead=True)


def _both_bwd(split: Split, residuals, cotangents):
    values, indices, W, (second_values, second_indices, live) = residuals

    def local(values, indices, W, g, second_values, second_indices, g_second):
        first, size = split.first(len(W)), len(W)
        own = Owned(values, indices, first, size, split.latent)
        other = Owned(second_values, second_indices, first, size, split.latent, dead=True)
        dW = split.sum_rows(other.outer_sum(g_second, W.dtype, own.outer_sum(g, W.dtype))[0])
        dots = split.sum_latents(after(own.dots(g, W), dW))
        return dots, dW, split.sum_latents(after(other.dots(g_second, W), dots))

    both = parallel.shard(local, split.specs("BK", "BK", "SE", "BE", "BK", "BK", "BE"), split.specs("BK", "SE", "BK"))

    def main(values, indices, W, g, second_values, *_):
        return *_gradients(split)(values, indices, W, g), jnp.zeros(second_values.shape)

    args = values, indices, W, cotangents[0], second_values, second_indices, cotangents[1]
    d_values, dW, d_second = either(live, both, main, args)
    return d_values.astype(values.dtype), None, dW, (d_second.astype(second_values.dtype), None, None)


def _both_fwd(split, values, indices, W, second):
    return decode_both(split, values, indices, W, second), (values, indices, W, second)


decode_both.defvjp(_both_fwd, _both_bwd)
