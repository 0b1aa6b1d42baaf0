"""A7: AbsTopK on features with two directions."""

from jaxsae.recipes import abs_topk
from jaxsae.science.arms import DEAD, job, topk_arm
from jaxsae.science.beds import S5, D, S
from jaxsae.science.finding import Finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0 = 4.0


@study(
    "A7",
    "abs_topk",
    "Zhu, Khalili & Zhu 2025, 2510.00404",
    "On features with two signs AbsTopK needs one latent per axis, TopK two, and has a lower FVU at equal k.",
    "S5",
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    ks = (3, 4, 5)
    recipe = abs_topk(D, S, k=max(ks), normalize_activations=False, dead_after_tokens=DEAD)
    ours, theirs = lab.arm("AbsTopK", job(recipe, S5), "k", ks, L0), topk_arm(lab, S5, L0, ks)
    return [
        lab.compare("live latents per true axis at L0 = 4, below TopK", ours, theirs, "latents_per_axis", L0),
        lab.compare("FVU at L0 = 4, below TopK", ours, theirs, "fvu", L0),
    ]
