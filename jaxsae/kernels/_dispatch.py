"""Which implementation of an op runs: the one asked for by name, or the best known for device, shape and dtype.

`None` reads the table of the device's kind (`kernels/dispatch/<kind>.json`, written by `jaxsae bench kernels --tune`)
and falls back, with its choice logged once, to the first implementation that the platform has.  A named implementation,
in the call or around it by `using`, never falls back: where it cannot run, one sentence says why and what can.  One
thing only is passed on: a name given by `using` stands for all the calls of a step, so those that the implementation
`leaves` to others (long lists) go to the best of these, which is logged.
"""

import contextlib
import functools
import json
import logging
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxsae.errors import ConfigError, closest
from jaxsae.parallel import in_force

log = logging.getLogger("jaxsae.kernels")

#: Measured tables, one per kind of device.
TABLES = pathlib.Path(__file__).parent / "dispatch"

#: Sizes of one call by axis letter ("B", "D", "S", "K", ...).
Shape = Mapping[str, int]

#: A measurement counts for shapes within this factor of it (the distance is the largest ratio over the axes).
REACH = 8.0


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Args:
        run: the function.
        platforms: where it runs ("cpu", "gpu", "tpu"); empty for everywhere.
        refuse: (shape, dtype) -> why this call cannot be served, or None.  The dtype is a name such as "float32".
        leaves: shape -> why such a call is left to another implementation, or None.  It is refused like any other where
            the call itself names this one.
    """

    run: Callable
    platforms: tuple[str, ...] = ()
    refuse: Callable[[Shape, str], str | None] | None = None
    leaves: Callable[[Shape], str | None] | None = None

    def objection(self, platform: str, shape: Shape, dtype: str) -> str | None:
        """Why it cannot run here, or None."""
        return self.inability(platform, shape, dtype) or self.reluctance(shape)

    def inability(self, platform: str, shape: Shape, dtype: str) -> str | None:
        """What stands against it whoever asks, or None."""
        if self.platforms and platform not in self.platforms:
            return f"runs on {' and '.join(self.platforms)}, this is {platform}"
        return self.refuse(shape, dtype) if self.refuse and shape else None

    def reluctance(self, shape: Shape) -> str | None:
        """Why this call is left to another implementation, or None."""
        return self.leaves(shape) if self.leaves and shape else None


Available = Mapping[str, "Callable | Implementation"]


def on_mesh(available: Available, *spread: str) -> Available:
    """The implementations of an op where it is spread over a mesh: those it has parts for; others are refused by name.

    Args:
        available: implementations of the op.
        spread: names of those whose parts are what the devices compute.

    Example:
        >>> ops = on_mesh({"xla": lambda: "parts", "reference": lambda: "whole"}, "xla")
        >>> ops["xla"](), ops["reference"].objection("cpu", {"B": 1}, "float32")
        ('parts', 'works on one device, this is a mesh')
    """
    alone = {n: i if isinstance(i, Implementation) else Implementation(i) for n, i in available.items()}
    refuse = lambda shape, dtype: "works on one device, this is a mesh"  # noqa: E731
    return {n: available[n] if n in spread else replace(i, refuse=refuse) for n, i in alone.items()}


_target: ContextVar[tuple[str, str] | None] = ContextVar("target", default=None)
_named: ContextVar[Mapping[str, str]] = ContextVar("named", default={})  # noqa: B039 - never written to


@contextlib.contextmanager
def compiling_for(platform: str, kind: str) -> Iterator[None]:
    """Choices inside are made for another device than this process has, as ahead-of-time compilation needs.

    Example:
        >>> with compiling_for("tpu", "TPU v5 lite"):
        ...     device()
        ('tpu', 'TPU v5 lite')
    """
    token = _target.set((platform, kind))
    try:
        yield
    finally:
        _target.reset(token)


@contextlib.contextmanager
def using(**implementations: str) -> Iterator[None]:
    """Names the implementation of ops, by op, for every call inside that names none itself.

    How a whole training step is asked to run a kernel that no measured table prefers yet.  As with every name there
    is no falling back, but a step calls an op with several shapes: lists that the implementation is not made for (the
    long one of AuxK beside a GPU kernel) go to the best other, and the log says so.  Ops choose when a program is
    traced, so a program that is already compiled keeps its choices.

    Args:
        implementations: op -> a key of its implementations, such as encode_topk="pallas_tpu".

    Raises:
        ConfigError: no op of that name; an op called inside cannot serve the call with the implementation named.

    Example:
        >>> with using(topk="reference"):
        ...     choose("topk", None, {"xla": lambda: "fast", "reference": lambda: "plain"})()
        'plain'
    """
    ops = sorted(p.parent.name for p in pathlib.Path(__file__).parent.glob("*/api.py"))
    for op in implementations:
        if op not in ops:
            raise ConfigError(f"kernels have no op {op!r}{closest(op, ops)}")
    token = _named.set({**_named.get(), **implementations})
    try:
        yield
    finally:
        _named.reset(token)


def device() -> tuple[str, str]:
    """(platform, kind) that choices are made for: as `compiling_for` says, the mesh in force, or jax's default."""
    told = _target.get() or in_force.device()
    if told is not None:
        return told
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    here = chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]
    return here.platform, here.device_kind


