"""Decoding of sparse codes, plainest form: the specification of the op."""

import jax
import jax.numpy as jnp


def sparse_decode(values: jax.Array, indices: jax.Array, W: jax.Array) -> jax.Array:
    """See `jaxsae.kernels.sparse_decode.api.sparse_decode`."""
    rows = W.astype(jnp.float32)[indices]  # in this order the gradient of W is summed in f32 and rounded once
    return jnp.einsum("bk,bke->be", values.astype(jnp.float32), rows)
