"""The small part of the pickle language that describes state dicts, and nothing else.

A pickle is a program.  This interpreter runs the instructions that build dicts, lists, numbers, text and tensors, and
stops at the first one that would look up or call anything else.
"""

import math
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from jaxsae.io.formats._arrays import BFLOAT16

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