def choose(op: str, implementation: str | None, available: Available, shape: Shape | None = None, dtype: Any = None):
    """The function that will compute `op`.

    Args:
        op: name of the op, for messages and for the table.
        implementation: a key of `available`, or None for the best here.
        available: implementations of this op in order of preference; a bare function runs everywhere.
        shape: sizes of this call by axis letter; without it only the platform decides.
        dtype: of the operands.

    Raises:
        ConfigError: the named implementation does not exist or cannot serve this call; the message says what can.

    Example:
        >>> choose("double", None, {"xla": lambda x: 2 * x})(3)
        6
    """
    shape, name = dict(shape or {}), "" if dtype is None else jax.numpy.dtype(dtype).name
    platform, kind = device()
    all_of_them = {n: i if isinstance(i, Implementation) else Implementation(i) for n, i in available.items()}
    objections = {n: i.objection(platform, shape, name) for n, i in all_of_them.items()}
    around = None if implementation else _named.get().get(op)
    possible = [n for n, why in objections.items() if why is None]
    passed_on = (
        around in all_of_them and not all_of_them[around].inability(platform, shape, name) and objections[around]
    )
    implementation = implementation or (None if passed_on else around)
    if implementation is None:
        picked, reason = _best(op, possible, kind, shape, name)
        _log_once(op, picked, kind, f"{around!r} {passed_on}" if passed_on else reason)
        return all_of_them[picked].run
    if implementation not in available:
        raise ConfigError(f"{op}: no implementation {implementation!r} here{closest(implementation, possible)}")
    if objections[implementation] is not None:
        raise ConfigError(f"{op}: {implementation!r} {objections[implementation]}; possible: {', '.join(possible)}")
    return all_of_them[implementation].run


def _best(op: str, possible: list[str], kind: str, shape: dict[str, int], dtype: str) -> tuple[str, str]:
    """(name, reason): the fastest in the nearest measurement, else the first in order of preference."""
    near = [(d, row) for row in table(kind).get(op, []) if (d := distance(row, shape, dtype)) <= REACH]
    if near:
        row = min(near, key=lambda pair: pair[0])[1]
        measured = sorted((n for n in row["milliseconds"] if n in possible), key=row["milliseconds"].get)
        if measured:
            return measured[0], "measured"
    if not possible:
        raise ConfigError(f"{op}: no implementation can serve {shape} in {dtype} on {kind}")
    return possible[0], "not measured, first in order of preference"


def distance(row: Mapping[str, Any], shape: Shape, dtype: str) -> float:
    """The largest ratio between two calls' sizes, over the axes; infinite when they are not comparable.

    Example:
        >>> distance({"shape": {"B": 8, "S": 64}, "dtype": "float32"}, {"B": 16, "S": 64}, "float32")
        2.0
    """
    if row["dtype"] != dtype or set(row["shape"]) != set(shape) or min(shape.values(), default=0) < 1:
        return math.inf
    return max(max(shape[a] / n, n / shape[a]) for a, n in row["shape"].items())


def table_path(kind: str) -> pathlib.Path:
    """Where the table of a kind of device lies, e.g. `tpu_v5_lite.json`."""
    return TABLES / (re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_") + ".json")


@functools.cache
def table(kind: str) -> dict[str, list[dict[str, Any]]]:
    """op -> measurements {"shape", "dtype", "milliseconds": {implementation: ms}}; empty for a kind without a table."""
    path = table_path(kind)
    return json.loads(path.read_text())["ops"] if path.exists() else {}


@functools.cache
def _log_once(op: str, name: str, kind: str, reason: str) -> None:
    log.info("%s on %s: implementation %r (%s)", op, kind, name, reason)


def axes(op: str, **operands: tuple[Any, str]) -> dict[str, int]:
    """Sizes by axis letter of the operands of an op, which must agree about them.

    Args:
        op: for the message.
        operands: name -> an array and the letters of its axes.

    Raises:
        ConfigError: an operand has other axes, or two of them differ in one.

    Example:
        >>> axes("op", values=(jax.numpy.ones((2, 3)), "BK"), W=(jax.numpy.ones((8, 4)), "SE"))
        {'B': 2, 'K': 3, 'S': 8, 'E': 4}
    """
    found: dict[str, int] = {}
    for array, letters in operands.values():
        if array.ndim == len(letters):
            found |= {a: n for a, n in zip(letters, array.shape, strict=True) if a not in found}
    if any(tuple(found.get(a, -1) for a in letters) != array.shape for array, letters in operands.values()):
        listed = lambda entries: " and ".join((", ".join(entries[:-1]), entries[-1]))  # noqa: E731
        expected = listed([f"{name} [{', '.join(letters)}]" for name, (_, letters) in operands.items()])
        shapes = listed([str(list(array.shape)) for array, _ in operands.values()])
        raise ConfigError(f"{op}: expected {expected}, found {shapes}; sizes of one letter must agree")
    return found


def no_entries(shape: Shape) -> str | None:
    """Why a kernel leaves lists without an entry to others, or None.

    Example:
        >>> no_entries({"K": 0})
        'takes lists of at least one entry'
    """
    return None if shape["K"] else "takes lists of at least one entry"


def check_k(op: str, k: int, size: int) -> None:
    """Refuses a k that the op cannot serve."""
    if not 0 < k <= size:
        raise ConfigError(f"{op}: k must lie between 1 and the {size} candidates, found {k}")


def check_countable(op: str, shape: Shape) -> None:
    """Refuses more entries on a device than an int32, in which they are counted, has numbers for."""
    entries = math.prod(shape.values())
    if entries >= 2**31:
        raise ConfigError(
            f"{op}: counts at most {2**31 - 1} entries on a device, found {entries} ({dict(shape)}); take fewer rows "
            "at once, or more devices"
        )
