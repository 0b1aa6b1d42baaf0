"""A5: the JumpReLU autoencoder."""

import numpy as np

from jaxsae.recipes import jumprelu, jumprelu_target_l0
from jaxsae.science.arms import STEPS, job, relu_arm
from jaxsae.science.beds import S1, D, S
from jaxsae.science.finding import Finding, finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0 = 4.0
#: For runs this short: a window and a start of the size of the thresholds sought, trained as they are.
WINDOW, START = 0.1, 0.1


@study(
    "A5",
    "jumprelu",
    "Rajamanoharan et al. 2024, 2407.14435",
    "At equal L0 the FVU of JumpReLU is below that of ReLU + L1; the target form lands on its L0.",
    "S1",
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    options = {"bandwidth": WINDOW, "start_threshold": START}
    recipe = jumprelu(D, S, log_threshold=False, lr_warm_up_steps=0, l0_warm_up_steps=50, **options)
    ours = lab.arm("JumpReLU", job(recipe, S1), "l0_coefficient", (0.015, 0.03, 0.06), L0)
    first = lab.compare("FVU at L0 = 4, below ReLU + L1", ours, relu_arm(lab, l0=L0), "fvu", L0)
    targeted = jumprelu_target_l0(D, S, training_steps=STEPS, lr_warm_up_steps=0, l0_warm_up_steps=50, **options)
    targets = (3.0, 4.0, 6.0)
    arm = lab.arm("JumpReLU, target L0", job(targeted, S1), "target_l0", targets, L0)
    off = np.abs(arm.values("l0") / np.asarray(targets) - 1).mean(1)
    second = finding("|L0 / target - 1|, below 0.05", ("JumpReLU, target L0", off), ("0.05", np.full(len(off), 0.05)))
    return [first, second]
