"""The best entries of a matrix, plainest form: the specification of the op."""

import jax
import jax.numpy as jnp


def keep_best(score: jax.Array, count: jax.Array) -> jax.Array:
    """See `jaxsae.kernels.keep_best.api.keep_best`."""
    flat = jnp.where(jnp.isnan(score), -jnp.inf, score).reshape(-1)
    place = jnp.zeros(flat.size, jnp.int32).at[jnp.argsort(-flat, stable=True)].set(jnp.arange(flat.size))
    return (place < count).reshape(score.shape)
