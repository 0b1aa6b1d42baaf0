"""The op in XLA: a pass over the rows for the residual, and one for the products in the backward pass."""

import jax
import jax.numpy as jnp

from jaxsae.kernels.sparse_decode import xla

gradients = xla.gradients


def residual(values: jax.Array, indices: jax.Array, W: jax.Array, e0: jax.Array) -> jax.Array:
    """e0 - sum_j values_j W[i_j]: [B, E] f32."""
    return e0.astype(jnp.float32) - xla.forward(values, indices, W)


def residual_and_dots(values: jax.Array, indices: jax.Array, W: jax.Array, e0: jax.Array) -> tuple[jax.Array, None]:
    """The residual, and nothing: the products would cost a second pass now, and the backward pass needs only one."""
    return residual(values, indices, W, e0), None
