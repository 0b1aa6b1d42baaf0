"""Nested residuals as points on the walk of `path`, in order of level: one residual is alive at a time."""

import jax
import jax.numpy as jnp

from jaxsae.kernels.path.api import path


def nested(values, indices, level, W, e0, main, levels: int, in_order: bool = False) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.nested.api.nested`."""
    if not in_order:
        order = jnp.argsort(level, axis=1)
        values, indices, level = (jnp.take_along_axis(a, order, axis=1) for a in (values, indices, level))
    points = jnp.sum(level[:, None] <= jnp.arange(levels)[None, :, None], axis=2)
    sse, chosen = path(values, indices, W, e0, jnp.take_along_axis(points, main[:, None], axis=1)[:, 0])
    return jnp.take_along_axis(sse, points, axis=1), chosen
