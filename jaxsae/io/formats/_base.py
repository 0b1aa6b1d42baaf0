"""What every reader shares: errors that name file, key, expected and found, and bounded JSON."""

import json
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from jaxsae.errors import FormatError, closest

#: No configuration in use comes near this size; anything larger is not one.
MAX_JSON = 8 * 2**20


def bad(file: str | os.PathLike[str], key: str | None, expected: str, found: object) -> NoReturn:
    """Raises the one sentence that every malformed file ends in.

    Raises:
        FormatError: always.
    """
    where = f"file {str(file)!r}" + (f", key {key!r}" if key is not None else "")
    raise FormatError(f"{where}: expected {expected}, found {_short(found)}")


def _short(found: object) -> str:
    text = found if isinstance(found, str) else reprlib.repr(found)  # bounded: what a file nests may be endless
    return text if len(text) <= 200 else text[:200] + "..."


def opened(path: Path, most: int | None = None) -> bytes:
    """All bytes of a small file.

    Raises:
        FormatError: it cannot be read, or is longer than `most` bytes.
    """
    try:
        if not path.is_file():
            bad(path, None, "a regular file", "none" if not path.exists() else "something else")
        size = path.stat().st_size
        if most is not None and size > most:
            bad(path, None, f"at most {most} bytes", f"{size} bytes")
        return path.read_bytes()
    except OSError as e:
        raise FormatError(f"file {str(path)!r} cannot be read: {e.strerror or e}; check path and permissions") from e


def parse_json(data: bytes, file: str | os.PathLike[str], part: str = "a JSON object") -> dict[str, Any]:
    """A JSON object whose keys are unique and whose numbers are finite.

    Raises:
        FormatError: naming the file and what stands there instead.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [k for k, _ in pairs]
            bad(file, next(k for k in keys if keys.count(k) > 1), "each key once", "a key that stands twice")
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        bad(file, None, part, f"text that is not JSON ({e})")
    if not isinstance(value, dict):
        bad(file, None, part, type(value).__name__)
    return value


class Config(Mapping[str, Any]):
    """A JSON object of a checkpoint, read key by key with the type that the format prescribes.

    Every method raises a `FormatError` naming the file, the key, what was expected and what was found.
    """

    def __init__(self, file: str | os.PathLike[str], data: Mapping[str, Any], prefix: str = "") -> None:
        self.file, self.data, self.prefix = file, data, prefix

    @classmethod
    def read(cls, path: Path) -> "Config":
        """The object in a JSON file of at most 8 MiB."""
        return cls(path, parse_json(opened(path, MAX_JSON), path))

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __iter__(self):
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def fail(self, key: str, expected: str, found: object) -> NoReturn:
        """Raises the error for one of its keys."""
        bad(self.file, self.prefix + key, expected, found)

    def _value(self, key: str, default: Any, expected: str, accept: Callable[[Any], bool]) -> Any:
        if key not in self.data:
            if default is REQUIRED:
                self.fail(key, expected, "no such key" + closest(key, self.data))
            return default
        value = self.data[key]
        if value is None and default is not REQUIRED:
            return default
        if not accept(value):
            self.fail(key, expected, value)
        return value

    def text(self, key: str, default: Any = ...) -> Any:
        """A string."""
        return self._value(key, _need(default), "text", lambda v: isinstance(v, str))

    def flag(self, key: str, default: Any = ...) -> Any:
        """true or false."""
        return self._value(key, _need(default), "true or false", lambda v: isinstance(v, bool))

    def integer(self, key: str, default: Any = ..., least: int = 1, most: int = 2**31 - 1) -> Any:
        """A whole number; 6.0 is accepted for 6, as trainers store it."""
        ok = lambda v: _is_number(v) and float(v).is_integer() and least <= v <= most  # noqa: E731
        value = self._value(key, _need(default), f"a whole number from {least} to {most}", ok)
        return int(value) if _is_number(value) else value

    def number(self, key: str, default: Any = ..., least: float = -math.inf, above: float = -math.inf) -> Any:
        """A finite number, at least `least` and above `above`."""
        wanted = "a finite number" + (f" of at least {least}" if least > -math.inf else "")
        wanted += f" above {above}" if above > -math.inf else ""
        ok = lambda v: _is_number(v) and math.isfinite(v) and v >= least and v > above  # noqa: E731
        value = self._value(key, _need(default), wanted, ok)
        return float(value) if _is_number(value) else value

    def choice(self, key: str, options: Iterable[str], default: Any = ...) -> Any:
        """One of several strings."""
        options = list(options)
        return self._value(key, _need(default), "one of " + ", ".join(options), lambda v: v in options)

    def part(self, key: str, default: Any = ...) -> "Config":
        """A nested object."""
        value = self._value(key, {} if default is None else REQUIRED, "an object", lambda v: isinstance(v, dict))
        return Config(self.file, value, f"{self.prefix}{key}.")

    def equals(self, key: str, value: int, why: str) -> None:
        """Holds a size in the configuration against the arrays, where the key is present."""
        found = self.integer(key, None)
        if found is not None and found != value:
            self.fail(key, f"{value} ({why})", found)


REQUIRED = object()


def _need(default: Any) -> Any:
    return REQUIRED if default is ... else default


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


class Notes:
    """What a conversion changed on the way: sentences, each once, and the units of the latents."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self.latent_scale: Any = None

    def __call__(self, note: str) -> None:
        if note not in self.all:
            self.all.append(note)

    def scaled(self, factor: Any) -> None:
        """Records that latent i of the written file is factor[i] times ours."""
        self.latent_scale = factor if self.latent_scale is None else self.latent_scale * factor


def refuse(format: str, what: str, could: Iterable[str] = ()) -> NoReturn:
    """Raises the error for a dictionary that a format has no words for.

    Raises:
        FormatError: always.
    """
    able = [*could, "jaxsae"]
    raise FormatError(f"format {format!r} cannot express {what}; nothing was written; what can: {', '.join(able)}")
