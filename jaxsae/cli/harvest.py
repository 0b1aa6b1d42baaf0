"""`jaxsae harvest`: text through a host model into an activation cache."""

import dataclasses
import json
import pathlib
import time
from typing import Any

from jaxsae import parallel
from jaxsae.data import Cache, HarvestConfig, harvest, open_cache
from jaxsae.data.harvest import summary as whole
from jaxsae.data.shares import claim_together, shares
from jaxsae.data.store import Folder


@dataclasses.dataclass(frozen=True)
class Harvest(HarvestConfig):
    """Run a model over text and keep its activations in a cache.

    Interrupted or killed, the same command goes on where it was.  The folder also gets harvest.json with rows, rows
    left out, norms and seconds.

    Attributes:
        out: folder of the cache, or a URL (gs://, s3://).
        estimate_only: only say how many rows, how much disk and how much time it would take.
    """

    out: str = "runs/acts"
    estimate_only: bool = False

    def run(self) -> dict[str, Any]:
        """Harvests, prints a short table, and returns what harvest.json holds."""
        config = HarvestConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(HarvestConfig)})
        return run(config, self.out, estimate_only=self.estimate_only)


def run(
    config: HarvestConfig, out: str | pathlib.Path, *, host: Any = None, estimate_only: bool = False
) -> dict[str, Any]:
    """Says what is to come, harvests with a progress bar, ends with a table and writes `harvest.json` into `out`.

    Args:
        config: what to harvest.
        out: folder or URL of the cache.
        host: the host model, where it is loaded already.
        estimate_only: stop after the estimate.
    """
    import rich.console

    console = rich.console.Console(stderr=True, quiet=not parallel.first())
    start = time.perf_counter()
    corpus = config.open_corpus()
    host = config.load_host() if host is None else host
    chosen = config.choose_mesh(host.model)
    if chosen.mesh.size > 1:
        console.print(f"host on {chosen}")
    config.manifest(host, corpus)  # an impossible site or policy is noticed before anything runs
    mine = shares(config, out, len(corpus), parallel.index(), parallel.count())
    shared = parallel.several() or len(mine) > 1  # this call is about all parts, not about one of them
    of = dataclasses.replace(config, part=0, parts=1) if shared else config
    estimate = of.estimate(host, corpus, measure=True)
    estimate = dataclasses.replace(estimate, seconds=(estimate.seconds or 0) / parallel.count())
    free = Folder(out).free_bytes()
    console.print(
        f"{corpus.identity['name']} through {host.name}: about {estimate.tokens:,} tokens, {estimate.rows:,} rows, "
        f"{estimate.bytes / 1e9:.2f} GB" + (f" of {free / 1e9:.1f} GB free" if free is not None else "") + ", "
        f"{_clock(estimate.seconds or 0)} from the beginning"
    )
    facts: dict[str, Any] = {"estimate": dataclasses.asdict(estimate)}
    if estimate_only:
        if parallel.first():
            print(json.dumps(facts["estimate"]))
        return facts
    ready = time.perf_counter()
    summary = _harvest(mine, out, host, corpus, console, estimate.tokens // parallel.count())
    if shared:
        cache = open_cache(out)
        summary = whole(cache.manifest, cache.progress)
    seconds = {"prepare": ready - start, "harvest": time.perf_counter() - ready}
    facts |= {"out": str(out), **summary, "seconds": seconds}
    name = "harvest.json" if config.parts == 1 or shared else f"harvest-{config.part:05d}.json"
    parallel.on_first("facts", lambda: Folder(out).write_json(name, facts))
    if _rows(summary):
        _table(console, open_cache(out), facts)
    return facts


def _harvest(
    mine: list[HarvestConfig], out: str | pathlib.Path, host: Any, corpus: Any, console: Any, tokens: int
) -> dict[str, Any]:
    """Harvests the parts of this process one after another; returns when all processes have theirs."""
    summary: dict[str, Any] = {}
    if parallel.several():
        claim_together(mine[0] if mine else None, out, host, corpus)
    with _progress_bar(console) as bar:
        task = bar.add_task("tokens", total=tokens, rows=0)
        tokens_before, rows_before = 0, 0

        def say(tokens: int, rows: int) -> None:
            bar.update(task, completed=tokens_before + tokens, rows=rows_before + rows)

        for part in mine:
            summary = harvest(part, out, host=host, corpus=corpus, say=say)
            tokens_before, rows_before = tokens_before + summary["tokens_run"], rows_before + _rows(summary)
    parallel.barrier("harvested")
    return summary


def _rows(summary: dict[str, Any]) -> int:
    return sum(summary["rows"].values())


def _progress_bar(console: Any) -> Any:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("[progress.description]{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.completed:,.0f} tokens, {task.fields[rows]:,} rows"),
        progress.TimeRemainingColumn(),
        console=console,
    )


def _table(console: Any, cache: Cache, facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("site", "width", "mean norm", "median", "max", title=f"{cache.path}")
    for site, s in facts["sites"].items():
        table.add_row(site, str(s["width"]), *(f"{s[k]:.4g}" for k in ("mean_norm", "median_norm", "max_norm")))
    console.print(table)
    rows = ", ".join(f"{count:,} {split}" for split, count in facts["rows"].items())
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in facts["dropped"].items()) or "none"
    console.print(f"rows: {rows}; left out: {dropped}; {facts['bytes'] / 1e6:.1f} MB")


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
