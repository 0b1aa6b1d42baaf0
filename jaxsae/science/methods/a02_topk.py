"""A2: TopK with AuxK."""

from jaxsae.science.arms import relu_arm, topk_arm
from jaxsae.science.finding import Finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0 = 4.0


@study(
    "A2",
    "topk",
    "Gao et al. 2024, 2406.04093",
    "At equal L0 the FVU of TopK is below that of ReLU + L1; AuxK keeps latents alive.",
    "S1",
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    ours, without = topk_arm(lab, l0=L0), topk_arm(lab, l0=L0, aux_loss_coefficient=0.0)
    without.name = "TopK without AuxK"
    return [
        lab.compare("FVU at L0 = 4, below ReLU + L1", ours, relu_arm(lab, l0=L0), "fvu", L0),
        lab.compare("dead share at L0 = 4, below TopK without AuxK", ours, without, "dead", L0),
    ]
