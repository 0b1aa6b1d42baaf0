"""A12: Feature Choice and Mutual Choice."""

from jaxsae.recipes import feature_choice, mutual_choice
from jaxsae.science.arms import DEAD, job, topk_arm
from jaxsae.science.beds import S1, S4, D, S
from jaxsae.science.finding import Finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0, MEAN = 4.0, 6.0


@study(
    "A12",
    "feature_choice",
    "Ayonrinde 2024, 2411.02124",
    "Feature Choice has fewer dead latents than TopK; Mutual Choice has a lower FVU where rows differ.",
    "S1, S4",
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    options = {"normalize_activations": False, "dead_after_tokens": DEAD}
    chosen = lab.arm("Feature Choice", job(feature_choice(D, S, k=6, **options), S1), "k", (3.0, 4.5, 7.0), L0)
    mutual = lab.arm("Mutual Choice", job(mutual_choice(D, S, k=8, **options), S4), "k", (4.5, 6.0, 8.0), MEAN)
    return [
        lab.compare("dead share at L0 = 4 (S1), below TopK", chosen, topk_arm(lab, S1, L0), "dead", L0),
        lab.compare("FVU at mean L0 = 6 (S4), below TopK", mutual, topk_arm(lab, S4, MEAN, (4, 6, 8)), "fvu", MEAN),
    ]
