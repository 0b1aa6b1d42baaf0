"""Row gradients from sparse codes, plainest form: the specification of the op."""

import jax
import jax.numpy as jnp


def sparse_grad(values: jax.Array, indices: jax.Array, rows: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.sparse_grad.api.sparse_grad`."""
    values = values.astype(jnp.float32)
    outer = values[:, :, None] * rows.astype(jnp.float32)[:, None, :]
    dW = jnp.zeros((size, rows.shape[1]), jnp.float32).at[indices].add(outer)
    return dW, jnp.zeros(size, jnp.float32).at[indices].add(values)
