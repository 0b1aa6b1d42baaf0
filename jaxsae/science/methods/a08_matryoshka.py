"""A8: Matryoshka BatchTopK against absorption."""

from jaxsae.recipes import matryoshka
from jaxsae.science.arms import DEAD, batch_topk_arm, job
from jaxsae.science.beds import S2, D, S
from jaxsae.science.finding import Finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0, KS = 1.6, (1.2, 1.6, 2.2)


@study(
    "A8",
    "matryoshka",
    "Bussmann et al. 2025, 2503.17547",
    "Absorption is lower with nested prefixes than with BatchTopK at equal L0, at a slightly worse FVU.",
    "S2",
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    recipe = matryoshka(D, S, k=max(KS), k_aux=16, dead_after_tokens=DEAD)
    ours = lab.arm("Matryoshka", job(recipe, S2), "k", KS, L0)
    theirs = batch_topk_arm(lab, S2, L0, KS)
    return [
        lab.compare("absorption at L0 = 1.6, below BatchTopK", ours, theirs, "absorption", L0),
        lab.compare("FVU at L0 = 1.6, above BatchTopK", ours, theirs, "fvu", L0, higher=True),
    ]
