"""The best entries of a matrix, plainest form: the specification of the op."""

import jax
import jax.numpy as jnp

from jaxsae.kernels.topk.api import topk


def keep_best(score: jax.Array, count: jax.Array) -> jax.Array:
    """See `jaxsae.kernels.keep_best.api.keep_best`."""
    flat = jnp.where(jnp.isnan(score), -jnp.inf, score).reshape(-1)
    place = jnp.zeros(flat.size, jnp.int32).at[jnp.argsort(-flat, stable=True)].set(jnp.arange(flat.size))
    return (place < count).reshape(score.shape)


def of_columns(score: jax.Array, count: jax.Array, most: int) -> jax.Array:
    """See `jaxsae.kernels.keep_best.api.keep_best_of_columns`."""
    score = jnp.where(score == 0, 0.0, jnp.where(jnp.isnan(score), -jnp.inf, score))  # topk ranks 0.0 above -0.0
    row = topk(score.T, most)[1]
    chosen = jnp.arange(most)[None] < count[:, None]
    return jnp.zeros(score.shape, bool).at[row, jnp.arange(score.shape[1])[:, None]].set(chosen)
