"""Adam with the gradient of sparse codes, plainest form: the specification of the op."""

import jax.numpy as jnp

from jaxsae.kernels.sparse_grad import reference


def moved(W, mu, nu, G, lr, count, b1, b2, eps):
    """One Adam step with gradient G, all f32."""
    t = count.astype(jnp.float32)
    mu = b1 * mu + (1 - b1) * G
    nu = b2 * nu + (1 - b2) * G * G
    W = W - lr * (mu / (1 - b1**t)) / (jnp.sqrt(nu / (1 - b2**t)) + eps)
    return W, mu, nu


def sparse_adam(W, mu, nu, values, indices, rows, lr, count, b1, b2, eps, transposed):
    """See `jaxsae.kernels.sparse_adam.api.sparse_adam`."""
    G = reference.sparse_grad(values, indices, rows, W.shape[1 if transposed else 0])[0]
    return moved(W, mu, nu, G.T if transposed else G, lr, count, b1, b2, eps)
