"""Counts the instruction bundles of kernels in the final code of the TPU compiler, without a TPU.

A bundle issues in one cycle if nothing stalls, so bundles per unit of work (a block of 8 x 128 values, a row, a pair)
are the part of a kernel's speed that can be seen without hardware.  They do not show stalls of memory or of the matrix
unit.

    python -m jaxsae.testing.bundles                    all cases against the committed table
    python -m jaxsae.testing.bundles NAME ... --write   measure these and write them into the table
    python -m jaxsae.testing.bundles NAME --loops       the loops of one case, to choose what its count adds up
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxsae.errors import ConfigError, closest
from jaxsae.testing import tpu_aot

#: Measured counts, committed; the test compares with it.
TABLE = pathlib.Path(__file__).parent.parent / "kernels" / "bundles.json"
#: Growth of a count that fails the test.
TOLERANCE = 0.10

#: Bundles behind a branch that are issued before it takes effect.
DELAY = 4

_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+((?:[A-Z]{2},?\s*)*):\s*>*\s*\{")
_BRANCH = re.compile(r"\bsbr\.[^;}]*target = \$region(\d+)")
_REGION = re.compile(r"Start region (\d+)")


@dataclasses.dataclass(frozen=True)
class Loop:
    """One loop of a kernel's final code.

    Attributes:
        depth: 1 for the outermost (usually the grid), 2 for a loop inside it, ...
        bundles: of one pass through its body, inner loops counted once.
        own: the same without inner loops.
        slots: how many bundle slots of each unit (MXU, VALU, VLOAD, VSTORE, ...) its own bundles use.
    """

    depth: int
    bundles: int
    own: int
    slots: dict[str, int] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class Case:
    """A kernel at a shape on a chip, and how to count it.

    Attributes:
        name: key in the table, `kernel.chip.shape` by habit.
        chip: a key of `tpu_aot.CHIPS`.
        build: returns a function and its abstract arguments.
        kernel: the `name` given to `pallas_call`.
        unit: what the count is per: "vreg" (8 x 128 values), "row", "pair".
        count: bundles per unit, given the loops in the order in which they begin.
        what: the shape and dtypes, for readers of the table.
        quick: small enough for the default test run.
    """

    name: str
    chip: str
    build: Callable[[], tuple[Callable, Sequence[Any]]]
    kernel: str
    unit: str
    count: Callable[[list[Loop]], float]
    what: str = ""
    quick: bool = False


def loops(final: str, utilisation: str = "") -> list[Loop]:
    """The loops in a kernel's final code, in the order in which they begin.

    A loop reaches from its head to the branch that jumps back to the head, and over the bundles in that branch's delay
    slots.  The marks of depth in the dump are no guide: code of an enclosing loop that the compiler has moved into the
    body under a predicate keeps the outer mark, and yet is issued on every pass.

    Args:
        final: text of the dump named `..-final_bundles.txt`.
        utilisation: text of the dump named `..static-per-bundle-utilization.txt`, for `Loop.slots`.

    Raises:
        ConfigError: a loop without a branch back, so that the format of the dump must have changed.
    """
    bundles = _bundles(final)
    last_jump: dict[str, int] = {}
    for at, (_, text) in enumerate(bundles):
        last_jump.update((region, at) for region in _BRANCH.findall(text))
    extents = []
    for start, (labels, text) in enumerate(bundles):
        if "LB" in labels:
            ends = [e for region in _REGION.findall(text) if (e := last_jump.get(region, -1)) >= start]
            if not ends:
                raise ConfigError(f"the loop at bundle {start} has no branch back; has the compiler's dump changed?")
            extents.append((start, min(max(ends) + DELAY, len(bundles) - 1)))
    names, used = _slots(utilisation)
    return [_loop(extent, extents, names, used) for extent in extents]


def _bundles(final: str) -> list[tuple[str, str]]:
    """(labels, text) of every bundle; comments may carry a bundle over several lines."""
    found: list[tuple[str, str]] = []
    for line in final.splitlines():
        if head := _BUNDLE.match(line):
            found.append((head.group(1), line))
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + "\n" + line)
    return found


def _loop(extent: tuple[int, int], extents: list[tuple[int, int]], names: list[str], used: list[list[int]]) -> Loop:
    start, stop = extent
    around = sum(a <= start and stop <= b for a, b in extents)
    inner = {i for a, b in extents if start < a and b <= stop for i in range(a, b + 1)}
    mine = [i for i in range(start, stop + 1) if i not in inner]
    slots = {n: sum(used[i][c] for i in mine) for c, n in enumerate(names)} if used else {}
    return Loop(around, stop + 1 - start, len(mine), slots)


def _slots(text: str) -> tuple[list[str], list[list[int]]]:
    if "== UTILIZATION:" not in text:
        return [], []
    head, table = text.split("== UTILIZATION:")
    names = [n.strip() for n in head.strip().splitlines()[-2].split(",")]
    return names, [[int(n) for n in row.split()] for row in table.strip().splitlines() if row.strip()]


def cases() -> dict[str, Case]:
    """Every case, by name."""
    from jaxsae.testing import bundle_cases

    return {c.name: c for c in bundle_cases.CASES}


def measure(case: Case) -> dict[str, Any]:
    """Compiles a case in a fresh process that dumps its final code; returns its entry for the table.

    Raises:
        ConfigError: the process failed (its last words are in the message) or dumped no such kernel.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = _dump(case, pathlib.Path(folder))
    return {
        "chip": case.chip,
        "what": case.what,
        "unit": case.unit,
        "bundles": round(case.count(found), 2),
        "libtpu": tpu_aot.libtpu_version(),
        "jax": jax.__version__,
    }


