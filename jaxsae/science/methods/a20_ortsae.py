"""A20: OrtSAE against compositions of features."""

from jaxsae.recipes import ortsae
from jaxsae.science.arms import DEAD, batch_topk_arm, job
from jaxsae.science.beds import S3, D, S
from jaxsae.science.finding import Finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0, KS = 2.5, (1.8, 2.5, 3.4)


@study(
    "A20",
    "ortsae",
    "Korznikov et al. 2025, 2509.22033",
    "Atoms that are kept apart compose fewer features than BatchTopK at equal L0.",
    "S3",
    # The paper's gamma 0.25 goes with a mean over entries; here the squared error is a sum over D of them.
    settings=(
        {"orthogonality_coefficient": 0.25 * D},
        {"orthogonality_coefficient": 0.25},
        {"orthogonality_coefficient": 2.0},
    ),
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    recipe = ortsae(D, S, k=max(KS), k_aux=16, normalize_activations=False, dead_after_tokens=DEAD, **setting)
    ours, theirs = lab.arm("OrtSAE", job(recipe, S3), "k", KS, L0), batch_topk_arm(lab, S3, L0, KS)
    return [
        lab.compare("composition rate at L0 = 2.5, below BatchTopK", ours, theirs, "composition", L0),
        lab.compare("mean nearest-neighbour cosine at L0 = 2.5, below BatchTopK", ours, theirs, "mean_max_cosine", L0),
        lab.compare("FVU at L0 = 2.5, above BatchTopK", ours, theirs, "fvu", L0, higher=True),
    ]
