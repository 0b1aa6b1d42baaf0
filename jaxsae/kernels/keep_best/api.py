"""The best entries of a whole matrix at once: one global threshold, ties included exactly."""

from functools import partial

import jax

from jaxsae.kernels._dispatch import Available, Implementation, check_countable, check_k, choose
from jaxsae.kernels.keep_best import reference, xla
from jaxsae.kernels.sharded import keep_best as sharded
from jaxsae.kernels.topk_mask.xla import check_dtype

IMPLEMENTATIONS: Available = {"xla": xla.keep_best, "reference": reference.keep_best}


def _whole_only(shape, dtype: str) -> str:
    return "sorts the whole matrix, which the mesh in force spreads over several devices"


#: Where a device holds a part of the matrix.
_IN_PARTS: Available = {**IMPLEMENTATIONS, "reference": Implementation(reference.keep_best, refuse=_whole_only)}


def keep_best(
    score: jax.Array, count: jax.Array, *, latents: bool = False, implementation: str | None = None
) -> jax.Array:
    """Which entries are among the `count` largest of all rows together; ties go to the lower row, then column.

    The selection of BatchTopK: on a mesh the same entries as on one device, whatever its shape, since thresholds are
    found by counting, and counts are integers.

    Args:
        score: [B, C] f32, bf16 or f16; NaN ranks below everything, -0.0 as 0.0.
        count: [] int32, how many; 0 or less keeps none.  Count times the number of devices below 2^31, and so the
            entries of all devices that equal the last one kept.
        latents: the columns are all latents, so a mesh spreads them over its axis of that name; otherwise they are a
            list of candidates, whole on every device.
        implementation: None (best here), "xla" or "reference".

    Returns:
        [B, C] bool.

    Raises:
        ConfigError: another dtype, 2^31 entries or more on a device, or an implementation that cannot serve the call.

    Example:
        >>> import jax.numpy as jnp
        >>> keep_best(jnp.array([[1.0, 5.0], [5.0, 5.0]]), jnp.array(2)).tolist()
        [[False, True], [True, False]]
    """
    check_dtype("keep_best", score.dtype)
    split = sharded.spread(score, latents)
    shape = {"B": len(score) // (split.data if split else 1), "C": score.shape[1] // (split.latent if split else 1)}
    check_countable("keep_best", shape)
    run = choose("keep_best", implementation, _IN_PARTS if split else IMPLEMENTATIONS, shape, score.dtype)
    return sharded.keep_best(run, jax.lax.stop_gradient(score), count, latents)


def keep_best_of_columns(score: jax.Array, count: jax.Array, most: int) -> jax.Array:
    """Which entries are among the `count` largest of their column; ties go to the lower row.

    On one device a column is ranked; on a mesh whose devices hold parts of it its threshold is found by counting, which
    keeps the same entries.

    Args:
        score: [B, S] f32, bf16 or f16; NaN ranks below everything.
        count: [S] int32, how many; 0 or less keeps none.
        most: a number, at most B, that no count exceeds.

    Returns:
        [B, S] bool.

    Raises:
        ConfigError: `most` out of range or another dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> keep_best_of_columns(jnp.array([[1.0, 5.0], [3.0, 5.0]]), jnp.array([1, 1]), 1).tolist()
        [[False, True], [True, False]]
    """
    check_dtype("keep_best_of_columns", score.dtype)
    check_k("keep_best_of_columns", most, len(score))
    ranked = partial(reference.of_columns, most=most)
    return sharded.keep_best_of_columns(ranked, jax.lax.stop_gradient(score), count)
