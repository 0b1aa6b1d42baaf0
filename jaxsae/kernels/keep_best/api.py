"""The best entries of a whole matrix at once: one global threshold, ties included exactly."""

from collections.abc import Callable

import jax

from jaxsae.kernels._dispatch import choose
from jaxsae.kernels.keep_best import reference, xla
from jaxsae.kernels.sharded import keep_best as sharded

IMPLEMENTATIONS: dict[str, Callable] = {"xla": xla.keep_best, "reference": reference.keep_best}


def keep_best(score: jax.Array, count: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Which entries are among the `count` largest of all rows together; ties go to the lower row, then column.

    The selection of BatchTopK: on a mesh the same entries as on one device, whatever its shape, since thresholds are
    found by counting, and counts are integers.

    Args:
        score: [B, C] f32; NaN ranks below everything, -0.0 as 0.0.
        count: [] int32, how many; 0 or less keeps none.  B * C and count times the number of devices below 2^31.
        implementation: None (best here), "xla" or "reference".

    Returns:
        [B, C] bool.

    Example:
        >>> import jax.numpy as jnp
        >>> keep_best(jnp.array([[1.0, 5.0], [5.0, 5.0]]), jnp.array(2)).tolist()
        [[False, True], [True, False]]
    """
    run = choose("keep_best", implementation, IMPLEMENTATIONS)
    return sharded.keep_best(run, jax.lax.stop_gradient(score), count)