def _dump(case: Case, folder: pathlib.Path) -> list[Loop]:
    flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final.*"
    environment = {
        **os.environ,
        "LIBTPU_INIT_ARGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program out of the cache dumps nothing
        "TPU_LOG_DIR": "disabled",
    }
    command = [sys.executable, "-m", "jaxsae.testing.bundles", "--compile", case.name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{case.name} does not compile for {case.chip}: {done.stderr.strip()[-800:]}")
    finals = [p for p in folder.glob("*final_bundles.txt") if f"-{case.kernel}." in p.name and "schedule" not in p.name]
    if not finals:
        raise ConfigError(f"{case.name}: the compiler dumped no kernel {case.kernel!r}")
    prefix = finals[0].name[: finals[0].name.index(f"-{case.kernel}.")]
    use = list(folder.glob(f"{prefix}-{case.kernel}.*static-per-bundle-utilization.txt"))
    return loops(finals[0].read_text(errors="replace"), use[0].read_text() if use else "")


def table() -> dict[str, dict[str, Any]]:
    """The committed counts."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def growth(case: Case) -> str | None:
    """None if the case counts at most a tenth more than the committed table says; else a sentence about it."""
    old = table().get(case.name)
    if old is None:
        return f"{case.name} is not in {TABLE.name}; run python -m jaxsae.testing.bundles {case.name} --write"
    new = measure(case)
    if new["bundles"] <= old["bundles"] * (1 + TOLERANCE):
        return None
    return (
        f"{case.name}: {new['bundles']} bundles per {case.unit} (libtpu {new['libtpu']}), "
        f"the table has {old['bundles']} (libtpu {old['libtpu']})"
    )


def markdown() -> str:
    """The committed table for `docs/kernels.md`."""
    lines = ["| kernel | chip | at | bundles | per | libtpu |", "| --- | --- | --- | --- | --- | --- |"]
    for name, row in sorted(table().items()):
        cells = (name, row["chip"], row["what"], f"{row['bundles']:g}", row["unit"], row["libtpu"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxsae.testing.bundles")
    parser.add_argument("names", nargs="*", help="cases; default all")
    parser.add_argument("--write", action="store_true", help="put the counts into the table")
    parser.add_argument("--loops", action="store_true", help="show the loops instead")
    parser.add_argument("--compile", action="store_true", help="only compile (what the measuring process runs)")
    parser.add_argument("--markdown", action="store_true", help="print the committed table")
    options = parser.parse_args(arguments)
    if options.markdown:
        print(markdown())
        return 0
    known = cases()
    for name in options.names:
        if name not in known:
            raise ConfigError(f"no case {name!r}{closest(name, known)}")
    failed = False
    for case in [known[n] for n in options.names] or list(known.values()):
        if options.compile:
            f, args = case.build()
            tpu_aot.compile_for(case.chip, f, *args)
        elif options.loops:
            with tempfile.TemporaryDirectory() as folder:
                for at, loop in enumerate(_dump(case, pathlib.Path(folder))):
                    print(f"{case.name} [{at}] {'  ' * loop.depth}{loop.bundles} bundles, own {loop.own}", loop.slots)
        elif options.write:
            row = measure(case)
            TABLE.write_text(json.dumps({**table(), case.name: row}, indent=1, sort_keys=True) + "\n")
            print(case.name, row["bundles"], "per", case.unit, flush=True)
        else:
            problem = growth(case)
            failed |= problem is not None
            print(problem or f"{case.name}: within {TOLERANCE:.0%} of the table", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
