"""Which entries are among the k largest, as a mask: for large k, for a k that is an array, for whole batches."""

import jax
import numpy as np

from jaxsae.errors import ConfigError, closest
from jaxsae.kernels._dispatch import Available, Implementation, check_countable, check_k, choose
from jaxsae.kernels.topk_mask import pallas_tpu, reference, xla

#: In order of preference.  The TPU kernel is asked for by name until a device's measured table prefers it.
IMPLEMENTATIONS: Available = {
    "xla": xla.cut,
    "pallas_tpu": Implementation(pallas_tpu.cut, ("tpu",), pallas_tpu.refuse),
    "reference": reference.cut,
}


def topk_mask(x: jax.Array, k: int | jax.Array, *, over: str = "row", implementation: str | None = None) -> jax.Array:
    """True at the k largest entries of each row, or of the whole array; exactly k of them, ties by lowest index.

    Nothing is sorted: the k-th largest value is found by bisection, a bit at a time, which costs the same for every k.

    Args:
        x: [B, S] f32, bf16 or f16.
        k: how many; an array [] or, by row, [B] is not checked: 0 gives none, more than there are gives all.
        over: "row", or "all" for the k largest of the B * S entries (BatchTopK), where the index is row-major.
        implementation: None (best here), "pallas_tpu", "xla" or "reference".

    Returns:
        [B, S] bool.

    Raises:
        ConfigError: k out of range, another dtype, another word than these two, 2^31 entries or more to choose from, or
            an implementation that cannot serve the call.

    Example:
        >>> import jax.numpy as jnp
        >>> topk_mask(jnp.array([[1.0, 3.0, 3.0], [0.0, 2.0, 3.0]]), 3, over="all").astype(int).tolist()
        [[0, 1, 1], [0, 0, 1]]
    """
    if over not in ("row", "all"):
        raise ConfigError(f"topk_mask: over must be 'row' or 'all', found {over!r}{closest(over, ('row', 'all'))}")
    xla.check_dtype("topk_mask", x.dtype)
    rows = x if over == "row" else x.reshape(1, -1)
    if isinstance(k, int | np.integer):
        check_k("topk_mask", int(k), rows.shape[1])
    shape = {"B": rows.shape[0], "S": rows.shape[1]}
    check_countable("topk_mask", {"S": rows.shape[1]})
    least, last = choose("topk_mask", implementation, IMPLEMENTATIONS, shape, x.dtype)(rows, k)
    return xla.above(rows, least, last).reshape(x.shape)
