"""A2: TopK with AuxK, and multi-TopK at another k than it was trained at."""

from collections.abc import Iterator

from jaxsae.recipes import multi_topk
from jaxsae.science.arms import DEAD, job, relu_arm, topk_arm
from jaxsae.science.beds import S1, D, S
from jaxsae.science.budgets import fvu_at
from jaxsae.science.finding import Finding, finding
from jaxsae.science.lab import Arm, Lab
from jaxsae.science.studies import study

L0, KS = 4.0, (3, 4, 5)


@study(
    "A2",
    "topk",
    "Gao et al. 2024, 2406.04093",
    "At equal L0 the FVU of TopK is below that of ReLU + L1; AuxK keeps latents alive.",
    "S1",
)
def run(lab: Lab, setting: dict) -> Iterator[Finding]:
    ours, without = topk_arm(lab, l0=L0), topk_arm(lab, l0=L0, aux_loss_coefficient=0.0)
    without.name = "TopK without AuxK"
    yield lab.compare("FVU at L0 = 4, below ReLU + L1", ours, relu_arm(lab, l0=L0), "fvu", L0)
    yield lab.compare("dead share at L0 = 4, below TopK without AuxK", ours, without, "dead", L0)
    yield from at_twice_k(lab, ours)


def at_twice_k(lab: Lab, plain: Arm) -> list[Finding]:
    """Both coders trained at k = 4, with 8 latents kept at inference."""
    recipe = multi_topk(D, S, k=max(KS), normalize_activations=False, dead_after_tokens=DEAD)
    multi, k, at = lab.arm("Multi-TopK", job(recipe, S1), "k", KS, L0), int(L0), KS.index(int(L0))
    twice, once = (fvu_at(multi.trained, n)[:, at] for n in (2 * k, k))
    cut, own = (fvu_at(plain.trained, n)[:, at] for n in (2 * k, k))
    sides = ("Multi-TopK, 8 kept", twice), ("Multi-TopK, 4 kept", once)
    worse = ("TopK, 4 kept", own), ("TopK, 8 kept", cut)
    facts = {"k": k, "kept": 2 * k, sides[0][0]: multi.facts, worse[0][0]: plain.facts}
    return [
        finding("FVU of multi-TopK with 2k kept, below that with k kept", *sides, facts=facts),
        finding("FVU of TopK with k kept, below that with 2k kept", *worse, facts=facts),
        finding("FVU with 2k kept, below TopK", sides[0], worse[1], facts=facts),
    ]
