"""Encoder matmul and selection for CPUs: what a slab of latents gives is biased, scored and reduced while in cache.

The plain form writes [B, S] pre-activations and reads them three more times; here each slab of the product leaves only
itself and the maxima of its groups.  The gradient of W is summed one latent a row and turned over in tiles, because a
transposition of the whole matrix, or an optimiser that reads it across, costs more than the sparse sums themselves.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxsae.kernels._control import when
from jaxsae.kernels.encode_topk import xla
from jaxsae.kernels.topk import xla as topk_xla
from jaxsae.kernels.topk.xla import GROUP

#: Most latents of a slab: with 2,048 rows its product is 8 MB, which a shared cache holds.
SLAB = 1024

#: Latents turned over at once in the gradient of W.
TILE = 256


def width(size: int, most: int = SLAB) -> int:
    """The widest slab that divides `size`, a multiple of 128 (narrower ones cost the product its speed); 0 for none."""
    return next((n for n in range(min(most, size) // 128 * 128, 0, -128) if size % n == 0), 0)


def forward(x, W, b, b_pre, scale, dead, k, k_aux, signed):
    """Values and indices; see the api for shapes."""
    rows, size = len(x), W.shape[1]
    n = width(size)
    if not n or not topk_xla.can_group(size, k):
        return xla.forward(x, W, b, b_pre, scale, dead, k, k_aux, signed)
    xc, scored = x - b_pre[None].astype(x.dtype), lambda v, s: (jnp.abs(v) if signed else v) * s

    def slab(_, start):
        part = jax.lax.dynamic_slice(W, (0, start), (len(W), n))
        b_part, s_part = (jax.lax.dynamic_slice(a, (start,), (n,)) for a in (b, scale))
        pre = jnp.dot(xc, part, preferred_element_type=jnp.float32) + b_part[None]
        score = scored(pre, s_part[None])
        return None, (pre, topk_xla.group_maxima(score.reshape(rows, n // GROUP, GROUP)))

    pre, maxima = jax.lax.scan(slab, None, jnp.arange(0, size, n))[1]  # [slabs, B, n], [slabs, B, groups]
    best = topk_xla.best_groups(maxima.transpose(1, 0, 2).reshape(rows, size // GROUP), k)
    grouped = pre.reshape(size // n, rows, n // GROUP, GROUP)
    per_slab = n // GROUP
    candidates = grouped[best // per_slab, jnp.arange(rows)[:, None], best % per_slab]  # [B, k, GROUP]
    ranked = scored(candidates, scale.reshape(-1, GROUP)[best]).reshape(rows, k * GROUP)
    at, index = topk_xla.within_groups(ranked, best, k)
    values = jnp.take_along_axis(candidates.reshape(rows, k * GROUP), at, axis=1)
    if not k_aux:
        return values, index, jnp.zeros((rows, 0), pre.dtype), jnp.zeros((rows, 0), jnp.int32)

    def among_dead(pre, scale, dead):
        pre = pre.transpose(1, 0, 2).reshape(rows, size)
        return xla.best_dead(pre, scored(pre, scale[None]), dead, k_aux)

    return values, index, *when(jnp.any(dead), among_dead, (pre, scale, dead))


def backward(k, k_aux, signed, residuals, cotangents):
    """Gradients of x, W, b and b_pre, as `xla.backward`."""
    return xla.backward(k, k_aux, signed, residuals, cotangents, partial(xla.by_rank, turn=turned))


def turned(a: jax.Array) -> jax.Array:
    """The transpose [D, S] of [S, D], tile by tile."""
    size, depth = a.shape
    n = width(size, TILE)
    if not n:
        return a.T

    def tile(i, out):
        part = jax.lax.dynamic_slice(a, (i * n, 0), (n, depth))
        return jax.lax.dynamic_update_slice(out, part.T, (0, i * n))

    return jax.lax.fori_loop(0, size // n, tile, jnp.zeros((depth, size), a.dtype))
