"""A9: random prefixes against absorption."""

from jaxsae.recipes import matryoshka_random
from jaxsae.science.arms import STEPS, job, relu_arm
from jaxsae.science.beds import S2, D, S
from jaxsae.science.finding import Finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0 = 2.0


@study(
    "A9",
    "matryoshka_random",
    "Nabeshima 2024",
    "Parents are absorbed less by their children with random prefixes than with plain ReLU + L1 at equal L0.",
    "S2",
    settings=({"prefixes": 10}, {"prefixes": 3}, {"prefixes": 10, "permute_every": 50}),
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    recipe = matryoshka_random(D, S, controller_rate=0.0, training_steps=STEPS, **setting)
    ours = lab.arm("Random prefixes", job(recipe, S2), "l1_coefficient", (0.3, 1.0, 3.0, 9.0), L0)
    theirs = relu_arm(lab, S2, L0, (0.5, 1.5, 4.0, 9.0))
    return [
        lab.compare("absorption at L0 = 2, below ReLU + L1", ours, theirs, "absorption", L0),
        lab.compare("recovered true atoms at L0 = 2, above ReLU + L1", ours, theirs, "recovered", L0, higher=True),
    ]
