"""`.pt` files of torch.save, read and written without torch.

The file is a zip archive: `data.pkl` describes the object, `data/0`, `data/1`, ... hold the numbers.  A pickle is a
program; this reader runs the small part of its language that builds dicts, lists, numbers, text and tensors, and
stops at the first instruction that would look up or call anything else.
"""

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxsae.io.formats._arrays import BFLOAT16, Arrays, Entry, read_at
from jaxsae.io.formats._base import bad
from jaxsae.io.formats._npz import data_offset, members, stored_zip, unpack

MAX_PICKLE = 4 * 2**20
MAX_NAMES = 20_000
MAX_NAME = 512
STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}
_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = ("torch._utils", "_rebuild_parameter")
_ORDERED = ("collections", "OrderedDict")
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Storage:
    """A block of numbers: its dtype, its file inside the archive, and how many there are."""

    dtype: np.dtype
    key: str
    size: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, as the pickle describes it; nothing has been read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """A global that the pickle mentions.  It is only a name here."""

    module: str
    name: str


# ------------------------------------------------------------------------------------------------ the pickle
class Machine:
    """Runs the instructions of a pickle that build plain data; refuses the rest by name.

    Args:
        fail: called with (expected, found) when something else is asked for.
    """

    def __init__(self, fail: Any) -> None:
        self.fail = fail
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The object that the pickle describes, tensors as `Tensor`."""
        try:
            for op, arg, _ in pickletools.genops(BytesIO(data)):
                if op.name == "STOP":
                    return self.stack.pop()
                self._do(op.name, arg)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error, UnicodeError) as e:
            self.fail("a pickle of torch.save", f"one that is damaged ({type(e).__name__}: {e})")
        self.fail("a pickle that ends in STOP", "one that is cut off")

    def _do(self, name: str, arg: Any) -> None:
        stack = self.stack
        if name in _PUSH:
            stack.append(arg)
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in _BUILD:
            stack.append(_BUILD[name]())
        elif name in _SMALL_TUPLES:
            n = _SMALL_TUPLES[name]
            stack[len(stack) - n :] = [tuple(stack[len(stack) - n :])]
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[arg])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in _COLLECT:
            getattr(self, _COLLECT[name])()
        elif name == "GLOBAL":
            module, _, attribute = arg.partition(" ")
            stack.append(self.allowed(Name(module, attribute)))
        elif name == "STACK_GLOBAL":
            attribute = stack.pop()
            stack.append(self.allowed(Name(stack.pop(), attribute)))
        else:
            self.fail("only instructions that build plain data", f"the pickle instruction {name}")

    def _group(self) -> list:
        """Takes the operands above the last mark off the stack."""
        at = self.marks.pop()
        if at > len(self.stack):
            self.fail("operands above a mark", "none")
        group = self.stack[at:]
        del self.stack[at:]
        return group

    def _tuple(self) -> None:
        self.stack.append(tuple(self._group()))

    def _set(self, pairs: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            self.fail("a dict to fill", type(target).__name__)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str) and not (type(key) is int and 0 <= key < 2**31):
                self.fail("keys that are text or small numbers", type(key).__name__)
            target[key] = value

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self) -> None:
        self._set(self._group())

    def _extend(self, values: list) -> None:
        if not isinstance(self.stack[-1], list):
            self.fail("a list to fill", type(self.stack[-1]).__name__)
        self.stack[-1].extend(values)

    def _append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _appends(self) -> None:
        self._extend(self._group())

    def _state(self) -> None:
        """Attributes of an OrderedDict (torch keeps module versions there): dropped."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            self.fail("no attributes on anything but a dict", type(self.stack[-1]).__name__)

    def _persistent(self) -> None:
        match self.stack.pop():
            case ("storage", Storage(dtype=dtype), str(key), str(), int(size)) if size >= 0:
                self.stack.append(Storage(dtype, key, size))
            case other:
                self.fail("a reference to a storage", other)

    def _reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, args))

    def allowed(self, name: Name) -> Any:
        """What stands for a global: storages, dtypes and the three constructors of a state dict; nothing else."""
        if name.module == "torch" and name.name in STORAGES:
            return Storage(STORAGES[name.name], "", 0)
        if name.module == "torch" and name.name in _DTYPES:
            return f"torch.{name.name}"
        if (name.module, name.name) in (_TENSOR, _PARAMETER, _ORDERED, ("torch", "Size"), ("torch", "device")):
            return name
        self.fail("tensors, dicts and plain values only", f"a reference to {name.module}.{name.name}, not looked up")

    def call(self, function: Any, args: Any) -> Any:
        """The result of one of the allowed constructors."""
        match (function.module, function.name) if isinstance(function, Name) else function, args:
            case (mod, name), () if (mod, name) == _ORDERED:
                return {}
            case (mod, name), (list(pairs),) if (mod, name) == _ORDERED:
                return dict(pairs)
            case (mod, name), (Storage() as s, int(at), tuple(shape), tuple(strides), *_) if (mod, name) == _TENSOR:
                return self._tensor(s, at, shape, strides)
            case (mod, name), (Tensor() as t, *_) if (mod, name) == _PARAMETER:
                return t
            case ("torch", "Size"), (tuple() | list() as shape,):
                return tuple(shape)
            case ("torch", "device"), (str(kind), *_):
                return kind
        self.fail("a call that builds a tensor or a dict", f"a call of {getattr(function, 'name', 'something else')}")

    def _tensor(self, s: Storage, at: int, shape: tuple, strides: tuple) -> Tensor:
        whole = all(type(n) is int and n >= 0 for n in (at, *shape, *strides))
        if not whole or len(shape) != len(strides) or len(shape) > 8:
            self.fail("a tensor with as many strides as axes", (shape, strides))
        last = at + sum((n - 1) * st for n, st in zip(shape, strides, strict=True))
        if 0 not in shape and (last >= s.size or math.prod(shape) > s.size):
            self.fail(f"a tensor within its storage of {s.size} numbers", f"shape {shape}, strides {strides}")
        return Tensor(s, at, shape, strides)


_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT", "FLOAT")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING")
_PUSH = frozenset((*_NUMBERS, *_TEXTS))
_BUILD: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_SMALL_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_COLLECT = {
    "TUPLE": "_tuple",
    "SETITEM": "_setitem",
    "SETITEMS": "_setitems",
    "APPEND": "_append",
    "APPENDS": "_appends",
    "BUILD": "_state",
    "BINPERSID": "_persistent",
    "REDUCE": "_reduce",
}


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
