"""The Markdown page and the JSON file of what was run; no number in them is typed by hand."""

import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

#: Packages whose versions the results depend on.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn")


def circumstances(command: str, seconds: float) -> dict[str, Any]:
    """When, on what and with what something was run."""
    import jax

    import jaxsae

    return {
        "command": command,
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "seconds": round(seconds, 1),
        "jaxsae": jaxsae.__version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, {_cores()} cores",
    }


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


HEAD = """# Headline orderings in miniature

What each method's paper claims first, tried on testbeds whose true features are known (`jaxsae.data.testbed`), at a
size where a run takes seconds on a CPU core. This page is written by `jaxsae science` and `jaxsae science frontier`;
every number comes from `science.json` and `frontier.json` beside it.

How to read the table. All arms of a study share truth, data and random keys seed by seed. Every arm takes the
learning rate, out of {rates}, that gives it the least FVU on a seed that is not reported, and the same schedule and
number of steps. Sparsity is matched: a measure is read off at the same mean L0, linearly in log L0 between the two
settings of a small sweep around it (at the nearest setting where that L0 lies up to 2 % outside). **Effect** is the
mean over seeds of the paired difference, positive when it is as claimed;
**spread** is the sample standard deviation over seeds of that difference; **s.e.** is spread / sqrt(seeds). A claim is
**shown** where effect > 2 spread, **contrary** where effect < -2 spread, **not shown** otherwise. Where a study's own
setting does not show the headline, its other settings were run too, and all of them are listed below the table; the
verdict stays that of the first.

How far to trust it. Learning rates are tuned off the reported seeds; the *ranges* of the sweeps were set by hand.
Those of A1, A4, A5, A13 and A24 were moved after looking at trial seeds that are not reported. A9's further settings,
the range of k that A14 compares with and the order of A20's settings (gamma times the width first, since the paper's
squared error is a mean over coordinates and ours a sum) were chosen after seeing results on the reported seeds. Runs
are short: the L1 and gated arms prefer the largest learning rate offered, so they are probably not trained to the
end, which flatters what is compared with them (A2, A4, A5, A24). A6, A8 and A13 lie only just above two spreads.
"""


def write(folder: Path, records: Sequence[Mapping[str, Any]] | None, how: Mapping[str, Any] | None) -> None:
    """Writes `science.json` (where records are given) and `science.md` from what is in the folder.

    Args:
        folder: docs, usually.
        records: what `studies.run` returned; None keeps those in the file.
        how: what `circumstances` returned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if records is not None:
        merged = {r["id"]: r for r in _read(folder / "science.json").get("studies", [])} | {r["id"]: r for r in records}
        ordered = sorted(merged.values(), key=lambda r: int(r["id"][1:]))
        (folder / "science.json").write_text(json.dumps({"run": how, "studies": ordered}, indent=1) + "\n")
    (folder / "science.md").write_text(page(_read(folder / "science.json"), _read(folder / "frontier.json")))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def page(science: Mapping[str, Any], frontier: Mapping[str, Any]) -> str:
    """The whole page."""
    from jaxsae.science.lab import LEARNING_RATES

    parts = [HEAD.format(rates=", ".join(f"{r:g}" for r in LEARNING_RATES))]
    if science:
        parts += [_how(science["run"]), _table(science["studies"]), _tried(science["studies"])]
    if frontier:
        parts.append(_frontier(frontier))
    return "\n".join(parts)


def _how(how: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{n} {v}" for n, v in how["packages"].items())
    return (
        f"Run (the last one, where studies were run apart): `{how['command']}`, finished {how['finished']}, "
        f"on {how['machine']} ({how['device']}); "
        f"jaxsae {how['jaxsae']}, Python {how['python']}, {packages}.\n"
    )


def _table(studies: Sequence[Mapping[str, Any]]) -> str:
    shown, minutes = sum(r["verdict"] == "shown" for r in studies), sum(r["seconds"] for r in studies) / 60
    lines = [
        f"{shown} of {len(studies)} headlines shown. The first row of each study is its headline. The studies took "
        f"{minutes:.0f} minutes in sum, arms that several of them share counted once.\n",
        "| study | claim | testbed | as claimed better | other | effect | spread | s.e. | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in studies:
        findings = r["tried"][0]["findings"]
        if not findings:
            lines.append(f"| {r['id']} `{r['method']}` | {r['claim']} | {r['bed']} | | | | | | {r['verdict']} |")
        for i, f in enumerate(findings):
            name = f"**{r['id']}** `{r['method']}`" if i == 0 else ""
            claim = f["claim"].replace("|", "\\|")
            lines.append(f"| {name} | {claim} | {r['bed'] if i == 0 else ''} | {_numbers(f)} |")
    return "\n".join(lines) + "\n"


def _numbers(f: Mapping[str, Any]) -> str:
    sides = [f"{name} {mean:.4g}" for name, mean in (f["better"], f["worse"])]
    tail = [f"{f[n]:.3g}" for n in ("effect", "spread", "standard_error")]
    return " | ".join([*sides, *tail, f["verdict"]])


def _tried(studies: Sequence[Mapping[str, Any]]) -> str:
    lines = ["## Studies one by one\n"]
    for r in studies:
        seeds, took = ", ".join(map(str, r["seeds"])), f"{r['seconds']:.0f} s"
        lines.append(f"**{r['id']} `{r['method']}`** ({r['paper']}). {r['claim']} Seeds {seeds}; {took}.\n")
        if len(r["tried"]) > 1 or r["tried"][0].get("problem"):
            lines += [
                f"- {_setting(t['setting'])}: "
                + "; ".join([*(f"{f['claim']}: {_short(f)}" for f in t["findings"]), *filter(None, [t.get("problem")])])
                for t in r["tried"]
            ] + [""]
    return "\n".join(lines)


def _setting(setting: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{n} = {v:.4g}" if isinstance(v, float) else f"{n} = {v}" for n, v in setting.items()) or "default"
    )


def _short(f: Mapping[str, Any]) -> str:
    return f"{f['effect']:.3g} ± {f['spread']:.3g} ({f['verdict']})"


def _frontier(frontier: Mapping[str, Any]) -> str:
    s, n = frontier["study"], len(frontier["points"])
    families = len({p["family"] for p in frontier["points"]})
    return f"""## Frontier on a real model

