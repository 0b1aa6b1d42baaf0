"""Top-k along the last axis, plainest form: the specification of the op."""

import jax
import jax.numpy as jnp


def topk(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.topk.api.topk`."""
    # The values are read back by index: were only the values of `top_k` used, the CPU compiler of jax 0.7 to 0.10 would
    # choose a full sort, thirty times slower; and a barrier around the pair aborts it when S is sharded.
    index = jax.lax.top_k(x, k)[1]
    return jnp.take_along_axis(x, index, axis=-1), index
