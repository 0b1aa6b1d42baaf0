"""A5: the JumpReLU autoencoder."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxsae.recipes import gated, jumprelu, jumprelu_anthropic, jumprelu_tanh_quad, jumprelu_target_l0
from jaxsae.science.arms import STEPS, batch_topk_arm, job, relu_arm
from jaxsae.science.beds import S1, S4, D, S
from jaxsae.science.finding import Finding, finding
from jaxsae.science.lab import Arm, Lab
from jaxsae.science.studies import study

L0, MEAN = 4.0, 6.0
#: For runs this short: a window and a start of the size of the thresholds sought, trained as they are.
WINDOW, START = 0.1, 0.1


@study(
    "A5",
    "jumprelu",
    "Rajamanoharan et al. 2024, 2407.14435",
    "At equal L0 the FVU of JumpReLU is below that of ReLU + L1; the target form lands on its L0.",
    "S1, S4",
)
def run(lab: Lab, setting: dict) -> Iterator[Finding]:
    options = {"bandwidth": WINDOW, "start_threshold": START}
    ours = jumprelu_arm(lab, S1, (0.015, 0.03, 0.06), L0)
    yield lab.compare("FVU at L0 = 4, below ReLU + L1", ours, relu_arm(lab, l0=L0), "fvu", L0)
    targeted = jumprelu_target_l0(D, S, training_steps=STEPS, lr_warm_up_steps=0, l0_warm_up_steps=50, **options)
    targets = (3.0, 4.0, 6.0)
    arm = lab.arm("JumpReLU, target L0", job(targeted, S1), "target_l0", targets, L0)
    off = np.abs(arm.values("l0") / np.asarray(targets) - 1).mean(1)
    yield finding("|L0 / target - 1|, below 0.05", ("JumpReLU, target L0", off), ("0.05", np.full(len(off), 0.05)))
    yield dense_latents(lab)
    yield from frontiers(lab)


def jumprelu_arm(lab: Lab, bed: Any, values: tuple[float, ...], l0: float) -> Arm:
    """JumpReLU with thresholds trained as they are."""
    options = {"bandwidth": WINDOW, "start_threshold": START, "log_threshold": False}
    recipe = jumprelu(D, S, lr_warm_up_steps=0, l0_warm_up_steps=50, **options)
    return lab.arm("JumpReLU", job(recipe, bed), "l0_coefficient", values, l0)


def dense_latents(lab: Lab) -> Finding:
    """The quadratic part of tanh-quad charges a latent by how often it is on; tanh alone charges all alike."""
    quad = jumprelu_tanh_quad(D, S, bandwidth=1.0, threshold_lr_factor=1.0, lr_warm_up_steps=0, training_steps=STEPS)
    tanh = jumprelu_anthropic(D, S, bandwidth=1.0, start_l0=32, training_steps=STEPS)
    ours = lab.arm("tanh-quad", job(quad, S1), "sparsity_coefficient", (0.02, 0.05, 0.12, 0.3, 0.8), L0)
    theirs = lab.arm("tanh", job(tanh, S1), "sparsity_coefficient", (0.25, 0.6, 1.5, 4.0, 10.0), L0)
    return lab.compare("share of dense latents (on in > 10 % of rows) at L0 = 4, below tanh", ours, theirs, "dense", L0)


def frontiers(lab: Lab) -> list[Finding]:
    """The same order on rows of unequal complexity, with BatchTopK and Gated in it."""
    ours = jumprelu_arm(lab, S4, (0.004, 0.01, 0.025, 0.06), MEAN)
    recipe = gated(D, S, lr_warm_up_steps=0, l1_warm_up_steps=50)
    gates = lab.arm("Gated", job(recipe, S4), "l1_coefficient", (0.7, 1.4, 2.8, 5.6), MEAN)
    relu = relu_arm(lab, S4, MEAN, (0.7, 1.4, 2.8, 5.6))
    batch = batch_topk_arm(lab, S4, MEAN, (4.5, 6.0, 8.0))
    return [
        lab.compare("FVU at mean L0 = 6 (S4), below ReLU + L1", ours, relu, "fvu", MEAN),
        lab.compare("FVU at mean L0 = 6 (S4), below Gated", ours, gates, "fvu", MEAN),
        lab.compare("FVU of Gated at mean L0 = 6 (S4), below ReLU + L1", gates, relu, "fvu", MEAN),
        lab.compare("FVU at mean L0 = 6 (S4), below BatchTopK", ours, batch, "fvu", MEAN),
    ]
