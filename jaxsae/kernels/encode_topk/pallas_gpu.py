"""Encoder matmul and selection for GPUs: the product once through memory, its group maxima ranked in registers.

The product itself is XLA's.  [B, S] pre-activations are written and read once each; a sort of such rows, which is what
`lax.top_k` is on a GPU, takes many times as long as the product.
"""

import jax.numpy as jnp

from jaxsae.kernels import _gpu
from jaxsae.kernels._control import either, when
from jaxsae.kernels._ordered import total_order
from jaxsae.kernels.encode_topk import xla
from jaxsae.kernels.encode_topk.reference import no_second
from jaxsae.kernels.sparse_decode import few


def refuse(shape, dtype: str) -> str | None:
    """Why this way cannot serve a call, or None."""
    return _gpu.objection(dtype, shape["D"]) or _gpu.module("topk").refuse(shape, dtype)


def forward(x, W, b, b_pre, scale, dead, k, k_aux, signed):
    """Values and indices, see the api for shapes, and which entries of the second list are there."""
    pre = jnp.dot(x - b_pre[None].astype(x.dtype), W, preferred_element_type=jnp.float32) + b[None]
    score = (jnp.abs(pre) if signed else pre) * scale[None]
    index = _gpu.module("topk").ranked(total_order(score), k)[1]
    values = jnp.take_along_axis(pre, index, axis=1)
    if not k_aux:
        return values, index, *no_second(len(x), 0)
    among_dead = lambda pre, score, dead: xla.best_dead(pre, score, dead, k_aux)  # noqa: E731
    return values, index, *when(jnp.any(dead), among_dead, (pre, score, dead))


def backward(k, k_aux, signed, residuals, cotangents):
    """Gradients of x, W, b and b_pre, as `xla.backward`."""
    return xla.backward(k, k_aux, signed, residuals, cotangents, by_latent)


def by_latent(g, index, second, some, xc, size):
    """dW [D, S] and db [S] of both lists, as `xla.by_rank`."""

    sums = _gpu.module("sparse_grad")

    def main(g, index, xc, order, first, count, *_):
        return sums.sparse_grad(g, index, xc, size, order, first, count)

    def both(g, index, xc, order, first, count, g_aux, aux):
        return few.outer_sum(g_aux, aux, xc, size, main(g, index, xc, order, first, count))

    args = g, index, xc, *sums.segments(index, size)  # outside of the branches, where the decoder's sort is the same
    dW, db = main(*args) if second is None else either(some, both, main, (*args, *second))
    return dW.T, db
