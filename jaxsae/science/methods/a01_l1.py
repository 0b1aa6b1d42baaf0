"""A1: the plain L1 autoencoder against ICA, what it was compared with when it was proposed."""

import numpy as np

from jaxsae.evals import fit_baseline, ground_truth
from jaxsae.science.arms import relu_arm
from jaxsae.science.beds import D
from jaxsae.science.finding import Finding, finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0 = 4.0


@study(
    "A1",
    "relu_l1",
    "Cunningham et al. 2023, 2309.08600; Anthropic, April 2024",
    "An L1 autoencoder finds the true atoms better than ICA, and shrinks what it reconstructs.",
    "S1",
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    arm = relu_arm(lab, l0=L0)
    x, atoms = np.asarray(arm.judged.x), np.asarray(arm.judged.truth.atoms)
    saes = [fit_baseline("ica", rows, D, 4, seed) for seed, rows in enumerate(x)]
    ica = [ground_truth.mmcs(a, sae.W_dec, signed=False) for a, sae in zip(atoms, saes, strict=True)]
    sides = ("ReLU + L1", arm.at("mmcs", L0)), ("ICA, signs free", ica)
    first = finding("mean max cosine of true atoms, above ICA", *sides, higher=True, facts={arm.name: arm.facts})
    bias = arm.at("bias", L0)
    second = finding("relative reconstruction bias, below 1", ("ReLU + L1", bias), ("1", np.ones_like(bias)))
    return [first, second]
