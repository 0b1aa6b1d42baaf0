"""Arrays that are spread over several processes, brought whole into each process's memory."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.typing import PyTree

#: Bytes that are whole on every device at a time.
PIECE = 1 << 28


def to_host(tree: PyTree) -> PyTree:
    """The tree with every array that this process holds only a part of in place of numpy's own, whole.

    Pieces of at most `PIECE` bytes become whole on the devices one after another, so that an array larger than a
    device's memory passes through.  Arrays that are here already stay as they are.  All processes have to call it.

    Example:
        >>> to_host({"w": np.ones(2)})["w"].shape
        (2,)
    """
    return jax.tree.map(_one, tree)


def _one(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
    out = np.empty(x.shape, x.dtype)
    axis = int(np.argmax(x.shape))
    rows = max(1, PIECE // max(1, math.prod(x.shape) // x.shape[axis] * x.dtype.itemsize))
    for start in range(0, x.shape[axis], rows):
        part = (slice(None),) * axis + (slice(start, min(start + rows, x.shape[axis])),)
        piece = jax.jit(lambda a, part=part: a[part], out_shardings=NamedSharding(x.sharding.mesh, P()))(x)  # type: ignore[attr-defined]
        out[part] = np.asarray(piece.addressable_data(0))
    return out
