"""Collectives of a compiled program: read from its text, with the bytes that each device receives."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_WIDTH = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_LINE = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({_KINDS})(-start)?\(", re.M)
_BLOCK = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\([^\n]*)?\{\n(.*?)^\}", re.M | re.S)


@dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
        kind: its name in the program.
        shape: of what it returns on a device.
        devices: that take part together.
        received: bytes a device receives by the ring algorithm, in all turns of the loops around it together.
        where: "always"; "branch" if only some sides of a conditional have it; "loop" in a loop that does not tell how
            many turns it takes: one of them is counted.
        source: the operation of the program it comes from, as jax names it.
        times: turns of the loops around it.
    """

    kind: str
    shape: str
    devices: int
    received: float
    where: str
    source: str
    times: int = 1


def collectives(text: str) -> list[Collective]:
    """All collectives of a compiled program's text, in the order they stand there.

    Example:
        >>> line = "  %a = f32[8,4]{1,0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%add"
        >>> collectives("ENTRY %main (x: f32[8,4]) -> f32[8,4] {\\n" + line + "\\n}\\n")[0].received
        192.0
    """
    blocks = dict(_BLOCK.findall(text))
    inside, all_devices = _places(blocks), re.search(r"num_partitions=(\d+)", text)
    count = int(all_devices[1]) if all_devices else 2
    found = {name: list(_of_block(body, *inside.get(name, ("always", 1)), count)) for name, body in blocks.items()}
    for body in blocks.values():
        for sides in _conditionals(body):
            if all(inside.get(name, ("", 1))[0] == "branch" for name in sides):
                _once_for_all_sides(found, sides)
    return [c for listed in found.values() for c in listed]


def _conditionals(body: str) -> Iterator[list[str]]:
    """The computations between which each conditional of a block chooses."""
    for names in re.findall(r"branch_computations=\{([^}]*)\}", body):
        yield [n.strip().lstrip("%") for n in names.split(",")]
    for line in body.splitlines():
        sides = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
        if sides:
            yield sides


def _once_for_all_sides(found: dict[str, list[Collective]], sides: list[str]) -> None:
    """What the cheapest side of a conditional receives is received always; of the others what they add stays."""
    cheapest = min(sides, key=lambda name: sum(c.received for c in found.get(name, [])))
    shared = Counter((c.kind, c.shape) for c in found.get(cheapest, []))
    for name in sides:
        left, kept = Counter(shared), []
        for c in found.get(name, []):
            if name == cheapest:
                kept.append(dataclasses.replace(c, where="always"))
            elif left[c.kind, c.shape]:
                left[c.kind, c.shape] -= 1
            else:
                kept.append(c)
        found[name] = kept


def _of_block(body: str, where: str, times: int, count: int) -> Iterator[Collective]:
    for line in body.splitlines():
        found = _LINE.match(line)
        if found:
            result, kind, start = found.groups()
            shapes = _SHAPE.findall(result)
            if start and kind != "all-reduce":  # (operands, results, ...): the results are the second half
                shapes = shapes[len(shapes) // 2 :] if kind != "collective-permute" else shapes[1:2]
            devices = _group(line, count)
            size = sum(_WIDTH.get(t, 8 if t[-2:] == "64" else 4) * _count(dims) for t, dims in shapes)
            source = re.search(r'op_name="([^"]*)"', line)
            described = ", ".join(f"{t}[{dims}]" for t, dims in shapes)
            received = times * _received(kind, size, devices)
            yield Collective(kind, described, devices, received, where, source[1] if source else "", times)


def _received(kind: str, size: float, devices: int) -> float:
    others = (devices - 1) / devices
    return {
        "all-gather": others * size,
        "all-reduce": 2 * others * size,
        "reduce-scatter": (devices - 1) * size,
        "all-to-all": others * size,
        "collective-permute": size,
    }[kind]


def _count(dims: str) -> int:
    return math.prod(int(n) for n in dims.split(",") if n)


def _group(line: str, count: int) -> int:
    """Devices of one replica group: `[groups,size]<=[...]`, `{{0,1,...},...}`, or `{}` for all `count` devices."""
    compact = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if compact:
        return int(compact[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(listed[1].split(",")) if listed else count


def _places(blocks: dict[str, str]) -> dict[str, tuple[str, int]]:
    """For every computation that runs not just once: "branch", "loop" or "always", and its turns in loops."""
    calls = {name: list(_calls(body, blocks)) for name, body in blocks.items()}
    called = {other for found in calls.values() for other, *_ in found}
    found: dict[str, tuple[str, int]] = {}
    left: list[tuple[str, str, int]] = [(name, "always", 1) for name in blocks if name not in called]
    while left:
        name, where, times = left.pop()
        if found.get(name) == (where, times) or found.get(name, ("", 1))[0] == "branch":
            continue
        found[name] = where, times
        for other, how, turns in calls[name]:
            left.append((other, where if where == "branch" or how == "always" else how, times * turns))
    return found


def _calls(body: str, blocks: dict[str, str]) -> Iterator[tuple[str, str, int]]:
    """The computations that a block hands over to: (name, whether that is sure, turns)."""
    for sides in _conditionals(body):
        yield from ((name, "branch", 1) for name in sides if name in blocks)
    for line in body.splitlines():
        turns = _turns(line, blocks) if " while(" in line else 1
        for name in re.findall(r"\b(?:body|condition|calls|to_apply)=%?([\w.\-]+)", line):
            if name in blocks:
                yield name, "loop" if turns is None else "always", turns or 1


def _turns(line: str, blocks: dict[str, str]) -> int | None:
    """Of a while loop: as the compiler notes it, else as its condition compares jax's counter, which starts at 0."""
    told = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if told:
        return int(told[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    body = blocks.get(condition[1], "") if condition else ""
    compared = re.search(r"ROOT .* compare\(([^)]*)\), direction=LT", body)
    limit = compared[1].split()[-1].lstrip("%") if compared else None
    constant = limit and re.search(rf"^\s*%?{re.escape(limit)} = \S+ constant\((\d+)\)", body, re.M)
    return int(constant[1]) if constant else None
