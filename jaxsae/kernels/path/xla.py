"""The residual walk as a scan over the K entries: one residual is alive at a time, forward and backward.

The walk is reversible, e_{j-1} = e_j + v_j W[i_j], so the backward pass starts from the last residual and rebuilds the
others instead of storing them: memory is O(B E + B K + S E), whatever K is.
"""

import jax
import jax.numpy as jnp


def forward(values, indices, W, e0, main):
    """(sse [B, K+1], e_main [B, E], e_K [B, E]), all f32."""

    def walk(carry, entry):
        e, chosen = carry
        value, index, j = entry
        e = e - value[:, None] * W[index].astype(jnp.float32)
        return (e, jnp.where((main == j)[:, None], e, chosen)), jnp.sum(e * e, axis=-1)

    e0 = e0.astype(jnp.float32)
    (last, chosen), sse = jax.lax.scan(walk, (e0, e0), _entries(values, indices))
    return jnp.concatenate([jnp.sum(e0 * e0, axis=-1)[None], sse]).T, chosen, last


def backward(residuals, cotangents):
    """Gradients of values, W and e0.

    The sum G_j of the cotangents of e_j and of all later residuals grows on the way back; then
    d v_j = -G_j . W[i_j],  d W[i_j] -= v_j G_j  and  d e0 = G_0.
    """
    values, indices, W, main, last = residuals
    g_sse, g_chosen = cotangents

    def gather_cotangents(G, e, g, j):
        return G + 2 * g[:, None] * e + jnp.where((main == j)[:, None], g_chosen, 0.0)

    def walk_back(carry, entry):
        e, G, dW = carry
        (value, index, j), g = entry
        G = gather_cotangents(G, e, g, j)
        atom = W[index].astype(jnp.float32)
        dW = dW.at[index].add(-value[:, None] * G)
        # What has become infinite cannot be walked back, nor need it: G is infinite from here on, as it should be.
        e = jnp.where(jnp.isinf(e), e, e + value[:, None] * atom)
        return (e, G, dW), -jnp.sum(G * atom, axis=-1)

    start = last, jnp.zeros_like(last), jnp.zeros(W.shape, jnp.float32)
    entries = _entries(values, indices), g_sse.T[1:]
    (e0, G, dW), d_values = jax.lax.scan(walk_back, start, entries, reverse=True)
    return d_values.T, dW, gather_cotangents(G, e0, g_sse[:, 0], 0)


def _entries(values, indices):
    """What a scan walks over: value [B], index [B] and number 1..K of each entry."""
    return values.astype(jnp.float32).T, indices.T, jnp.arange(1, values.shape[1] + 1)
