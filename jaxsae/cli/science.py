"""`jaxsae science`: the headline ordering of every method's paper, in miniature."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxsae.errors import ConfigError


@dataclass(frozen=True)
class Science:
    """Try the headline claim of every method's paper on testbeds with known features; about half an hour on two cores.

    Writes science.md and science.json.  A finished study is kept in the run directory, so an interrupted command goes
    on where it was; a study whose code or seeds changed is run again.

    Attributes:
        only: studies to run, by id or method (A6, batch_topk); none for all.
        seeds: number of seeds, from 0 on; at least 2.
        out: folder of science.md and science.json.
        run_dir: folder that keeps finished studies.
        steps_factor: multiplies the length of every run; below 1 for a quick look.
    """

    only: tuple[str, ...] = ()
    seeds: int = 5
    out: Path = Path("docs")
    run_dir: Path = Path("runs/science")
    steps_factor: float = 1.0

    def run(self) -> dict[str, Any]:
        """Runs what is missing, prints the table, and returns what science.json holds of it."""
        from jaxsae.cli._stages import stages
        from jaxsae.science import Lab, page, studies
        from jaxsae.train.memory import keep_freed_memory

        keep_freed_memory()
        if self.seeds < 2 or self.steps_factor <= 0:
            raise ConfigError(
                f"a spread needs at least 2 seeds and runs of some length, found {self.seeds} seeds and a factor of "
                f"{self.steps_factor:g}"
            )
        began = time.perf_counter()
        with stages() as progress:
            lab = Lab(tuple(range(self.seeds)), self.steps_factor, progress)
            records = studies.run(lab, self.run_dir, self.only)
        how = page.circumstances(self._command(), time.perf_counter() - began)
        page.write(self.out, records, how)
        self._print(records)
        return {"run": how, "studies": records}

    def _command(self) -> str:
        only = "".join(f" {name}" for name in self.only)
        words = [f"--only{only}"] if only else []
        words += [f"--seeds {self.seeds}"] if self.seeds != 5 else []
        words += [f"--steps-factor {self.steps_factor:g}"] if self.steps_factor != 1 else []
        return " ".join(["jaxsae science", *words])

    def _print(self, records: list[dict[str, Any]]) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table("study", "headline", "effect", "spread", "verdict")
        for r in records:
            for f in r["tried"][0]["findings"][:1]:
                table.add_row(r["id"], escape(f["claim"]), f"{f['effect']:.3g}", f"{f['spread']:.3g}", r["verdict"])
            if not r["tried"][0]["findings"]:
                table.add_row(r["id"], escape(r["tried"][0]["problem"]), "", "", r["verdict"])
        table.add_row("", f"written to {escape(str(self.out / 'science.md'))}", "", "", "")
        Console().print(table)
