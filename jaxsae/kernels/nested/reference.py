"""Nested residuals, plainest form: the specification of the op, differentiable by jax itself."""

import jax
import jax.numpy as jnp


def nested(values, indices, level, W, e0, main, levels: int, in_order: bool = False) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.nested.api.nested`.  Holds [B, R, K] and [B, K, E]."""
    used = jnp.where(level[:, None] <= jnp.arange(levels)[None, :, None], values.astype(jnp.float32)[:, None], 0.0)
    residuals = e0.astype(jnp.float32)[:, None] - jnp.einsum("brk,bke->bre", used, W.astype(jnp.float32)[indices])
    chosen = jnp.take_along_axis(residuals, main[:, None, None], axis=1)[:, 0]
    return jnp.sum(residuals**2, axis=-1), chosen
