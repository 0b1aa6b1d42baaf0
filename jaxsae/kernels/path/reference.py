"""The residual walk, plainest form: the specification of the op, differentiable by jax itself."""

import jax
import jax.numpy as jnp


def path(
    values: jax.Array, indices: jax.Array, W: jax.Array, e0: jax.Array, main: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.path.api.path`.  Holds all residuals at once: [B, K+1, E]."""
    atoms = W.astype(jnp.float32)[indices]  # in this order the gradient of W is summed in f32 and rounded once
    steps = values.astype(jnp.float32)[:, :, None] * atoms
    start = e0.astype(jnp.float32)[:, None]
    residuals = jnp.concatenate([start, start - jnp.cumsum(steps, axis=1)], axis=1)
    chosen = jnp.take_along_axis(residuals, main[:, None, None], axis=1)[:, 0]
    return jnp.sum(residuals**2, axis=-1), chosen
