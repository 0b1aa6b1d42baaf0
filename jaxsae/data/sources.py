"""Sources of training batches: each batch is a pure function of (seed, step).

So a run resumes from one integer, and the rows of a global batch do not depend on how many processes share it.

A `CacheSource` takes random chunks of 64 rows (one read, one checksum each); the rows inside a chunk are unrelated
because the writer shuffled them.  One epoch is a random order of all chunks, epochs follow each other without a gap,
and a batch is the next `batch_size` rows of that endless sequence: every row comes once per epoch, whatever the batch
size.  Where it is not a multiple of 64 a chunk is split between two batches and read twice.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jax.sharding import Sharding

from jaxsae.data.buffers import Pool
from jaxsae.data.cache import Cache, CacheSplit
from jaxsae.data.shuffle import permutation
from jaxsae.errors import ConfigError, DataError


@runtime_checkable
class Source(Protocol):
    """Anything that makes batches.

    Attributes:
        d_in: width of a row.
        batch_size: rows of a global batch.
    """

    d_in: int
    batch_size: int

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """`{"x": [B, D]}`, or `{"sites": [B, L, D]}` for several sites; pure in `step`.

        B is the number of rows that this process supplies: all, unless the source was made for several processes.
        """
        ...


def local_rows(batch_size: int, index: int, count: int) -> tuple[int, int]:
    """First and last row + 1 of a global batch that process `index` of `count` supplies, in equal shares.

    Raises:
        ConfigError: no such process, or the batch does not divide.
    """
    if not 0 <= index < count or batch_size < 1 or batch_size % count:
        raise ConfigError(
            f"a batch of {batch_size} rows cannot be shared by {count} processes (this is {index}); "
            "expected a positive batch size that the number of processes divides"
        )
    return batch_size * index // count, batch_size * (index + 1) // count


def rows_on_this_process(sharding: Sharding, batch_size: int) -> tuple[int, int]:
    """First and last row + 1 of a global batch that this process has to supply under a sharding of its first axis.

    It follows from the mesh, not from the process's number: on a mesh that splits only latents, every process needs
    every row.

    Raises:
        ConfigError: the process's devices do not hold one contiguous run of rows.
    """
    places = sharding.addressable_devices_indices_map((batch_size, 1)).values()
    spans = sorted({(p[0].start or 0, batch_size if p[0].stop is None else p[0].stop) for p in places if p is not None})
    if any(a[1] != b[0] for a, b in itertools.pairwise(spans)):
        raise ConfigError(f"the devices of a process must hold adjacent rows of the batch, found {spans}")
    return spans[0][0], spans[-1][1]


class CacheSource:
    """Shuffled batches from an activation cache.

    Args:
        cache: an open cache, or one of its splits.
        batch_size: rows of a global batch.
        sites: one site (the batch holds `x`) or several of equal width (it holds `sites`); by default all there are.
        split: "train" or "heldout".
        seed: of the order.
        process_index, process_count: which share of the global batch this process supplies.
        rows: the share as (first row, last row + 1) where it is not an equal one; see `rows_on_this_process`.

    Raises:
        DataError: no such site, sites of unequal width, or a split without rows.

    Example:
        >>> source = CacheSource(cache, batch_size=4096)  # doctest: +SKIP
        >>> source.batch(step=7)["x"].shape  # doctest: +SKIP
        (4096, 576)
    """

    def __init__(
        self,
        cache: Cache | CacheSplit,
        batch_size: int,
        *,
        sites: str | Sequence[str] | None = None,
        split: str = "train",
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        rows: tuple[int, int] | None = None,
    ):
        self.split = cache.split(split) if isinstance(cache, Cache) else cache
        if not self.split.rows:
            raise DataError(f"the cache {self.split.cache.path} has no {self.split.name} rows; harvest more documents")
        names = self.split.cache.sites if sites is None else (sites,) if isinstance(sites, str) else tuple(sites)
        self.sites = tuple(self.split.cache.site(name) for name in names)
        widths = {self.split.d(name) for name in self.sites}
        if len(widths) != 1:
            raise DataError(f"sites of unequal width cannot share a batch: {dict(self.split.cache.manifest.sites)}")
        self.d_in, self.batch_size, self.seed = widths.pop(), batch_size, seed
        self._stacked = len(self.sites) > 1 or not (sites is None or isinstance(sites, str))
        self._rows = rows or local_rows(batch_size, process_index, process_count)
        start, length = self.split.chunks()
        whole = length == length.max()
        self._start = np.concatenate([start[whole], start[~whole]])
        self._length = np.concatenate([length[whole], length[~whole]])
        self._whole = int(whole.sum())
        self._ends = np.cumsum(self._length)
        self._pool, self._orders = Pool(), functools.lru_cache(maxsize=2)(self._order)

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the split."""
        return self.split.rows

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """See `Source.batch`.  The arrays' memory is recycled once nothing refers to them.

        Raises:
            DataError: a chunk is missing or damaged.
        """
        first, last = self._rows
        pieces = self._pieces(step * self.batch_size + first, last - first)
        shape = (last - first, len(self.sites), self.d_in) if self._stacked else (last - first, self.d_in)
        out = self._pool.take(shape, self.split.row_dtype)
        for i, site in enumerate(self.sites):
            into = out[:, i] if self._stacked else out
            self.split.read_pieces([(a, a + n, into[at : at + n]) for a, n, at in pieces], site)
        return {"sites" if self._stacked else "x": out}

    def _order(self, epoch: int) -> np.ndarray:
        """The chunks of an epoch.  Part-full ones come last, so that they do not shift the batches before them."""
        order = permutation(self._whole, self.seed, "chunks", epoch)
        return np.concatenate([order, np.arange(self._whole, len(self._start))])

    def _pieces(self, position: int, count: int) -> list[tuple[int, int, int]]:
        """(first row in the split, rows, place in the batch) for `count` rows of the endless sequence."""
        pieces, done = [], 0
        while done < count:
            epoch, at = divmod(position + done, self.split.rows)
            order = self._orders(epoch)
            slot = int(np.searchsorted(self._ends, at, "right"))
            while done < count and slot < len(order):
                skip = at - int(self._ends[slot] - self._length[slot])
                n = min(int(self._length[slot]) - skip, count - done)
                pieces.append((int(self._start[order[slot]]) + skip, n, done))
                done, at, slot = done + n, at + n, slot + 1
        return pieces


