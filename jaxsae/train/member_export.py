"""What a sweep leaves behind: a dictionary and a summary for each of its runs."""

import json
from typing import Any

import numpy as np

from jaxsae.io import save
from jaxsae.sae import SAE, Meta
from jaxsae.train.fleet import HEALTH, Fleet
from jaxsae.train.loop import Fitted
from jaxsae.train.run_dir import RunDir, write_atomic


def export_members(
    fleet: Fleet, fitted: Fitted, run_dir: RunDir, meta: Meta, summary: dict[str, Any]
) -> tuple[dict[str, Any], SAE]:
    """Exports every run that did not diverge into `members/<nn>/`, and the one with the lowest loss into `sae/`.

    Losses of runs with different coefficients are not one scale; the choice only decides what `sae/` holds.

    Args:
        fleet: the runs.
        fitted: what the loop returned for them.
        run_dir: folder of the sweep.
        meta: provenance of the dictionaries; each run's name is added.
        summary: of the whole sweep; a list "runs" and the paths are added.

    Returns:
        the summary and the dictionary chosen.
    """
    last = fitted.metrics["train"]["members"]
    health = fitted.state.track[HEALTH]
    runs = []
    for i, member in enumerate(fleet.members):
        run: dict[str, Any] = {"name": member.name, "seed": member.seed, **dict(member.values)}
        folder = run_dir.member(i)
        if bool(health["alive"][i]):
            run |= {name: values[i] for name, values in last.items() if name != "alive"}
            save(fleet.export(fitted.state, i, meta=meta.with_extra(run=member.name)), folder.sae)
            run["sae"] = f"{run_dir}/{run_dir.member_name(i)}/sae"
        else:
            run["stopped"] = int(health["stopped"][i])
        write_atomic(folder.summary, json.dumps(run, indent=1) + "\n")
        runs.append(run)
    best = int(np.nanargmin([run.get("loss", np.nan) for run in runs]))
    sae = fleet.export(fitted.state, best, meta=meta.with_extra(run=fleet.members[best].name))
    save(sae, run_dir.sae)
    return {**{k: v for k, v in summary.items() if k != "train"}, "runs": runs, "best": best}, sae
