"""`jaxsae train`: a run from a configuration."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from jaxsae import parallel
from jaxsae.train import TrainConfig, train
from jaxsae.train.memory import keep_freed_memory


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a dictionary on a cache of activations, or go on with a run that was stopped.

    The output folder gets config.yaml, log.jsonl, checkpoints, the exported dictionary in sae/ and, at the end,
    train.json.  Ctrl-C or SIGTERM saves and ends with status 130 or 143; the same command then continues.
    """

    def run(self) -> dict[str, Any]:
        """Trains, prints a short table, and returns what train.json holds."""
        keep_freed_memory()
        config = TrainConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(TrainConfig)})
        result = train(config)
        if parallel.first():
            print_table(result.summary)
        return result.summary


def print_table(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{summary['recipe']} at {summary['site']}", show_header=False)
    records = (("train", summary.get("train", {})), ("held-out", summary.get("heldout", {})))
    table.add_row("width", f"{summary['d_in']} to {summary['d_sae']} latents")
    table.add_row("steps", f"{summary['steps']:,} ({summary['tokens_trained']:,} tokens)")
    table.add_row("time", f"{summary['seconds']:.0f} s")
    for name, key in (("FVU", "fvu"), ("L0", "l0"), ("dead share", "dead_share")):
        values = [f"{_number(m[key])} {kind}" for kind, m in records if key in m]
        if values:
            table.add_row(name, ", ".join(values))
    table.add_row("dictionary", summary["sae"] or summary["left_out"])
    Console().print(table)
    if "runs" in summary:
        Console().print(_runs_table(summary["runs"]))


def _runs_table(runs: list[dict[str, Any]]) -> Any:
    """One line per run of a sweep."""
    from rich.table import Table

    names = [n for n in ("loss", "fvu", "l0", "dead_share") if any(n in r for r in runs)]
    table = Table("run", *names, "dictionary", title="runs of the sweep")
    for run in runs:
        numbers = [_number(run.get(n)) for n in names]
        left = f"diverged at step {run['stopped']}" if "stopped" in run else run.get("sae") or run["left_out"]
        table.add_row(run["name"], *numbers, left)
    return table


def _number(value: float | None) -> str:
    """None stands for what is not known, or was not finite when the log was written."""
    return "-" if value is None else f"{value:.4g}"
