"""`encode_topk` on a mesh: every device ranks its own latents, the candidates are merged, the gradient stays home.

The lists are those of the implementation asked for; the gradient is summed in one way whichever that is.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae import parallel
from jaxsae.kernels._control import unless, when
from jaxsae.kernels._rows import by_rows
from jaxsae.kernels.sharded.axes import Split, owned, split_of
from jaxsae.kernels.sharded.merge import merge
from jaxsae.kernels.sharded.sums import Owned

#: Rows are encoded in tiles, so that a device never holds more pre-activations than this many bytes.
TILE_BYTES = 128 * 2**20


def encode_topk(run: Any, x, W, b, b_pre, scale, dead, k: int, k_aux: int, signed: bool):
    """`run`, an implementation of the op, on the mesh in force; see `jaxsae.kernels.encode_topk.api`."""
    split = split_of(len(x), W.shape[1])
    if split is None:
        return run(x, W, b, b_pre, scale, dead, k, k_aux, signed)
    scale = jnp.ones(W.shape[1]) if scale is None else scale
    return _encode(run, split, k, k_aux, signed, x, W, b, b_pre, scale, dead)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3, 4))
def _encode(run, split, k, k_aux, signed, x, W, b, b_pre, scale, dead):
    return _forward(run, split, k, k_aux, signed, x, W, b, b_pre, scale, dead)[:4]


def _forward(run: Any, split: Split, k: int, k_aux: int, signed: bool, *operands: jax.Array):
    def local(x, W, b, b_pre, scale, dead):
        size = W.shape[1]
        own = min(k, size), min(k_aux, size)
        tile = lambda rows: run.lists(rows, W, b, b_pre, scale, dead, *own, signed)  # noqa: E731
        values, index, *second = by_rows(tile, x, 4 * size, TILE_BYTES)
        if split.latent == 1:
            return values, index, *second
        first = split.first(size)
        score = lambda v, i: (jnp.abs(v) if signed else v) * scale[i]  # noqa: E731
        best = merge(score(values, index), (values, index + first), k, split.latent)
        if not k_aux:
            return *best, *second

        def merge_dead(aux_values, aux, there):
            rank = jnp.where(there, score(aux_values, aux), -jnp.inf)
            aux_values, aux = merge(rank, (aux_values, jnp.where(there, aux + first, -1)), k_aux, split.latent)
            return aux_values, jnp.maximum(aux, 0), aux >= 0  # so that no third array travels

        # Whether any latent is dead is the same question on every device, so all of them take the same branch.
        some = split.sum_latents(jnp.any(dead).astype(jnp.int32)) > 0
        return *best, *when(some, merge_dead, tuple(second))

    ins = split.specs("BD", "DS", "S", "D", "S", "S")
    return parallel.shard(local, ins, split.specs("BK", "BK", "BK", "BK", "BK"))(*operands)


def _fwd(run, split, k, k_aux, signed, x, W, b, b_pre, scale, dead):
    *out, there = _forward(run, split, k, k_aux, signed, x, W, b, b_pre, scale, dead)
    return tuple(out), (x, W, b_pre, there, out[1], out[3])


def _bwd(run, split: Split, k, k_aux: int, signed, residuals, cotangents):
    """As `encode_topk.xla.backward`: each device sums over the entries whose latents it holds."""

    def local(x, W, b_pre, there, index, aux, g, g_aux):
        size = W.shape[1]
        first, xc = split.first(size), x - b_pre[None].astype(x.dtype)
        main = Owned(g, index, first, size, split.latent)
        dW, db = main.outer_sum(xc, W.dtype)
        dx = main.decode(W.T)  # dropped by the compiler when x is data
        if k_aux:
            own = owned(aux, first, size)[0] & there
            second, some = Owned(jnp.where(own, g_aux, 0.0), aux, first, size, split.latent, dead=True), jnp.any(own)
            add = lambda dW, db, xc: second.outer_sum(xc, W.dtype, (dW, db))  # noqa: E731
            dW, db = unless(~some, (dW, db), add, (dW, db, xc))
            dx = dx + when(some, lambda W: second.decode(W.T), (W,))
        db = split.sum_rows(db)
        # Turned over as it is: a compiler that may move the cast to f32 ahead of it needs twice the memory.
        dW = jax.lax.optimization_barrier(split.sum_rows(dW).T)
        db_pre = -split.sum_latents(jnp.dot(W.astype(jnp.float32), db))
        return split.sum_latents(dx).astype(x.dtype), dW, db, db_pre

    x, W, b_pre, there, index, aux = residuals
    ins = split.specs("BD", "DS", "D", "BK", "BK", "BK", "BK", "BK")
    outs = split.specs("BD", "DS", "S", "D")
    operands = (x, W, b_pre, there, index, aux, cotangents[0], cotangents[2])
    dx, dW, db, db_pre = parallel.shard(local, ins, outs)(*operands)
    return dx, dW, db, db_pre.astype(b_pre.dtype), None, None


_encode.defvjp(_fwd, _bwd)
