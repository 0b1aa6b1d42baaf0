"""Reading numbers from a file straight into aligned memory, once, and never more than the file holds."""

import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxsae.errors import FormatError
from jaxsae.io.formats._base import bad

#: Where a buffer starts: at this boundary jax on CPU takes it over without a copy.
ALIGNMENT = 64
_CHUNK = 2**22
_MAPPED = 2**25
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = ("float32", "float64", "float16", "bfloat16")


class Entry:
    """One stored array: its dtype and shape, checked against the bytes that are there, and how to read it."""

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> None:
        self.dtype, self.shape, self.read = dtype, shape, read


class Arrays(Mapping[str, Any]):
    """The named entries of one file.  Nothing but the table of contents is read until `take`.

    Args:
        file: where the entries lie, for messages.
        entries: arrays by name.
        scalars: plain values that stand between them (only `.pt` files have any).
    """

    def __init__(self, file: Path, entries: Mapping[str, Entry], scalars: Mapping[str, Any] | None = None) -> None:
        self.file, self.entries, self.scalars = file, dict(entries), dict(scalars or {})

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self):
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def shape(self, name: str, axes: str) -> tuple[int, ...]:
        """The shape of an array that has one axis per letter of `axes`.

        Raises:
            FormatError: it is missing, has another number of axes, or an axis of length 0.
        """
        letters = "[" + ", ".join(axes) + "]"
        if name not in self.entries:
            bad(self.file, name, f"an array {letters}", _others(self.entries))
        shape = self.entries[name].shape
        if len(shape) != len(axes) or 0 in shape:
            bad(self.file, name, f"an array {letters} without empty axes", f"shape {list(shape)}")
        return shape

    def only(self, names: Iterable[str], optional: Iterable[str] = ()) -> None:
        """Holds the names against those a format prescribes.

        Raises:
            FormatError: naming the first array that is missing or too many.
        """
        names, optional = list(names), list(optional)
        for name in names:
            if name not in self.entries:
                bad(self.file, name, "an array of this name", _others(self.entries))
        for name in self.entries:
            if name not in names and name not in optional:
                bad(self.file, name, "only the arrays " + ", ".join([*names, *optional]), "this one too")

    def take(self, name: str, shape: tuple[int, ...], kinds: Iterable[str] = FLOATS, finite: bool = True) -> np.ndarray:
        """Reads one array.

        Args:
            name: its key.
            shape: the shape it must have.
            kinds: dtypes allowed, by name.
            finite: refuse NaN and infinities.

        Returns:
            a writable array of its own; float64 arrives as float32, the widest type jax computes in by default.

        Raises:
            FormatError: naming the key, before anything is allocated if shape or dtype do not fit.
        """
        if name not in self.entries:
            bad(self.file, name, f"an array of shape {list(shape)}", _others(self.entries))
        entry, kinds = self.entries[name], list(kinds)
        if entry.shape != tuple(shape):
            bad(self.file, name, f"shape {list(shape)}", f"shape {list(entry.shape)}")
        if entry.dtype.name not in kinds:
            bad(self.file, name, "dtype " + " or ".join(kinds), entry.dtype.name)
        array = entry.read()
        if finite and not all_finite(array):
            bad(self.file, name, "finite numbers", "NaN or infinity")
        return _narrow(self.file, name, array, finite)

    def scalar(self, name: str, kinds: Iterable[str] = FLOATS, finite: bool = True) -> float:
        """A 0-d array as a number."""
        return float(self.take(name, (), kinds, finite)[()])


def _others(names: Iterable[str]) -> str:
    names = sorted(names)
    return "no such array; the file has " + (", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "none")


def _narrow(file: Path, name: str, array: np.ndarray, finite: bool) -> np.ndarray:
    if array.dtype != np.float64:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if finite and not all_finite(narrow):
        bad(file, name, "numbers within the range of float32", f"up to {np.abs(array).max():.3g}")
    return narrow


def all_finite(array: np.ndarray) -> bool:
    """Whether no entry is NaN or infinite; one pass, in chunks, so that no mask of the array's size is made."""
    if array.dtype.kind not in "fV" and array.dtype != BFLOAT16:
        return True
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        if part.dtype in (np.float32, np.float64):
            with np.errstate(all="ignore"):
                if np.isfinite(np.add.reduce(part)):  # a sum of finite numbers may overflow, hence the second look
                    continue
        if not np.isfinite(part.astype(np.float32) if part.dtype == BFLOAT16 else part).all():
            return False
    return True


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that starts at a 64-byte boundary; what it holds is not defined.

    Large blocks are mapped with all their pages at once: touching them one by one costs more than reading the file.
    """
    size = math.prod(shape) * dtype.itemsize
    if size >= _MAPPED and hasattr(mmap, "MAP_POPULATE"):
        try:
            block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
        except OSError as e:
            raise FormatError(f"an array of {size / 2**30:.1f} GiB does not fit into memory ({e.strerror or e})") from e
        return np.frombuffer(block, np.uint8).view(dtype).reshape(shape)
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def read_at(
    file: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype, crc: int | None = None, update: Any = None
) -> np.ndarray:
    """An array that lies in a file as it lies in memory (little-endian, C order).

    Args:
        file: its path.
        offset: first byte.
        shape: its shape.
        dtype: its dtype.
        crc: CRC-32 that the bytes must have.
        update: called with each chunk read, for a running digest.

    Raises:
        FormatError: the file ends early, or the checksum is another.
    """
    out = aligned(shape, dtype)
    view = out.reshape(-1).view(np.uint8).data
    found = 0
    try:
        with open(file, "rb", buffering=0) as f:
            f.seek(offset)
            done = 0
            while done < len(view):
                got = f.readinto(view[done : done + 4 * _CHUNK])
                if not got:
                    bad(file, None, f"{len(view)} bytes from byte {offset}", f"only {done}")
                if crc is not None:
                    found = zlib.crc32(view[done : done + got], found)
                if update is not None:
                    update(view[done : done + got])
                done += got
    except OSError as e:
        bad(file, None, "a readable file", e.strerror or str(e))
    if crc is not None and found != crc:
        bad(file, None, f"data with checksum {crc:08x}", f"{found:08x}: the file is damaged")
    return out


def file_size(path: Path) -> int:
    """Bytes of a regular file.

    Raises:
        FormatError: there is none.
    """
    if not os.path.isfile(path):
        bad(path, None, "a file", "nothing" if not os.path.exists(path) else "something else")
    return os.path.getsize(path)


def cast(arrays: dict[str, np.ndarray], dtype: np.dtype, keep: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Floating arrays in one dtype; those already in it are not copied."""
    keep = set(keep)
    return {n: a if n in keep else a.astype(dtype, copy=False) for n, a in arrays.items()}


def dtype_called(config: Any, key: str = "dtype", default: Any = ...) -> np.dtype:
    """The dtype a configuration names (`float32` or `torch.float32`); float64 becomes float32.

    Raises:
        FormatError: none of the four floating dtypes in use.
    """
    text = config.text(key, default)
    name = {"float": "float32", "half": "float16", "double": "float64"}.get(
        text.removeprefix("torch."), text.removeprefix("torch.")
    )
    if name not in FLOATS:
        config.fail(key, "one of " + ", ".join(FLOATS), text)
    return BFLOAT16 if name == "bfloat16" else np.dtype("float32" if name == "float64" else name)
