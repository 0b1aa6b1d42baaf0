"""The Adam step on a GPU, in place: every row is read once and written once, with all that unit rows need in between.

XLA makes several passes of it, because the norms of rows stand between one elementwise part and the next.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxsae.kernels import _gpu_rows as rows_of
from jaxsae.kernels._gpu import THREADS
from jaxsae.kernels.adam.api import ROWS_ACROSS, piece
from jaxsae.kernels.adam.reference import TINY


def adam(W, mu, nu, g, lr, count, factor, b1, b2, eps, unit, turned):
    """See `jaxsae.kernels.adam.api.adam`."""
    t = count.astype(jnp.float32)
    scalars = jnp.stack([jnp.float32(lr), 1 / (1 - b1**t), 1 / (1 - b2**t), jnp.float32(factor)])
    rule = functools.partial(_moved, b1=b1, b2=b2, eps=eps)
    if turned:
        body, programs, g = functools.partial(_across, rule), W.size // (ROWS_ACROSS * THREADS), g.T
        arrays = W, mu, nu
    else:
        cut = (lambda a: a) if unit else (lambda a: a.reshape(-1, piece(a.size)))
        *arrays, g = map(cut, (W, mu, nu, g))
        body, programs = functools.partial(_along, rule, unit), len(g)
    state = [jax.new_ref(a) for a in arrays]
    rows_of.kernel(body, (), programs, scalars, g, *state)
    return tuple(ref[...].reshape(W.shape) for ref in state)


def _moved(w, g, mu, nu, scalars, b1, b2, eps):
    """Adam for some entries: the new w, mu, nu."""
    lr, unbias1, unbias2, factor = (scalars[i] for i in range(4))
    g = factor * g
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g * g
    return w - lr * (mu * unbias1) / (jnp.sqrt(nu * unbias2) + eps), mu, nu


def _along(rule, unit, s, scalars, g, W, mu, nu):
    """One row of everything."""
    width = W.shape[1]
    w, g = rows_of.load(W, s), rows_of.load(g, s)
    if unit:
        along = rows_of.dot(g, w, width) / jnp.maximum(rows_of.dot(w, w, width), TINY**2)
        g = rows_of.add(g, -along, w)
    new = [rule(*parts, scalars) for parts in zip(w, g, rows_of.load(mu, s), rows_of.load(nu, s), strict=True)]
    w, m, v = (list(parts) for parts in zip(*new, strict=True))
    rows_of.store(mu, s, m)
    rows_of.store(nu, s, v)
    if unit:
        norm = jnp.maximum(jnp.sqrt(rows_of.dot(w, w, width)), TINY)
        w = [a / norm for a in w]
    rows_of.store(W, s, w)


def _across(rule, program, scalars, g, W, mu, nu):
    """A few rows of W, a thread per column; of g [columns, rows] each thread reads neighbours."""
    blocks = W.shape[0] // ROWS_ACROSS
    first = pl.ds(program // blocks * THREADS, THREADS)
    rows = [program % blocks * ROWS_ACROSS + u for u in range(ROWS_ACROSS)]
    line = rows_of.layout(THREADS, 1)
    read = lambda table, *at: plgpu.load(table.at[at], layout=line, optimized=False)  # noqa: E731
    grads = [read(g, first, d) for d in rows]
    for d, grad in zip(rows, grads, strict=True):
        new = rule(read(W, d, first), grad, read(mu, d, first), read(nu, d, first), scalars)
        for table, part in zip((W, mu, nu), new, strict=True):
            table[d, first] = part
