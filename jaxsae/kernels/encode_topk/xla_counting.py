"""Encoder matmul and selection for CPUs: pre-activations are read once for the maxima of groups, then by candidate.

The gradient of W is summed one latent a row and turned over in tiles, because a transposition of the whole matrix, or
an optimiser that reads it across, costs more than the sparse sums themselves.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxsae.kernels._control import when
from jaxsae.kernels._dispatch import Shape
from jaxsae.kernels.encode_topk import xla
from jaxsae.kernels.encode_topk.reference import no_second
from jaxsae.kernels.topk import xla_counting as counting
from jaxsae.kernels.topk.xla import group_maxima

#: Latents turned over at once in the gradient of W: their rows, read across, have to stay in the nearest cache.  Rows
#: whose width is a multiple of `CLASH` floats push each other out of it, so there they are fewer.
TILE, TILE_OF_CLASHING, CLASH = 32, 16, 512


def refuse(shape: Shape, dtype: str) -> str | None:
    """Why counting cannot serve a call, or is not worth it, or None; products are f32 whatever W is."""
    return counting.refuse(shape, "float32")


def forward(x, W, b, b_pre, scale, dead, k, k_aux, signed):
    """Values and indices, see the api for shapes, and which entries of the second list are there."""
    rows, size = len(x), W.shape[1]
    group = counting.group_for(size, k)
    grouped = lambda a: a.reshape(-1, size // group, group)  # noqa: E731
    scored = lambda v, s: (jnp.abs(v) if signed else v) * s  # noqa: E731
    product = jnp.dot(x - b_pre[None].astype(x.dtype), W, preferred_element_type=jnp.float32)
    pre = grouped(product) + grouped(b)
    best = counting.best_groups(group_maxima(scored(pre, grouped(scale))), k)
    candidates = jnp.take_along_axis(grouped(product), best[:, :, None], axis=1) + grouped(b)[0][best]  # [B, k, group]
    ranked = scored(candidates, grouped(scale)[0][best]).reshape(rows, k * group)
    at, index = counting.within_groups(ranked, best, k)
    values = jnp.take_along_axis(candidates.reshape(rows, k * group), at, axis=1)
    if not k_aux:
        return values, index, *no_second(rows, 0)

    def among_dead(product, b, scale, dead):
        pre = product + b[None]
        return xla.best_dead(pre, scored(pre, scale[None]), dead, k_aux)

    return values, index, *when(jnp.any(dead), among_dead, (product, b, scale, dead))


def backward(k, k_aux, signed, residuals, cotangents):
    """Gradients of x, W, b and b_pre, as `xla.backward`."""
    return xla.backward(k, k_aux, signed, residuals, cotangents, partial(xla.by_rank, turn=turned))


def turned(a: jax.Array) -> jax.Array:
    """The transpose [D, S] of [S, D], tile by tile."""
    size, depth = a.shape
    n = TILE if depth % CLASH else TILE_OF_CLASHING
    if size % n:
        return a.T

    def tile(i, out):
        part = jax.lax.dynamic_slice(a, (i * n, 0), (n, depth))
        return jax.lax.dynamic_update_slice(out, part.T, (0, i * n))

    return jax.lax.fori_loop(0, size // n, tile, jnp.zeros((depth, size), a.dtype))
