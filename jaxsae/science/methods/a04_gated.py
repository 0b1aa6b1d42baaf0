"""A4: the gated autoencoder."""

from jaxsae.recipes import gated
from jaxsae.science.arms import job, relu_arm
from jaxsae.science.beds import S1, D, S
from jaxsae.science.finding import Finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0 = 4.0


@study(
    "A4",
    "gated",
    "Rajamanoharan et al. 2024, 2404.16014",
    "At equal L0 the FVU of a gated autoencoder is below that of ReLU + L1, and it shrinks less.",
    "S1",
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    recipe = gated(D, S, lr_warm_up_steps=0, l1_warm_up_steps=50)
    ours = lab.arm("Gated", job(recipe, S1), "l1_coefficient", (2.0, 3.0, 4.5), L0)
    theirs = relu_arm(lab, l0=L0)
    return [
        lab.compare("FVU at L0 = 4, below ReLU + L1", ours, theirs, "fvu", L0),
        lab.compare("|1 - relative reconstruction bias| at L0 = 4, below ReLU + L1", ours, theirs, "shrinkage", L0),
    ]
