"""Reads the header of a GGUF file: its settings, and where each tensor lies.

Every length is checked against the size of the file before it is used, so that a cut or altered file is refused with a
sentence, quickly.  Layout: magic, version, number of tensors, number of settings; the settings (key, type, value); the
tensors (name, dimensions, type, offset); padding; the data.  Specification: docs/gguf.md of the ggml project.
"""

import math
import pathlib
import struct
from typing import Any, NamedTuple

import numpy as np

from jaxsae.errors import HostError

_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)


class Tensor(NamedTuple):
    """Where a tensor lies.

    Attributes:
        shape: outermost dimension first (a matrix is [out, in]).
        kind: number of its quantisation in the `gguf` package.
        start: first byte, from the beginning of the file.
        row_bytes: bytes of one row (the last dimension).
    """

    shape: tuple[int, ...]
    kind: int
    start: int
    row_bytes: int


class Gguf(NamedTuple):
    """A GGUF file: settings, tensors by name, and the bytes of the whole file (mapped, not read)."""

    path: pathlib.Path
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    data: np.ndarray

    def rows(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor, [rows, row_bytes]."""
        t = self.tensors[name]
        n = math.prod(t.shape[:-1])
        return self.data[t.start : t.start + n * t.row_bytes].reshape(n, t.row_bytes)


def read(path: pathlib.Path) -> Gguf:
    """Opens a GGUF file.

    Raises:
        HostError: missing, not GGUF, of an unknown version, cut short or damaged.
    """
    try:
        data = np.memmap(path, mode="r")
    except (OSError, ValueError) as e:
        raise HostError(f"{path} cannot be read ({getattr(e, 'strerror', None) or e}); expected a GGUF file") from e
    cursor = _Cursor(path, data)
    if bytes(data[:4]) != b"GGUF":
        raise HostError(f"{path} is not a GGUF file (it begins with {bytes(data[:4])!r}); give a .gguf file")
    cursor.at = 4
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise HostError(f"{path} has GGUF version {version}; expected one of {_VERSIONS} in little-endian order")
    n_tensors, n_settings = cursor.number("Q"), cursor.number("Q")
    cursor.need(n_tensors + n_settings)  # each takes more than a byte
    settings = {cursor.string(): cursor.value(cursor.number("I")) for _ in range(n_settings)}
    found = [cursor.tensor() for _ in range(n_tensors)]
    start = _aligned(cursor.at, settings.get("general.alignment", 32), path)
    return Gguf(path, settings, {name: _placed(path, name, t, start, data.size) for name, t in found}, data)


class _Cursor:
    """A position in the file that never leaves it."""

    def __init__(self, path: pathlib.Path, data: np.ndarray):
        self.path, self.data, self.at = path, data.data, 0

    def need(self, n: int) -> None:
        if n > len(self.data) - self.at:
            raise HostError(f"{self.path} is cut short or damaged (at byte {self.at}); fetch it again")

    def number(self, letter: str) -> Any:
        self.need(struct.calcsize("<" + letter))
        (value,) = struct.unpack_from("<" + letter, self.data, self.at)
        self.at += struct.calcsize("<" + letter)
        return value

    def string(self) -> str:
        length = self.number("Q")
        self.need(length)
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise HostError(f"{self.path} holds a setting of unknown type {kind}; it is damaged or newer than jaxsae")
        inner, count = self.number("I"), self.number("Q")
        self.need(count)
        if inner == _STRING:
            return [self.string() for _ in range(count)]
        if inner not in _SCALARS:
            raise HostError(f"{self.path} holds a list of unknown type {inner}; it is damaged or newer than jaxsae")
        dtype = np.dtype(_SCALARS[inner]).newbyteorder("<")
        self.need(count * dtype.itemsize)
        values = np.frombuffer(self.data, dtype, count, self.at).tolist()
        self.at += count * dtype.itemsize
        return values

    def tensor(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        name, n_dimensions = self.string(), self.number("I")
        self.need(8 * n_dimensions)
        shape = tuple(self.number("Q") for _ in range(n_dimensions))[::-1]
        return name, (shape, self.number("I"), self.number("Q"))


def _aligned(at: int, alignment: Any, path: pathlib.Path) -> int:
    if not isinstance(alignment, int) or alignment <= 0:
        raise HostError(f"{path} has an alignment of {alignment!r}; expected a positive number: it is damaged")
    return -(-at // alignment) * alignment


def _placed(path: pathlib.Path, name: str, t: tuple[tuple[int, ...], int, int], start: int, size: int) -> Tensor:
    """Turns (shape, kind, offset) into a Tensor that lies wholly inside the file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    shape, kind, offset = t
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as e:
        raise HostError(f"{path}: tensor {name!r} is stored as unknown type {kind}; update the gguf package") from e
    if not shape or shape[-1] % block:
        raise HostError(f"{path}: tensor {name!r} has shape {list(shape)}, expected rows in blocks of {block}: damaged")
    row_bytes = shape[-1] // block * block_bytes
    if start + offset + math.prod(shape[:-1]) * row_bytes > size:
        raise HostError(f"{path} is cut short: tensor {name!r} ends behind its {size} bytes; fetch it again")
    return Tensor(shape, kind, start + offset, row_bytes)
