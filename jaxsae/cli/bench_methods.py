"""`jaxsae bench methods`: what a training step of every published method costs, relative to `topk`."""

import dataclasses
import time
from typing import Any

import numpy as np

from jaxsae.cli._bench_timing import environment, spread
from jaxsae.cli._results import check_place, write_result
from jaxsae.errors import ConfigError, closest


@dataclasses.dataclass(frozen=True)
class BenchMethods:
    """Step time of every method at one size, in one process, methods taking turns.

    Attributes:
        rows: rows per batch.
        d_in: width of the rows.
        d_sae: number of latents.
        k: latents per row, for methods that have a k.
        repeats: timed steps per method; median, lowest and highest are reported.
        warm_up: steps before; early steps of some methods are not typical.
        only: names of methods, comma-separated; all if empty.  `topk` always runs.
        out: where to write the result as JSON; nowhere if empty.
    """

    rows: int = 1024
    d_in: int = 256
    d_sae: int = 4096
    k: int = 32
    repeats: int = 15
    warm_up: int = 10
    only: str = ""
    out: str = ""

    def run(self) -> dict[str, Any]:
        """Measures and prints a table; returns what the JSON holds."""
        import jax

        for name in ("rows", "d_in"):
            if getattr(self, name) < 1:
                raise ConfigError(f"bench methods: {name} must be at least 1, found {getattr(self, name)}")
        spread([1.0] * self.repeats)  # refuses 0 before anything is compiled
        check_place(self.out)
        steps = {name: self._ready(recipe) for name, recipe in self._recipes().items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(self.repeats):
            for name, step in steps.items():
                start = time.perf_counter()
                jax.block_until_ready(step())
                seconds[name].append(time.perf_counter() - start)
        base = float(np.median(seconds["topk"]))
        result = {
            "methods": {
                name: {**spread([1e3 * s for s in times]), "factor": float(np.median(times)) / base}
                for name, times in seconds.items()
            },
            "unit": "ms per step",
            "environment": environment(),
            "settings": dataclasses.asdict(self),
        }
        _print(result)
        write_result(self.out, result)
        return result

    def _recipes(self) -> dict[str, Any]:
        """Every method at this size; k, where a method has one, is the same."""
        from jaxsae.recipes import configs

        known = configs()
        wanted = ["topk", *(n.strip() for n in self.only.split(",") if n.strip())] if self.only else list(known)
        found = {}
        for name in dict.fromkeys(wanted):
            if name not in known:
                raise ConfigError(f"bench methods: no method {name!r}{closest(name, known)}")
            fields = {f.name for f in dataclasses.fields(known[name])}  # type: ignore[arg-type]
            given = {n: v for n, v in (("k", self.k), ("lr_warm_up_steps", 0)) if n in fields}
            config: Any = known[name](d_sae=self.d_sae, **given)  # type: ignore[call-arg]
            found[name] = config.build(d_in=self.d_in, training_steps=10_000)
        return found

    def _ready(self, recipe: Any) -> Any:
        """A closure that makes one compiled step after the other, warmed up."""
        import jax

        from jaxsae import recipes

        random = np.random.default_rng(0)
        atoms = random.standard_normal((self.d_sae, self.d_in)).astype(np.float32)
        on = random.random((self.rows, self.d_sae)) < self.k / self.d_sae
        batch = {"x": jax.numpy.asarray((on * random.exponential(size=on.shape)).astype(np.float32) @ atoms)}
        state = [recipes.init(recipe, jax.random.key(0), batch)]

        def step() -> Any:
            state[0], metrics = recipes.step(recipe, state[0], batch)
            return metrics

        for _ in range(self.warm_up):
            jax.block_until_ready(step())
        return step


def _print(result: dict[str, Any]) -> None:
    import rich.console
    from rich.table import Table

    s = result["settings"]
    title = f"B {s['rows']}, d_in {s['d_in']}, d_sae {s['d_sae']}, k {s['k']}, {result['environment']['device']}"
    table = Table("method", "ms per step (median)", "lowest", "highest", "times topk", title=title)
    for name, r in sorted(result["methods"].items(), key=lambda item: item[1]["factor"]):
        table.add_row(name, *(f"{r[k]:.1f}" for k in ("median", "min", "max")), f"{r['factor']:.2f}")
    rich.console.Console(stderr=True).print(table)
