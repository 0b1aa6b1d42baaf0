"""A24: p-annealing, plain and gated, against the same autoencoders with p = 1 throughout."""

from collections.abc import Iterator

from jaxsae.recipes import gated_p_anneal, p_anneal
from jaxsae.science.arms import STEPS, job
from jaxsae.science.beds import S1, D, S
from jaxsae.science.finding import Finding
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0 = 4.0


@study(
    "A24",
    "p_anneal",
    "Karvonen et al. 2024, 2408.00113",
    "At equal L0 the FVU with an annealed p is below that with a constant L1.",
    "S1",
    settings=({"p_end": 0.2}, {"p_end": 0.5}, {"p_end": 0.1}),
)
def run(lab: Lab, setting: dict) -> Iterator[Finding]:
    options = {"lr_warm_up_steps": 0, "sparsity_warm_up_steps": 50, "training_steps": STEPS}
    annealed, constant = p_anneal(D, S, **setting, **options), p_anneal(D, S, p_end=1.0, **options)
    values = (3.0, 4.0, 5.0, 6.0)
    ours = lab.arm(f"p to {setting['p_end']:g}", job(annealed, S1), "sparsity_coefficient", values, L0)
    theirs = lab.arm("p = 1", job(constant, S1), "sparsity_coefficient", values, L0)
    yield lab.compare("FVU at L0 = 4, below constant L1", ours, theirs, "fvu", L0)
    gates = [gated_p_anneal(D, S, p_end=p, **options) for p in (setting["p_end"], 1.0)]
    names = f"Gated, p to {setting['p_end']:g}", "Gated, p = 1"
    lambdas = (1.0, 2.0, 3.0, 4.5, 7.0)
    gated, plain = (
        lab.arm(name, job(gate, S1), "sparsity_coefficient", lambdas, L0)
        for name, gate in zip(names, gates, strict=True)
    )
    yield lab.compare("FVU of the gated form at L0 = 4, below constant L1", gated, plain, "fvu", L0)
    yield lab.compare("FVU at L0 = 4, below Gated with constant L1", ours, plain, "fvu", L0)
