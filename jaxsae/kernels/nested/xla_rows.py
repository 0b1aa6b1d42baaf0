"""Nested residuals for CPUs: rows of the batch in blocks, whose dictionary rows stay in a core's cache for all levels.

With A the dictionary rows that a row of the batch names, [K, E], and M its values where level r uses them, [R, K], the
residuals are e0 - M A.  Backward, the cotangents of e_r and of all later residuals add up to G_r, and

    d v_j = -G_l(j) . A_j        d W[i_j] -= v_j G_l(j)        d e0 = G_0

The residuals are computed again there, from the same A, so that only [B, R, E] of cotangents is ever written.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxsae.kernels.sparse_decode import xla as sparse

#: Most levels.  With 32 entries a row six took as long as the walk (B 1024, E 576, S 8192, two cores), with 128 ten.
MOST_LEVELS = 8


def nested(values, indices, level, W, e0, main, levels: int, in_order: bool = False) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.nested.api.nested`."""
    return _nested(levels, values, indices, level, W, e0, main)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _nested(levels, values, indices, level, W, e0, main):
    def block(A, values, level, e0, main):
        e = _residuals(levels, values, A, level, e0)
        return jnp.sum(e * e, axis=-1), jnp.take_along_axis(e, main[:, None, None], axis=1)[:, 0]

    return sparse.with_rows(block, W, indices, values, level, e0, main)


def _fwd(levels, *args):
    return _nested(levels, *args), args


def _bwd(levels, args, cotangents):
    values, indices, level, W, e0, main = args

    def block(A, values, level, e0, main, g_sse, g_main):
        G = 2 * g_sse[:, :, None] * _residuals(levels, values, A, level, e0)
        G = G + jnp.where((main[:, None] == jnp.arange(levels)[None])[:, :, None], g_main[:, None], 0.0)
        G = jnp.flip(jnp.cumsum(jnp.flip(G, 1), axis=1), 1)
        products = jnp.einsum("bke,bre->bkr", A, G)
        own = jnp.take_along_axis(products, jnp.minimum(level, levels - 1)[:, :, None], axis=2)[:, :, 0]
        return jnp.where(level < levels, -own, 0.0), G

    d_values, G = sparse.with_rows(block, W, indices, values, level, e0, main, *cotangents)
    used = jnp.where(level < levels, values.astype(jnp.float32), 0.0)
    row = jnp.arange(len(values))[:, None] * levels + jnp.minimum(level, levels - 1)
    dW = sparse.entry_sum(-used, indices, row, G.reshape(-1, G.shape[2]), len(W))
    return d_values.astype(values.dtype), None, None, dW.astype(W.dtype), G[:, 0].astype(e0.dtype), None


_nested.defvjp(_fwd, _bwd)


def _residuals(levels, values, A, level, e0):
    """[b, R, E] from the dictionary rows A [b, K, E]."""
    used = jnp.where(level[:, None] <= jnp.arange(levels)[None, :, None], values.astype(jnp.float32)[:, None], 0.0)
    return e0.astype(jnp.float32)[:, None] - jnp.einsum("brk,bke->bre", used, A)
