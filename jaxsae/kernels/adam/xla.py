"""The op with one division and one root for each entry, in place of three and one, which a CPU feels.

The corrections of both moments go into the rate and into epsilon (Kingma & Ba 2015, the end of section 2).
"""

import jax.numpy as jnp

from jaxsae.kernels.adam.reference import TINY


def adam(W, mu, nu, g, lr, count, factor, b1, b2, eps, unit, turned):
    """See `jaxsae.kernels.adam.api.adam`."""
    if unit:
        along = jnp.sum(g * W, axis=-1) / jnp.maximum(jnp.sum(W * W, axis=-1), TINY**2)
        g = g - along[:, None] * W
    t, g = count.astype(jnp.float32), g * factor
    root = jnp.sqrt(1 - b2**t)
    mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * jnp.square(g)
    W = W - (lr * root / (1 - b1**t)) * mu / (jnp.sqrt(nu) + eps * root)
    if unit:
        W = W * (1 / jnp.maximum(jnp.linalg.norm(W, axis=-1), TINY))[:, None]
    return W, mu, nu
