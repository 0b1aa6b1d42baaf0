"""A10: MSAE, one coder used at several sparsities."""

import numpy as np

from jaxsae.recipes import msae
from jaxsae.science.arms import job, topk_arm
from jaxsae.science.beds import S1, D, S
from jaxsae.science.budgets import BUDGETS, fvu_at, mean_log_fvu
from jaxsae.science.finding import Finding, finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study


@study(
    "A10",
    "msae",
    "Zaigrajew et al. 2025, 2502.20578",
    "One coder trained at many sparsities beats TopK coders used away from the k they were trained at.",
    "S1",
    settings=({"weighting": "uniform"}, {"weighting": "reversed"}, {"weighting": "uniform", "soft_cap": 30.0}),
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    ours = lab.single("MSAE", job(msae(D, S, k=min(BUDGETS), **setting), S1), mean_log_fvu)
    theirs = topk_arm(lab, S1, 4.0, BUDGETS)
    mine, other = [], []
    for kept in BUDGETS:
        others = fvu_at(theirs.trained, kept)
        for i, trained_at in enumerate(BUDGETS):
            if trained_at != kept:
                mine.append(np.log(fvu_at(ours, kept)[:, 0]))
                other.append(np.log(others[:, i]))
    facts = {"kept": BUDGETS, "lr": lab.rates["MSAE"], **setting, "TopK": theirs.facts}
    sides = ("MSAE", np.mean(mine, axis=0)), ("TopK off its k", np.mean(other, axis=0))
    return [finding("mean log FVU over pairs of k trained at and k kept, below TopK", *sides, facts=facts)]
