"""`jaxsae bench fleet`: a step of many runs as one program beside the same number of single steps."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

from jaxsae.cli._bench_shapes import Shape, shape_of
from jaxsae.cli._bench_timing import environment, peak_bytes, spread, timed
from jaxsae.cli._results import check_place, write_result
from jaxsae.errors import ConfigError
from jaxsae.train.memory import keep_freed_memory

#: One measurement: seconds, and seconds of this process's processors.
Call = Callable[[], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class BenchFleet:
    """Measure one step of a fleet of `topk` runs against as many single steps, in one process and in turn.

    Every run has its own seed and learning rate; all read the same rows, drawn at random.  The ratio is taken within
    each round, so that a slow minute of the machine falls on both sides of it; and once more of processor time, which
    other jobs on the machine do not add to (of an accelerator it says nothing).

    Attributes:
        shape: tiny, smol, mid, A, B or C.
        batch_size: rows per step, in place of the named shape's.
        d_in: width of the rows, likewise.
        d_sae: latents, likewise.
        k: active latents per row, likewise.
        members: runs of the fleet.
        together: how a device takes the runs: vmap or scan; auto picks by platform, as `jaxsae train` does.
        repeats: rounds.
        keep_memory: keep freed memory for the next step, as `jaxsae train` does (CPU only).
        out: where to write the result as JSON; nowhere if empty.
    """

    shape: str = "tiny"
    batch_size: int | None = None
    d_in: int | None = None
    d_sae: int | None = None
    k: int | None = None
    members: int = 8
    together: Literal["auto", "vmap", "scan"] = "auto"
    repeats: int = 7
    keep_memory: bool = True
    out: str = ""

    def run(self) -> dict[str, Any]:
        """Measures and prints a table; returns what the JSON holds."""
        shape = shape_of(self.shape, self.batch_size, self.d_in, self.d_sae, self.k)
        if self.members < 1:
            raise ConfigError(f"bench: members must be at least 1, found {self.members}")
        spread([1.0] * self.repeats)  # refuses 0 before anything is compiled
        check_place(self.out)
        if self.keep_memory:
            keep_freed_memory()
        together = None if self.together == "auto" else self.together
        calls, compilations = fleet_calls(shape, self.members, together)
        pairs = alternating(calls, self.repeats)
        seconds, processor = ({name: [pair[i] for pair in found] for name, found in pairs.items()} for i in (0, 1))
        result = {
            "shape": dataclasses.asdict(shape),
            "members": self.members,
            "seconds": {name: spread(values) for name, values in seconds.items()},
            "processor_seconds": {name: spread(values) for name, values in processor.items()},
            "fleet_over_singles": _ratios(seconds),
            "fleet_over_singles_processor": _ratios(processor),
            "fleet_compilations": compilations(),
            "memory": {"peak_bytes": peak_bytes()},
            "environment": environment(),
            "settings": dataclasses.asdict(self),
        }
        _print(result)
        write_result(self.out, result)
        return result


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    return spread([a / b for a, b in zip(seconds["fleet"], seconds["singles"], strict=True)])


def _both(run: Callable[[], Any]) -> Call:
    """A call that returns (seconds, seconds of this process's processors)."""
    measured = timed(run)

    def call() -> tuple[float, float]:
        start = time.process_time()
        return measured(), time.process_time() - start

    return call


def fleet_calls(shape: Shape, size: int, together: Any) -> tuple[dict[str, Call], Callable[[], int]]:
    """Calls to time ("fleet": one step of all runs, "singles": one step of each), and how often the fleet compiled."""
    import jax
    import numpy as np

    from jaxsae import recipes
    from jaxsae.train.fleet import Fleet, Member

    recipe = recipes.topk(shape.d_in, shape.d_sae, shape.k)
    members = tuple(Member(i, (("lr", 1e-4 * (i + 1)),)) for i in range(size))
    fleet = Fleet(recipe, members, together)
    rows = np.random.default_rng(0).standard_normal((shape.batch_size, shape.d_in), np.float32)
    batch = {"x": jax.numpy.asarray(rows)}
    alone = [recipes.init(recipe, jax.random.key(m.seed), batch, (), dict(m.values)) for m in members]
    holder = [jax.jit(fleet.init)(None, batch)]
    step, traced = _counted(fleet)

    def singles() -> Any:
        for i, state in enumerate(alone):
            alone[i], _ = recipes.step(recipe, state, batch)
        return [state.params for state in alone]

    def all_together() -> Any:
        holder[0], metrics = step(holder[0], batch)
        return holder[0].params, metrics

    return {"fleet": _both(all_together), "singles": _both(singles)}, lambda: len(traced)


def _counted(fleet: Any) -> tuple[Callable, list[int]]:
    """The jitted step, and a list that grows with every program it compiles."""
    import jax

    traced: list[int] = []

    def step(states: Any, batch: Any) -> Any:
        traced.append(1)
        return fleet.step(states, batch)

    return jax.jit(step, donate_argnums=0), traced


def alternating(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """What every call returns in each round, the order turned round every time; a first round does not count.

    Example:
        >>> alternating({"a": lambda: 1.0, "b": lambda: 2.0}, 2)
        {'a': [1.0, 1.0], 'b': [2.0, 2.0]}
    """
    found: dict[str, list[Any]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            measured = calls[name]()
            if turn:
                found[name].append(measured)
    return found


def _print(result: dict[str, Any]) -> None:
    import rich.console
    from rich.table import Table

    size = result["members"]
    title = f"{size} runs, {result['shape']}, {result['environment']['device']}"
    table = Table("what", "ms (median)", "lowest", "highest", title=title)
    for name, told in (("fleet", f"one step of a fleet of {size}"), ("singles", f"{size} single steps")):
        table.add_row(told, *(f"{1e3 * result['seconds'][name][key]:.1f}" for key in ("median", "min", "max")))
    ratio, processor = result["fleet_over_singles"], result["fleet_over_singles_processor"]
    console = rich.console.Console(stderr=True)
    console.print(table)
    console.print(
        f"fleet / singles {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}), of processor time "
        f"{processor['median']:.3f} ({processor['min']:.3f} to {processor['max']:.3f}), compiled "
        f"{result['fleet_compilations']} time{'s' if result['fleet_compilations'] > 1 else ''}"
    )
