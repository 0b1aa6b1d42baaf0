"""`keep_best` where rows and latents are spread over devices: counts are added, nothing else travels."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxsae import parallel
from jaxsae.kernels.keep_best import xla
from jaxsae.kernels.sharded.axes import Split, split_of


def spread(score: jax.Array, latents: bool) -> Split | None:
    """How the matrix is spread over the mesh in force, or None where every device holds the whole."""
    split = split_of(len(score), score.shape[1] if latents else 1)
    return None if split is None or split.data * split.latent == 1 else split


def keep_best(run: Callable, score: jax.Array, count: jax.Array, latents: bool = False) -> jax.Array:
    """`run` on the mesh in force, see `jaxsae.kernels.keep_best.api`; where that spreads, one that adds up counts."""
    split = spread(score, latents)
    if split is None:
        return run(score, count)

    def local(score: jax.Array, count: jax.Array) -> jax.Array:
        total = lambda n: split.sum_rows(split.sum_latents(n))  # noqa: E731
        before = partial(_before, "data") if split.data > 1 else jnp.zeros_like
        columns = _left_of if split.latent > 1 else lambda n: (n, jnp.zeros_like(n))
        return run(score, count, total, before, columns)

    letters = "BS" if latents else "BC"
    return parallel.shard(local, (split.spec(letters), split.spec("")), split.spec(letters))(score, count)


def keep_best_of_columns(run: Callable, score: jax.Array, count: jax.Array) -> jax.Array:
    """The same of columns: whole ones are ranked where they lie, parts of columns are counted."""
    split = split_of(*score.shape)
    if split is None or split.data * split.latent == 1:
        return run(score, count)

    def local(score: jax.Array, count: jax.Array) -> jax.Array:
        if split.data == 1:
            return run(score, count)
        return xla.of_columns(score, count, split.sum_rows, partial(_before, "data"))

    return parallel.shard(local, split.specs("BS", "S"), split.spec("BS"))(score, count)


def _before(axis: str, n: jax.Array) -> jax.Array:
    """Sum of `n` over the devices with lower parts along an axis, inside `shard`."""
    counts = jax.lax.all_gather(n, axis)
    lower = jnp.arange(len(counts)) < jax.lax.axis_index(axis)
    return jnp.sum(jnp.where(lower.reshape(-1, *[1] * n.ndim), counts, 0), axis=0)


def _left_of(n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Counts per row over all devices of the latents, and over those with lower latents."""
    return jax.lax.psum(n, "latent"), _before("latent", n)
