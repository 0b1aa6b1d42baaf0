"""`keep_best` over rows that are spread over devices: counts are added, nothing else travels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsae import parallel
from jaxsae.kernels.keep_best import xla
from jaxsae.kernels.sharded.axes import Split, split_of


def keep_best(run: Callable, score: jax.Array, count: jax.Array) -> jax.Array:
    """`run`, an implementation of the op, on the mesh in force; see `jaxsae.kernels.keep_best.api`.

    Columns are whole on every device: a list of candidates, or (as they are few) all latents.
    """
    split = split_of(len(score), 1)
    if split is None or split.data == 1:
        return run(score, count)
    rows = Split(split.data, 1)

    def local(score, count):
        return xla.keep_best(score, count, rows.sum_rows, _before)

    return parallel.shard(local, (rows.spec("BC"), rows.spec("")), rows.spec("BC"))(score, count)


def _before(n: jax.Array) -> jax.Array:
    """Sum of `n` over the devices with lower rows, inside `shard`."""
    counts = jax.lax.all_gather(n, "data")
    return jnp.sum(jnp.where(jnp.arange(len(counts)) < jax.lax.axis_index("data"), counts, 0))
