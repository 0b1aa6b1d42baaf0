"""Frozen dataclasses are the configuration; this file turns them into YAML or JSON and back.

Every registered class carries a tag, `kind.name`, written under the key `type`, so that `{"k": 8}` can never be
read as another class.  Unknown keys, missing keys and wrong types are errors that name the path of the culprit.
"""

import dataclasses
import importlib
import json
import pathlib
import pkgutil
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import yaml

from jaxsae.errors import ConfigError, closest

T = TypeVar("T")
_BY_TAG: dict[str, type] = {}
_BY_TYPE: dict[type, str] = {}


def register(tag: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: enrols a frozen dataclass under `kind.name`, e.g. `"selector.rank"`.

    Raises:
        ConfigError: the tag is taken by another class.
    """

    def enrol(cls: type[T]) -> type[T]:
        old = _BY_TAG.get(tag)
        if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(f"config tag {tag!r} already belongs to {old.__qualname__}; choose another name")
        _BY_TAG[tag], _BY_TYPE[cls] = cls, tag
        return cls

    return enrol


def members(kind: str) -> dict[str, type]:
    """All registered classes of one kind, by name: `members("term") -> {"mse": Mse, ...}`."""
    prefix = kind + "."
    return {tag[len(prefix) :]: cls for tag, cls in sorted(_BY_TAG.items()) if tag.startswith(prefix)}


def tag_of(obj: object) -> str | None:
    """The tag of an object's class, or None if it is not registered."""
    return _BY_TYPE.get(type(obj))


def class_of(tag: str) -> type | None:
    """The class registered under a tag, or None."""
    return _BY_TAG.get(tag)


def load_folder(package: str) -> list[str]:
    """Imports every module of a package so that its members enrol; returns the module names."""
    pkg = importlib.import_module(package)
    names = [f"{package}.{m.name}" for m in pkgutil.iter_modules(pkg.__path__) if not m.name.startswith("_")]
    for name in names:
        importlib.import_module(name)
    return names


# ---------------------------------------------------------------------------------------------- objects -> plain data
def to_dict(obj: Any) -> Any:
    """Plain data (dict, list, str, number, bool, None) that `from_dict` turns back into an equal object."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        tag = tag_of(obj)
        fields = {f.name: to_dict(getattr(obj, f.name)) for f in dataclasses.fields(obj) if f.init}
        return {"type": tag, **fields} if tag else fields
    if isinstance(obj, dict):
        return {str(k): to_dict(v) for k, v in obj.items()}
    if isinstance(obj, (tuple, list)):
        return [to_dict(v) for v in obj]
    if isinstance(obj, pathlib.PurePath):
        return str(obj)
    if obj is None or isinstance(obj, (bool, int, float, str)):
        return obj
    if hasattr(obj, "item") and getattr(obj, "shape", None) == ():
        return obj.item()
    raise ConfigError(f"a {type(obj).__name__} cannot be written to a config file; use numbers, text or dataclasses")


# ---------------------------------------------------------------------------------------------- plain data -> objects
def from_dict(data: Any, expected: Any = Any, where: str = "") -> Any:
    """Builds the object that `data` describes.

    Args:
        data: what `to_dict` returned, or what a YAML file holds.
        expected: the type wanted; `Any` means that the data's own `type` tag decides.
        where: path of this value inside the file, for messages.

    Raises:
        ConfigError: naming the path, what was expected and what was found.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Point:
        ...     x: float = 0.0
        >>> from_dict({"x": 2}, Point)
        Point(x=2.0)
    """
    origin = typing.get_origin(expected)
    if expected is Any or expected is object:
        return _from_any(data, where)
    if origin in (typing.Union, types.UnionType):
        return _from_union(data, typing.get_args(expected), where)
    if origin is typing.Literal:
        return _expect(data in typing.get_args(expected), data, data, f"one of {typing.get_args(expected)}", where)
    if origin in (tuple, list):
        return _from_sequence(data, expected, where)
    if origin is dict or expected is dict:
        _expect(isinstance(data, dict), data, data, "a mapping", where)
        value_type = (typing.get_args(expected) or (str, Any))[1]
        return {k: from_dict(v, value_type, _join(where, k)) for k, v in data.items()}
    if dataclasses.is_dataclass(expected) or isinstance(data, dict):
        return _from_mapping(data, expected, where)
    return _from_scalar(data, expected, where)


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _expect(ok: bool, value: Any, found: Any, wanted: str, where: str) -> Any:
    if not ok:
        raise ConfigError(f"config key {where or '(top)'!r}: expected {wanted}, found {found!r}")
    return value


def _from_any(data: Any, where: str) -> Any:
    if isinstance(data, dict):
        if "type" in data:
            return _from_mapping(data, object, where)
        return {k: _from_any(v, _join(where, k)) for k, v in data.items()}
    if isinstance(data, list):
        return tuple(_from_any(v, f"{where}[{i}]") for i, v in enumerate(data))
    return data


def _from_union(data: Any, options: tuple, where: str) -> Any:
    if data is None and type(None) in options:
        return None
    options = tuple(o for o in options if o is not type(None))
    if isinstance(data, dict) and "type" in data:
        return _from_mapping(data, object, where)
    problems = []
    for option in options:
        try:
            return from_dict(data, option, where)
        except ConfigError as e:
            problems.append(e)
    if len(problems) == 1:
        raise problems[0]
    wanted = " or ".join(getattr(o, "__name__", str(o)) for o in options)
    return _expect(False, None, data, wanted, where)


def _from_sequence(data: Any, expected: Any, where: str) -> Any:
    _expect(isinstance(data, (list, tuple)), data, data, "a list", where)
    args = typing.get_args(expected)
    if typing.get_origin(expected) is list or (len(args) == 2 and args[1] is Ellipsis):
        kinds = [args[0]] * len(data)
    else:
        _expect(len(args) == len(data), data, data, f"a list of {len(args)} values", where)
        kinds = list(args)
    values = [from_dict(v, t, f"{where}[{i}]") for i, (v, t) in enumerate(zip(data, kinds, strict=True))]
    return values if typing.get_origin(expected) is list else tuple(values)


def _from_mapping(data: Any, expected: Any, where: str) -> Any:
    _expect(isinstance(data, dict), data, data, f"the keys of {getattr(expected, '__name__', 'an object')}", where)
    if getattr(expected, "_is_protocol", False) and "type" not in data:
        raise ConfigError(f"config key {where or '(top)'!r}: a {expected.__name__} needs the key 'type'")
    data = dict(data)
    cls = expected
    if "type" in data and not _has_field(expected, "type"):
        tag = data.pop("type")
        found = _BY_TAG.get(tag)
        if found is None:
            raise ConfigError(f"config key {_join(where, 'type')!r}: no class is called {tag!r}{closest(tag, _BY_TAG)}")
        if isinstance(expected, type) and not _accepts(expected, found):
            _expect(False, None, tag, f"a {expected.__name__}", _join(where, "type"))
        cls = found
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in data:
        if key not in names:
            raise ConfigError(
                f"config key {_join(where, key)!r} is unknown to {cls.__name__}{closest(str(key), names)}"
            )
    values = {k: from_dict(v, hints.get(k, Any), _join(where, k)) for k, v in data.items()}
    required = [
        f.name
        for f in dataclasses.fields(cls)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [n for n in required if n not in values]
    if missing:
        raise ConfigError(f"config key {_join(where, missing[0])!r} is required by {cls.__name__} and missing")
    return cls(**values)


def _accepts(expected: type, found: type) -> bool:
    """Protocols document a slot; they cannot be checked against a class, so they accept any registered one."""
    return expected is object or getattr(expected, "_is_protocol", False) or issubclass(found, expected)


def _has_field(cls: Any, name: str) -> bool:
    return dataclasses.is_dataclass(cls) and any(f.name == name for f in dataclasses.fields(cls))


def _from_scalar(data: Any, expected: Any, where: str) -> Any:
    if expected is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if expected is float and isinstance(data, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(data)
        except ValueError:
            pass
    if expected is int and isinstance(data, float) and data.is_integer():
        return int(data)
    if expected is pathlib.Path and isinstance(data, str):
        return pathlib.Path(data)
    name = getattr(expected, "__name__", str(expected))
    ok = isinstance(expected, type) and isinstance(data, expected) and not (expected is int and isinstance(data, bool))
    return _expect(ok, data, data, name, where)


# ---------------------------------------------------------------------------------------------- files
class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML would silently keep the last one."""


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(k) for k, _ in node.value]
    for i, key in enumerate(keys):
        if key in keys[:i]:
            raise ConfigError(f"config key {key!r} stands twice{node.start_mark}")
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_file(path: str | pathlib.Path) -> dict:
    """The mapping in a YAML or JSON file, as plain data.

    Raises:
        ConfigError: the file is missing, is not a mapping, or does not parse.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {e.strerror or e}; check the path") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"config file {str(path)!r} is not text in UTF-8; expected YAML or JSON") from e
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"config file {str(path)!r} is not valid YAML{line}: {getattr(e, 'problem', e)}") from e
    if not isinstance(data, dict):
        raise ConfigError(
            f"config file {str(path)!r}: expected a mapping of keys to values, found {type(data).__name__}"
        )
    return data


def dump_yaml(obj: Any) -> str:
    """YAML text of an object, keys in declaration order."""
    return yaml.safe_dump(to_dict(obj), sort_keys=False, allow_unicode=True)


def dump_json(obj: Any) -> str:
    """JSON text of an object."""
    return json.dumps(to_dict(obj), indent=1)