class ArraySource:
    """Shuffled batches from arrays in memory (or mapped into it), every row once per epoch.

    Args:
        rows: activations [N, D], [N, L, D] for several sites, or a mapping of named arrays with equal N.
        batch_size: rows of a global batch.
        seed: of the order.
        shuffle: False keeps the order of the array.
        process_index, process_count: which share of the global batch this process supplies.

    Example:
        >>> source = ArraySource(np.arange(6, dtype=np.float32).reshape(6, 1), batch_size=3)
        >>> sorted(float(v) for step in (0, 1) for v in source.batch(step)["x"][:, 0])
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(
        self,
        rows: np.ndarray | Mapping[str, np.ndarray],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        process_index: int = 0,
        process_count: int = 1,
    ):
        arrays = dict(rows) if isinstance(rows, Mapping) else {"x" if np.ndim(rows) == 2 else "sites": rows}
        counts = {len(a) for a in arrays.values()}
        if len(counts) != 1 or not counts.copy().pop():
            raise DataError(f"arrays for a source need one common number of rows above 0, found {sorted(counts)}")
        for name, a in arrays.items():
            check_finite(a, name)
        self._arrays, self.rows_per_epoch = arrays, counts.pop()
        self.d_in, self.batch_size = int(next(iter(arrays.values())).shape[-1]), batch_size
        self._rows = local_rows(batch_size, process_index, process_count)
        self._seed, self._shuffle = seed, shuffle
        self._pool, self._orders = Pool(), functools.lru_cache(maxsize=2)(self._order)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """See `Source.batch`."""
        first, last = self._rows
        position = step * self.batch_size + np.arange(first, last)
        epoch, at = position // self.rows_per_epoch, position % self.rows_per_epoch
        index = np.concatenate([self._orders(int(e))[at[epoch == e]] for e in np.unique(epoch)])
        out = {}
        for name, a in self._arrays.items():
            out[name] = self._pool.take((len(index), *a.shape[1:]), a.dtype)
            np.take(a, index, axis=0, out=out[name], mode="clip")
        return out

    def _order(self, epoch: int) -> np.ndarray:
        count = self.rows_per_epoch
        return permutation(count, self._seed, "array", epoch) if self._shuffle else np.arange(count)


def check_finite(rows: np.ndarray, name: str) -> None:
    """Refuses rows with NaN or infinity, with their number.

    Raises:
        DataError: there are some.
    """
    if not np.issubdtype(rows.dtype, np.integer):
        bad = 0
        for start in range(0, len(rows), 4096):
            part = np.asarray(rows[start : start + 4096], np.float32).reshape(len(rows[start : start + 4096]), -1)
            bad += int((~np.isfinite(part)).any(1).sum())
        if bad:
            raise DataError(f"{bad} of {len(rows)} rows of {name!r} hold NaN or infinity; drop or repair them first")
