"""Whole modules that torch.save pickled, read as data: classes become names, nothing is looked up or called."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxsae.io.formats._arrays import Arrays, Entry
from jaxsae.io.formats._base import bad
from jaxsae.io.formats._pickle import STORAGES, Machine, Name, Tensor
from jaxsae.io.formats._pt import entry, load_pt

MAX_MODULES = 1000
_KNOWN = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("collections", "OrderedDict"),
}


class Thing:
    """An object of a class that is only a name here: what it was made with, and its attributes."""

    def __init__(self, name: str, args: Any) -> None:
        self.name, self.args = name, args
        self.state: dict[str, Any] = {}


class ModuleMachine(Machine):
    """Also reads objects: every global is a name, every call an inert `Thing`."""

    def allowed(self, name: Name) -> Any:
        """Storages as usual; anything else is only its name."""
        if name.module == "torch" and name.name in STORAGES:
            return super().allowed(name)
        return name

    def call(self, function: Any, args: Any) -> Any:
        """Tensors and dicts as usual; anything else is a `Thing`."""
        if not isinstance(function, Name):
            self.fail("a call of something named", type(function).__name__)
        if (function.module, function.name) in _KNOWN:
            return super().call(function, args)
        return Thing(f"{function.module}.{function.name}", args)

    def _do(self, name: str, arg: Any) -> None:
        if name == "NEWOBJ":
            args, cls = self.stack.pop(), self.stack.pop()
            self.stack.append(self.call(cls, args))
        else:
            super()._do(name, arg)

    def _state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Thing) and isinstance(state, dict):
            target.state = state


def open_module(path: Path) -> tuple[Arrays, Arrays, Thing]:
    """(the arrays of its state dict, tensors among its plain attributes, the module itself) of a pickled module.

    Raises:
        FormatError: damaged, or not a module.
    """
    content, infos, folder = load_pt(path, ModuleMachine)
    if not isinstance(content, Thing) or not isinstance(content.state.get("_modules"), dict):
        bad(path, None, "a pickled module", content.name if isinstance(content, Thing) else type(content).__name__)
    attributes = {n: entry(path, n, t, infos, folder) for n, t in content.state.items() if isinstance(t, Tensor)}
    return Arrays(path, dict(_entries(path, content, infos, folder))), Arrays(path, attributes), content


def _entries(
    path: Path, module: Thing, infos: Mapping[str, zipfile.ZipInfo], folder: str
) -> Iterator[tuple[str, Entry]]:
    waiting, count = [("", module)], 0
    while waiting:
        prefix, part = waiting.pop()
        count += 1
        if count > MAX_MODULES:
            bad(path, prefix, f"at most {MAX_MODULES} modules", "more")
        for kind in ("_parameters", "_buffers"):
            for name, value in _dict(part.state.get(kind)).items():
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", entry(path, f"{prefix}{name}", value, infos, folder)
        inner = _dict(part.state.get("_modules")).items()
        waiting += [(f"{prefix}{name}.", value) for name, value in inner if isinstance(value, Thing)]


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}
