"""`.pt` files of torch.save, read and written without torch.

The file is a zip archive: `data.pkl` describes the object (see `_pickle`), `data/0`, `data/1`, ... hold the numbers.
"""

import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxsae.io.formats._arrays import Arrays, Entry, read_at
from jaxsae.io.formats._base import bad
from jaxsae.io.formats._npz import data_offset, members, stored_zip, unpack
from jaxsae.io.formats._pickle import STORAGES, Machine, Tensor

MAX_PICKLE = 4 * 2**20
MAX_NAMES = 20_000
MAX_NAME = 512
_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}


# ------------------------------------------------------------------------------------------------ the archive
def load_pt(path: Path, machine: type[Machine] = Machine) -> tuple[Any, dict[str, zipfile.ZipInfo], str]:
    """The object in a `.pt` file with `Tensor` in place of arrays, the members of the archive, and its inner folder.

    Raises:
        FormatError: not the zip layout of torch.save, damaged, or asking for anything but plain data.
    """
    with open(path, "rb") as f:
        start = f.read(2)
    if start[:1] == b"\x80":
        bad(path, None, "the zip layout of torch.save", "the older one (before torch 1.6); save it again with torch")
    infos = {info.filename: info for info in members(path)}
    pickles = [n for n in infos if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(pickles) != 1:
        bad(path, "data.pkl", "exactly one", f"{len(pickles)}")
    folder = pickles[0].removesuffix("data.pkl")
    order = infos.get(folder + "byteorder")
    if order is not None and unpack(path, order, 16) != b"little":
        bad(path, order.filename, "little", "another byte order")

    def fail(expected: str, found: object) -> NoReturn:
        bad(path, pickles[0], expected, found)

    return machine(fail).run(unpack(path, infos[pickles[0]], MAX_PICKLE)), infos, folder


def open_pt(path: Path) -> Arrays:
    """The arrays and plain values of a `.pt` file; nested dicts get dotted names, e.g. `ae.encoder.weight`.

    Raises:
        FormatError: as `load_pt`; also if it holds anything but a dict.
    """
    content, infos, folder = load_pt(path)
    if not isinstance(content, dict):
        bad(path, None, "a state dict", type(content).__name__)
    entries, scalars = flatten(path, content, infos, folder)
    return Arrays(path, entries, scalars)


def flatten(
    path: Path, content: Mapping, infos: Mapping[str, zipfile.ZipInfo], folder: str
) -> tuple[dict[str, Entry], dict[str, Any]]:
    """(arrays, plain values) of nested dicts, by dotted name."""
    entries: dict[str, Entry] = {}
    scalars: dict[str, Any] = {}
    waiting: list[tuple[str, Mapping]] = [("", content)]
    count = 0
    while waiting:
        prefix, part = waiting.pop()
        for key, value in part.items():
            name, count = f"{prefix}{key}", count + 1
            if count > MAX_NAMES or len(name) > MAX_NAME:
                bad(path, name, f"at most {MAX_NAMES} values with names of at most {MAX_NAME} letters", "more")
            if isinstance(value, Tensor):
                entries[name] = entry(path, name, value, infos, folder)
            elif isinstance(value, dict) and value:
                waiting.append((name + ".", value))
            else:
                scalars[name] = value
    return entries, scalars


def entry(path: Path, name: str, tensor: Tensor, infos: Mapping[str, zipfile.ZipInfo], folder: str) -> Entry:
    """A tensor of the archive, its storage held against the member's size."""
    storage = tensor.storage
    member = f"{folder}data/{storage.key}"
    info = infos.get(member)
    if info is None:
        bad(path, name, f"its numbers in the member {member!r}", "no such member")
    if info.compress_type != zipfile.ZIP_STORED:
        bad(path, member, "a stored member", "a compressed one")
    if info.file_size != storage.size * storage.dtype.itemsize:
        bad(path, name, f"{storage.size} numbers of {storage.dtype.name}", f"{info.file_size} bytes in {member!r}")
    start = data_offset(path, info)
    return Entry(storage.dtype, tensor.shape, partial(_read, path, start, info.CRC, tensor))


def _read(path: Path, start: int, crc: int, tensor: Tensor) -> np.ndarray:
    dtype, size = tensor.storage.dtype, tensor.storage.size
    flat = read_at(path, start, (size,), dtype, crc)
    if tensor.offset == 0 and math.prod(tensor.shape) == size and _is_c_order(tensor):
        return flat.reshape(tensor.shape)
    strides = tuple(n * dtype.itemsize for n in tensor.strides)
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)
    return np.array(view, order="C")


def _is_c_order(tensor: Tensor) -> bool:
    step = 1
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


# ------------------------------------------------------------------------------------------------ writing
def pt_bytes(content: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """The bytes of a `.pt` file holding an ordered dict of arrays and plain values, as torch.load reads it."""
    arrays = {key: np.asarray(v) for key, v in content.items() if hasattr(v, "dtype")}
    keys = {key: str(i) for i, key in enumerate(arrays)}
    text = b"\x80\x02" + _ordered(content, arrays, keys) + b"."
    files: list[tuple[str, list[bytes | memoryview]]] = [
        ("archive/data.pkl", [text]),
        ("archive/byteorder", [b"little"]),
    ]
    for key, array in arrays.items():
        flat = np.ascontiguousarray(array).reshape(-1)
        files.append((f"archive/data/{keys[key]}", [flat.view(np.uint8).data]))
    files.append(("archive/version", [b"3\n"]))
    return stored_zip(files, alignment=64)


def _ordered(content: Mapping[str, Any], arrays: Mapping[str, np.ndarray], keys: Mapping[str, str]) -> bytes:
    body = b"".join(
        _text(key) + (_pickled_tensor(arrays[key], keys[key]) if key in keys else _pickled(value))
        for key, value in content.items()
    )
    return b"ccollections\nOrderedDict\n)R(" + body + b"u"


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _pickled(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return _text(value)
        case dict():
            return b"}(" + b"".join(_text(k) + _pickled(v) for k, v in value.items()) + b"u"
        case tuple() | list():
            return b"(" + b"".join(map(_pickled, value)) + b"t"
    bad("(to be written)", None, "plain values", type(value).__name__)


def _pickled_tensor(array: np.ndarray, key: str) -> bytes:
    strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
    kind = _STORAGE_OF[array.dtype].encode()
    where = _text("storage") + b"ctorch\n" + kind + b"\n" + _text(key) + _text("cpu") + _pickled(array.size)
    args = b"(" + where + b"tQ" + b"K\x00" + _pickled(array.shape) + _pickled(tuple(strides))
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + args + hooks + b"tR"
