"""Encoder matmul and selection with a sparse backward pass: only the k + k_aux chosen entries carry gradient."""

import jax.numpy as jnp

from jaxsae.kernels._control import when
from jaxsae.kernels.sparse_decode import xla as sparse
from jaxsae.kernels.topk import xla as topk_xla


def forward(x, W, b, b_pre, scale, dead, k, k_aux, signed):
    """Values and indices; see the api for shapes."""
    pre = jnp.dot(x - b_pre[None].astype(x.dtype), W, preferred_element_type=jnp.float32) + b[None]
    score = (jnp.abs(pre) if signed else pre) * scale[None]
    index = topk_xla.topk(score, k)[1]
    values = jnp.take_along_axis(pre, index, axis=1)
    if not k_aux:
        return values, index, jnp.zeros((len(x), 0), pre.dtype), jnp.zeros((len(x), 0), jnp.int32)
    among_dead = lambda pre, score, dead: best_dead(pre, score, dead, k_aux)  # noqa: E731
    return values, index, *when(jnp.any(dead), among_dead, (pre, score, dead))


def best_dead(pre, score, dead, k_aux):
    """Values and indices of the k_aux best-scored dead latents; value 0 where fewer are dead."""
    aux = topk_xla.topk(jnp.where(dead[None], score, -jnp.inf), k_aux)[1]
    return jnp.where(dead[aux], jnp.take_along_axis(pre, aux, axis=1), 0.0), aux


def backward(k, k_aux, signed, residuals, cotangents, turn=jnp.transpose):
    """Gradients of x, W, b and b_pre.  d b_pre = -W d b: one matvec, where differentiating x - b_pre would gather.

    `turn` brings the sum over rows of latents, [S, D], to the layout of W.
    """
    x, W, b_pre, dead, index, aux = residuals
    g_main, _, g_aux, _ = cotangents
    xc, size, start = x - b_pre[None].astype(x.dtype), W.shape[1], None
    if k_aux:
        # The sum over the main list starts from that over the dead, so that a step without any adds nothing.
        g_aux = jnp.where(dead[aux], g_aux, 0.0)
        start = when(jnp.any(dead), lambda g, i, xc: sparse.outer_sum(g, i, xc, size), (g_aux, aux, xc))
    dW, db = sparse.outer_sum(g_main, index, xc, size, start)
    dx = sparse.forward(g_main, index, W.T)  # dropped by the compiler when x is data
    if k_aux:
        dx = dx + when(jnp.any(dead), lambda g, i, w: sparse.forward(g, i, w.T), (g_aux, aux, W))
    db_pre = -jnp.dot(W.astype(jnp.float32), db)
    return dx.astype(x.dtype), turn(dW).astype(W.dtype), db, db_pre.astype(b_pre.dtype), None, None
