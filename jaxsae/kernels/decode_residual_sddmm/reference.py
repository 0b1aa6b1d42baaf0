"""Residual and squared norm, plainest form: the specification of the op, differentiable by jax itself."""

import jax
import jax.numpy as jnp

from jaxsae.kernels.sparse_decode import reference


def decode_residual_sddmm(
    values: jax.Array, indices: jax.Array, W: jax.Array, e0: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.decode_residual_sddmm.api.decode_residual_sddmm`."""
    e = e0.astype(jnp.float32) - reference.sparse_decode(values, indices, W)
    return jnp.sum(e**2, axis=-1), e
