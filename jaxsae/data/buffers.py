"""Large host arrays whose memory is used again once nobody refers to them.

A fresh 32-MiB array costs thousands of page faults, which halve the rate of a reader.  A `Pool` hands out arrays over
memory it keeps.  The memory returns to the pool when the last reference to the array, to any view of it, or to a
`jax.Array` that was made from it is gone: `jax.device_put` holds on to its source until the transfer is over, and
where it does not copy at all (on CPU, for memory aligned to 64 bytes) as long as the device array lives.  So nothing
has to be waited for, and an array that somebody still holds is never written to.
"""

import collections
import math

import numpy as np
from numpy.typing import DTypeLike

_ALIGN = 4096  # a page; at least the 64 bytes from which XLA's CPU client takes memory over without a copy


class Pool:
    """Arrays over recycled memory; safe to use from several threads.

    Args:
        keep: how many unused pieces of memory are kept per size; more than that are freed.

    Example:
        >>> pool = Pool()
        >>> first = pool.take((2, 3), np.float32)
        >>> address = first.ctypes.data
        >>> del first
        >>> pool.take((2, 3), np.float32).ctypes.data == address
        True
    """

    def __init__(self, keep: int = 8):
        self._keep = keep
        self._free: dict[int, collections.deque[np.ndarray]] = collections.defaultdict(collections.deque)

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array of undefined content that belongs to the caller for as long as anything refers to it."""
        dtype = np.dtype(dtype)
        size = max(1, math.prod(shape) * dtype.itemsize)
        try:
            memory = self._free[size].popleft()
        except IndexError:
            raw = np.empty(size + _ALIGN, np.uint8)
            offset = -raw.ctypes.data % _ALIGN
            memory = raw[offset : offset + size]
        flat = np.asarray(_Lease(memory, self))
        return flat[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def _give_back(self, memory: np.ndarray) -> None:
        # Called by the garbage collector, in any thread: no lock, only operations that are atomic.
        free = self._free[memory.size]
        if len(free) < self._keep:
            free.append(memory)


class _Lease:
    """Owner of an array's memory: numpy and jax keep it alive, its end returns the memory."""

    __slots__ = ("__array_interface__", "__weakref__", "_memory", "_pool")

    def __init__(self, memory: np.ndarray, pool: Pool):
        self._memory, self._pool = memory, pool
        self.__array_interface__ = {
            "data": (memory.ctypes.data, False),
            "shape": (memory.size,),
            "typestr": "|u1",
            "version": 3,
        }

    def __del__(self) -> None:
        self._pool._give_back(self._memory)
