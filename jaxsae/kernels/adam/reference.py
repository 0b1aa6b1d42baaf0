"""One Adam step on rows that may have to keep norm 1, plainest form: the specification of the op."""

import jax.numpy as jnp

from jaxsae.kernels.sparse_adam.reference import moved

#: Least norm that a row is divided by.
TINY = 1e-12


def adam(W, mu, nu, g, lr, count, factor, b1, b2, eps, unit, turned):
    """See `jaxsae.kernels.adam.api.adam`."""
    if unit:
        g = g - jnp.sum(g * W, axis=-1, keepdims=True) / jnp.maximum(jnp.sum(W * W, -1, keepdims=True), TINY**2) * W
    W, mu, nu = moved(W, mu, nu, g * factor, lr, count, b1, b2, eps)
    if unit:
        W = W / jnp.maximum(jnp.linalg.norm(W, axis=-1, keepdims=True), TINY)
    return W, mu, nu
