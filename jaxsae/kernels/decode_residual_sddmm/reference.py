"""Residual and squared norm, plainest form: the specification of the op, differentiable by jax itself."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.kernels.sparse_decode import reference


def decode_residual_sddmm(
    values: jax.Array, indices: jax.Array, W: jax.Array, e0: jax.Array, second: Any = None
) -> tuple[jax.Array, jax.Array, Any]:
    """See `jaxsae.kernels.decode_residual_sddmm.api.decode_residual_sddmm`."""
    e = e0.astype(jnp.float32) - reference.sparse_decode(values, indices, W)
    rows = None if second is None else reference.sparse_decode(second[0], second[1], W)
    return jnp.sum(e**2, axis=-1), e, rows
