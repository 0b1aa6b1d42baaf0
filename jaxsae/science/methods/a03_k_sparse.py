"""A3: codes of a k-sparse autoencoder as features of a linear classifier of digits; GroupMax beside TopK."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxsae.data import digits
from jaxsae.evals import fit_baseline
from jaxsae.recipes import group_max, k_sparse
from jaxsae.science.arms import DEAD, STEPS, job, topk_arm
from jaxsae.science.beds import S1, D, S
from jaxsae.science.digits_bed import DigitsBed
from jaxsae.science.finding import Finding, finding
from jaxsae.science.fleet import Trained
from jaxsae.science.lab import Arm, Lab
from jaxsae.science.studies import study

LATENTS, K = 256, 10
#: Groups of GroupMax; most of what "a few percent" of FVU can mean.
GROUPS, FEW = 4, 0.05


@study(
    "A3",
    "k_sparse",
    "Makhzani & Frey 2013, 1312.5663",
    "A linear probe on the alpha k largest codes classifies digits better than one on raw pixels, or on PCA.",
    "digits, S1",
    settings=({"alpha": 3, "labels": 400}, {"alpha": 2, "labels": 400}, {"alpha": 3, "labels": 150}),
)
def run(lab: Lab, setting: dict) -> Iterator[Finding]:
    recipe = k_sparse(64, LATENTS, k=K, k_start=40, training_steps=STEPS)
    trained = lab.single("k-sparse", job(recipe, DigitsBed()), _squared_error)
    codes = trained.judge(setting["alpha"] * K)
    ours, pixels, components = [], [], []
    for i in range(len(lab.seeds)):
        order = np.asarray(codes.truth.extra["order"][i])
        train, test = order[: setting["labels"]], order[DigitsBed.train :]
        x, label = digits().x, digits().label
        sae = jax.tree.map(lambda a: a[i, 0], codes.sae)  # noqa: B023 - used at once
        ours.append(_accuracy(np.asarray(sae.encode(x).dense()), label, train, test))
        pixels.append(_accuracy(x, label, train, test))
        pca = fit_baseline("pca", x[order[: DigitsBed.train]], 64, setting["alpha"] * K)
        components.append(_accuracy(np.asarray(pca.encode(x).dense()), label, train, test))
    facts = {**setting, "latents": LATENTS, "k": K, "lr": lab.rates["k-sparse"], "steps": trained.job.steps}
    yield finding("probe accuracy, above raw pixels", ("k-sparse", ours), ("pixels", pixels), True, facts)
    claim = "probe accuracy, above PCA with as many codes"
    yield finding(claim, ("k-sparse", ours), ("PCA", components), True, facts)
    yield group_max_beside_topk(lab)


def group_max_beside_topk(lab: Lab) -> Finding:
    """One latent of each group against the best of all, at the L0 that the groups give."""
    recipe = group_max(D, S, k=GROUPS, normalize_activations=False, dead_after_tokens=DEAD)
    trained = lab.single("GroupMax", job(recipe, S1), _squared_error)
    ours, theirs = Arm("GroupMax", trained, trained.judge(), {"lr": lab.rates["GroupMax"]}), topk_arm(lab, S1)
    l0, fvu = ours.values("l0")[:, 0], ours.values("fvu")[:, 0]
    more = fvu / theirs.at("fvu", l0) - 1
    facts = {
        "l0": l0.tolist(),
        "fvu": fvu.tolist(),
        ours.name: {**ours.facts, "recipe": "group_max"},
        theirs.name: theirs.facts,
    }
    claim = f"FVU of GroupMax over that of TopK at its L0 (S1), minus 1, below {FEW:g}"
    return finding(claim, ("GroupMax", more), (f"{FEW:g}", np.full(len(more), FEW)), facts=facts)


def _squared_error(trained: Trained) -> np.ndarray:
    judged = trained.judge()
    return np.asarray(((judged.x[:, None] - judged.yhat) ** 2).mean((2, 3)))


def _accuracy(features: np.ndarray, label: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Of a logistic regression on standardised features, its penalty chosen by cross-validation on the train rows."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe: Any = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=(0.001, 0.01, 0.1, 1.0), cv=3, max_iter=500))
    return float(probe.fit(features[train], label[train]).score(features[test], label[test]))
