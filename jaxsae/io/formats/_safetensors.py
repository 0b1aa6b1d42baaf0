"""safetensors, read with every number of its header held against the file, and written without a copy.

8 bytes: length n of the header, little-endian;  n bytes: JSON {name: {dtype, shape, data_offsets}};  the data
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxsae.io.formats._arrays import BFLOAT16, Arrays, Entry, file_size, read_at
from jaxsae.io.formats._base import bad, parse_json

#: Longer headers than this belong to no dictionary; the format itself allows 100 MB.
MAX_HEADER = 4 * 2**20
MAX_AXES = 8
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def header(path: Path, update: Any = None) -> tuple[dict[str, Any], int]:
    """The parsed header of a file and the byte at which its data start.

    Raises:
        FormatError: it is not safetensors, or is cut off.
    """
    size = file_size(path)
    with open(path, "rb") as f:
        start = f.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= size - 8:
            bad(
                path,
                None,
                "a safetensors file (8 bytes of header length, then a header of that length)",
                f"{size} bytes",
            )
        if length > MAX_HEADER:
            bad(path, None, f"a safetensors header of at most {MAX_HEADER} bytes", f"{length} bytes")
        text = f.read(length)
    if update is not None:
        update(start + text)
    return parse_json(text, path, "a safetensors header (a JSON object)"), 8 + length


def open_safetensors(path: Path, update: Any = None) -> Arrays:
    """The arrays of a safetensors file, in the order of their data; see `Arrays.take` for reading one.

    Args:
        path: the file.
        update: called with every chunk read, for a running digest.

    Raises:
        FormatError: a header that contradicts itself or the file: unknown dtype, impossible shape, offsets that do
            not fit, overlap, leave holes, or do not end where the file ends.
    """
    table, start = header(path, update)
    data_size = file_size(path) - start
    table.pop("__metadata__", None)
    specs = sorted(((*_entry(path, n, info), n) for n, info in table.items()), key=lambda s: (s[0], s[1], s[4]))
    at, entries = 0, {}
    for first, last, dtype, shape, name in specs:
        entries[name] = Entry(dtype, shape, partial(read_at, path, start + first, shape, dtype, update=update))
        if first != at:
            bad(path, name, f"data from byte {at} (no holes, no overlaps)", f"from byte {first}")
        at = last
    if at != data_size:
        bad(path, None, f"{at} bytes of data, as the header says", f"{data_size} bytes")
    return Arrays(path, entries)


def _entry(path: Path, name: str, info: Any) -> tuple[int, int, np.dtype, tuple[int, ...]]:
    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        bad(path, name, "an entry with dtype, shape and data_offsets", info)
    dtype = DTYPES.get(info["dtype"]) if isinstance(info["dtype"], str) else None
    if dtype is None:
        bad(path, name, "a dtype among " + ", ".join(DTYPES), info["dtype"])
    shape, span = info["shape"], info["data_offsets"]
    if not _naturals(shape) or len(shape) > MAX_AXES:
        bad(path, name, f"a shape of at most {MAX_AXES} whole numbers", shape)
    if not _naturals(span) or len(span) != 2:
        bad(path, name, "two data_offsets", span)
    if span[1] - span[0] != math.prod(shape) * dtype.itemsize:
        bad(path, name, f"{math.prod(shape) * dtype.itemsize} bytes for {info['dtype']} {shape}", f"offsets {span}")
    return span[0], span[1], dtype, tuple(shape)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def chunks(arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, piece by piece: one array is on the host at a time.

    Wider dtypes come first and the header is padded to 8 bytes, so that every array is aligned in the file.
    """
    specs = {n: (np.dtype(a.dtype), tuple(a.shape)) for n, a in arrays.items()}
    order = sorted(specs, key=lambda n: (-specs[n][0].itemsize, n))
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        dtype, shape = specs[name]
        if dtype not in _NAMES:
            bad("(to be written)", name, "a dtype among " + ", ".join(DTYPES), dtype.name)
        size = math.prod(shape) * dtype.itemsize
        table[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        yield np.ascontiguousarray(np.asarray(arrays[name])).reshape(-1).view(np.uint8).data
