"""A11: HierarchicalTopK, one coder for every k."""

import numpy as np

from jaxsae.recipes import hierarchical_topk
from jaxsae.science.arms import DEAD, job, topk_arm
from jaxsae.science.beds import S1, D, S
from jaxsae.science.budgets import BUDGETS, fvu_at, mean_log_fvu
from jaxsae.science.finding import Finding, finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study


@study(
    "A11",
    "hierarchical_topk",
    "Balagansky et al. 2025, 2505.24473",
    "One coder for every k is better at small k than the TopK coder trained at the largest.",
    "S1",
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    top = max(BUDGETS)
    recipe = hierarchical_topk(D, S, k=top, normalize_activations=False, dead_after_tokens=DEAD)
    ours = lab.single("HierarchicalTopK", job(recipe, S1), mean_log_fvu)
    theirs = topk_arm(lab, S1, 4.0, BUDGETS)
    facts = {"lr": lab.rates["HierarchicalTopK"], "TopK": theirs.facts, "K": top}
    below = [k for k in BUDGETS if k < top]
    mine = np.mean([np.log(fvu_at(ours, k)[:, 0]) for k in below], axis=0)
    cut = np.mean([np.log(fvu_at(theirs.trained, k)[:, -1]) for k in below], axis=0)
    own = np.mean([np.log(fvu_at(theirs.trained, k)[:, BUDGETS.index(k)]) for k in below], axis=0)
    name = f"mean log FVU with {' and '.join(map(str, below))} kept"
    return [
        finding(f"{name}, below TopK trained at {top}", ("HierarchicalTopK", mine), ("TopK, cut", cut), facts=facts),
        finding(f"{name}, below TopK trained at each", ("HierarchicalTopK", mine), ("TopK, own k", own), facts=facts),
    ]
