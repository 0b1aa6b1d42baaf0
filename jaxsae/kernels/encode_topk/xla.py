"""Encoder matmul and selection with a sparse backward pass: only the k + k_aux chosen entries carry gradient."""

import jax.numpy as jnp

from jaxsae.kernels._control import either, when
from jaxsae.kernels.encode_topk.reference import no_second, present
from jaxsae.kernels.sparse_decode import few
from jaxsae.kernels.sparse_decode import xla as sparse
from jaxsae.kernels.topk import xla as topk_xla


def forward(x, W, b, b_pre, scale, dead, k, k_aux, signed):
    """Values and indices, see the api for shapes, and which entries of the second list are there."""
    pre = jnp.dot(x - b_pre[None].astype(x.dtype), W, preferred_element_type=jnp.float32) + b[None]
    score = (jnp.abs(pre) if signed else pre) * scale[None]
    index = topk_xla.topk(score, k)[1]
    values = jnp.take_along_axis(pre, index, axis=1)
    if not k_aux:
        return values, index, *no_second(len(x), 0)
    among_dead = lambda pre, score, dead: best_dead(pre, score, dead, k_aux)  # noqa: E731
    return values, index, *when(jnp.any(dead), among_dead, (pre, score, dead))


def best_dead(pre, score, dead, k_aux):
    """Values and indices of the k_aux best-scored dead latents, 0 where fewer are dead, and where an entry is there.

    Few latents are dead as a rule, and a ranking of whole rows by a long list costs several times the product; so only
    the columns of the dead are ranked, unless they are too many.
    """
    size, most = len(dead), few.bound_for(k_aux, len(dead))

    def whole(pre, score, dead):
        best, aux = topk_xla.topk(jnp.where(dead[None], score, -jnp.inf), k_aux)
        return present(best, jnp.take_along_axis(pre, aux, axis=1), aux)

    def columns(pre, score, dead):
        column = jnp.nonzero(dead, size=most, fill_value=size)[0].astype(jnp.int32)
        taken = score.at[:, column].get(mode="fill", fill_value=-jnp.inf)
        best, at = topk_xla.topk(taken, k_aux)
        aux = jnp.minimum(column[at], size - 1)
        return present(best, jnp.take_along_axis(pre, aux, axis=1), aux)

    if most >= size:
        return whole(pre, score, dead)
    return either(jnp.sum(dead) > most, whole, columns, (pre, score, dead))


def backward(k, k_aux, signed, residuals, cotangents, weight_grad=None):
    """Gradients of x, W, b and b_pre.  d b_pre = -W d b: one matvec, where differentiating x - b_pre would gather.

    Args:
        k, k_aux, signed: as given to `forward`.
        residuals: (x, W, b_pre, there, index, aux); the entries of the second list that are not there take no gradient.
        cotangents: of the four results of `forward`.
        weight_grad: how dW and db are summed; None for `by_rank`.
    """
    x, W, b_pre, there, index, aux = residuals
    g_main, _, g_aux, _ = cotangents
    xc, some = x - b_pre[None].astype(x.dtype), jnp.any(there)
    second = (jnp.where(there, g_aux, 0.0), aux) if k_aux else None
    dW, db = (weight_grad or by_rank)(g_main, index, second, some, xc, W.shape[1])
    dx = sparse.forward(g_main, index, W.T)  # dropped by the compiler when x is data
    if second is not None:
        dx = dx + when(some, lambda g, i, w: few.forward(g, i, w.T), (*second, W))
    db_pre = -jnp.dot(W.astype(jnp.float32), db)
    return dx.astype(x.dtype), dW.astype(W.dtype), db, db_pre.astype(b_pre.dtype), None, None


def by_rank(g, index, second, some, xc, size, turn=jnp.transpose):
    """dW [D, S] and db [S] of both lists; the sum over the main list starts from that over the dead.

    So a step without any dead latent adds nothing.

    Args:
        g: [B, k] gradient of the values of the main list.
        index: [B, k].
        second: (gradients, indices) [B, k_aux] of the dead, or None.
        some: [] bool, whether the second list has any entry; if not, the gradients of `second` are 0.
        xc: [B, D] centred rows.
        size: S.
        turn: brings the sum over rows of latents, [S, D], to the layout of W.
    """
    start = None
    if second is not None:
        start = when(some, lambda g, i, xc: few.outer_sum(g, i, xc, size), (*second, xc))
    dW, db = sparse.outer_sum(g, index, xc, size, start)
    return turn(dW), db
