"""The threshold of the k largest, plainest form: a stable sort."""

import jax
import jax.numpy as jnp

from jaxsae.kernels._ordered import total_order


def cut(x: jax.Array, k: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the k largest of each row end: see `jaxsae.kernels.topk_mask.xla.cut`."""
    index = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape)
    key, index = jax.lax.sort((~total_order(x), index), num_keys=2)
    k = jnp.broadcast_to(jnp.asarray(k, jnp.int32), (len(x),))
    at = jnp.clip(k - 1, 0, x.shape[1] - 1)[:, None]
    least, last = ~jnp.take_along_axis(key, at, axis=1)[:, 0], jnp.take_along_axis(index, at, axis=1)[:, 0]
    nothing = k <= 0
    return jnp.where(nothing, jnp.iinfo(jnp.int32).max, least), jnp.where(nothing, -1, last)