![FVU and loss recovered against L0](frontier.svg)

{n} points of {families} families and baselines on {frontier["data"]}: d_sae {s["d_sae"]}, {s["steps"]} steps of
{s["rows"]} rows ({s["steps"] * s["rows"]:,} tokens) for every trained family, learning rate {s["lr"]:g} for all of
them (not tuned), the same schedule, b_dec from the geometric median, rows scaled by one constant; FVU and L0 on
{s["eval_rows"]:,} held-out rows, loss recovered (against mean ablation) on about {s["ce_tokens"]:,} held-out tokens.
Bars are the sample standard deviation over seeds. Methods at so small a budget are far from converged: this ranks them
at this budget, not in general. The baselines are fitted on 16,384 rows many times over (ICA and NMF with 128
components, stopped after 200 iterations), and k-means, NMF and random directions are coded by matching pursuit, k
passes over the dictionary where an encoder makes one: a bar to pass, not methods at equal cost. Data:
[frontier.json](frontier.json).

{_frontier_table(frontier["points"])}

{_how(frontier["run"])}
"""


#: L0s at which the frontiers are read off.
AT = (16, 32)


def _frontier_table(points: Sequence[Mapping[str, Any]]) -> str:
    """Per family, FVU and loss recovered at `AT`: mean and sample standard deviation over seeds."""
    heads = [f"{what} at L0 = {l0}" for l0 in AT for what in ("FVU", "loss recovered")]
    lines = [f"| family | {' | '.join(heads)} | dead share |", "| --- |" + " --- |" * (len(heads) + 1)]
    for family in dict.fromkeys(p["family"] for p in points):
        ours = [p for p in points if p["family"] == family]
        seeds = [[p for p in ours if p["seed"] == n] for n in sorted({p["seed"] for p in ours})]
        cells = [_over([_read_off(s, n, l0) for s in seeds]) for l0 in AT for n in ("fvu", "loss_recovered_mean")]
        dead = _over([max(p["dead_share"] for p in s) for s in seeds])
        lines.append(f"| {family} | {' | '.join(cells)} | {dead} |")
    note = "Read off on straight lines in (log L0, log value); a dash where a family was not measured on both sides."
    return "\n".join([*lines, "", f"{note} Dead share: the most of a family's settings."])


def _read_off(points: Sequence[Mapping[str, Any]], name: str, l0: float) -> float:
    """NaN where a value is not positive: such a frontier has no logarithm."""
    from jaxsae.evals.frontier import at_l0

    if any(p["l0"] <= 0 or p[name] <= 0 for p in points):
        return math.nan
    return at_l0(np.array([p["l0"] for p in points]), np.array([p[name] for p in points]), l0)


def _over(values: Sequence[float]) -> str:
    if not np.all(np.isfinite(values)):
        return "–"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")
