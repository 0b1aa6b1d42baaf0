"""Arrays that are spread over several processes, brought whole into each process's memory."""

import math
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.parallel.processes import index
from jaxsae.typing import PyTree

#: Bytes that are whole on every device at a time.
PIECE = 1 << 28
#: Where Linux tells how much memory a container may use, version 2 and 1 of control groups.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_bytes() -> int | None:
    """Memory of this machine, or what its container may use of it; None where the system does not tell.

    Example:
        >>> (machine_bytes() or 1) > 0
        True
    """
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError, AttributeError):  # not a POSIX system
        return None
    for file in map(pathlib.Path, _LIMITS):
        text = file.read_text().strip() if file.is_file() else ""
        found += [int(text)] if text.isdigit() else []
    return min(found)


def to_host(tree: PyTree, first_only: bool = False) -> PyTree:
    """The tree with every array that this process holds only a part of in place of numpy's own, whole.

    Pieces of at most `PIECE` bytes become whole on the devices one after another, so that an array larger than a
    device's memory passes through.  Arrays that are here already stay as they are.  All processes have to call it.

    Args:
        tree: arrays.
        first_only: only process 0 takes them into its memory; on the others they stay spread.

    Example:
        >>> to_host({"w": np.ones(2)})["w"].shape
        (2,)
    """
    keep = not first_only or index() == 0
    return jax.tree.map(lambda x: _one(x, keep), tree)


def _one(x: Any, keep: bool) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_one(jax.random.key_data(x), keep), impl=jax.random.key_impl(x))
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0)) if keep else x
    return in_pieces(x, keep)


def in_pieces(x: jax.Array, keep: bool = True) -> np.ndarray | jax.Array:
    """A spread array as a host array, at most `PIECE` bytes of it whole on the devices at a time.

    All processes have to take part, also those that do not `keep` it.
    """
    out = np.empty(x.shape if keep else (), x.dtype)
    axis, rows = _cut(x)
    piece = jax.jit(
        lambda a, at: jax.lax.dynamic_slice_in_dim(a, at, rows, axis),
        out_shardings=NamedSharding(x.sharding.mesh, P()),  # type: ignore[attr-defined]
    )
    for start in range(0, x.shape[axis], rows):
        at = min(start, x.shape[axis] - rows)  # the last piece overlaps the one before
        here = (slice(None),) * axis + (slice(at, at + rows),)
        whole = piece(x, at)
        if keep:
            out[here] = np.asarray(whole.addressable_data(0))
    return out if keep else x


def _cut(x: jax.Array) -> tuple[int, int]:
    """The axis along which pieces are cut, one that is not spread, so that devices cut alone; and rows per piece."""
    spec = tuple(x.sharding.spec) + (None,) * x.ndim  # type: ignore[attr-defined]
    free = [axis for axis in range(x.ndim) if spec[axis] is None]
    if not free:
        return 0, x.shape[0]
    axis = max(free, key=lambda a: x.shape[a])
    return axis, max(1, min(x.shape[axis], PIECE // max(1, math.prod(x.shape) // x.shape[axis] * x.dtype.itemsize)))
