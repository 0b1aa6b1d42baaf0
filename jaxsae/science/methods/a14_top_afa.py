"""A14: top-AFA, which has no k."""

import numpy as np

from jaxsae.recipes import top_afa
from jaxsae.science.arms import DEAD, job, topk_arm
from jaxsae.science.beds import S4, D, S
from jaxsae.science.finding import Finding, finding
from jaxsae.science.fleet import Trained
from jaxsae.science.lab import Arm, Lab
from jaxsae.science.studies import study

KS = (4, 8, 16, 32, 64)


@study(
    "A14",
    "top_afa",
    "Lee et al. 2025, 2503.24277",
    "Without a k, L0 follows the complexity of rows, and the FVU is below that of TopK at the L0 it settles on.",
    "S4",
    settings=({"afa_coefficient": 1 / 16}, {"afa_coefficient": 1.0}, {"afa_coefficient": 1 / 256}),
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    recipe = top_afa(D, S, normalize_activations=False, dead_after_tokens=DEAD, k_aux=16, **setting)
    trained = lab.single("top-AFA", job(recipe, S4), _error)
    ours = Arm("top-AFA", trained, trained.judge(), {"lr": lab.rates["top-AFA"], **setting})
    theirs = topk_arm(lab, S4, 6.0, KS)
    l0, fvu = ours.values("l0")[:, 0], ours.values("fvu")[:, 0]
    facts = {"l0": l0.tolist(), ours.name: ours.facts, theirs.name: theirs.facts}
    follows, fixed = ours.values("count_correlation")[:, 0], theirs.at("count_correlation", l0)
    claim = "correlation of a row's L0 with its true count, above TopK"
    return [
        finding(
            "FVU at its own mean L0, below TopK there", (ours.name, fvu), ("TopK", theirs.at("fvu", l0)), False, facts
        ),
        finding(claim, (ours.name, follows), ("TopK", fixed), True, facts),
    ]


def _error(trained: Trained) -> np.ndarray:
    return Arm("", trained, trained.judge(), {}).values("fvu")
