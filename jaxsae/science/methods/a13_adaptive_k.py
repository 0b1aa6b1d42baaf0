"""A13: AdaptiveK with the noisy true count as the score of complexity."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.recipes import State, adaptive_k
from jaxsae.sae import fit_probe
from jaxsae.science.arms import DEAD, job, topk_arm
from jaxsae.science.beds import S4, D, S
from jaxsae.science.finding import Finding
from jaxsae.science.fleet import POOL, START_ROWS, Job
from jaxsae.science.lab import Lab
from jaxsae.science.studies import study

L0 = 6.0


@study(
    "A13",
    "adaptive_k",
    "Yao & Du 2025, 2508.17320",
    "With k from a probe of complexity the FVU is below that of TopK at equal mean L0.",
    "S4, score = true count + noise",
)
def run(lab: Lab, setting: dict) -> list[Finding]:
    recipe = adaptive_k(D, S, k=5, lr_warm_up_steps=0, dead_after_tokens=DEAD)
    ours = lab.arm("AdaptiveK", job(recipe, S4, prepare=with_probes), "k", (2.0, 3.0, 4.5), L0)
    theirs = topk_arm(lab, S4, L0, (4, 6, 8))
    return [
        lab.compare("FVU at mean L0 = 6, below TopK", ours, theirs, "fvu", L0),
        lab.compare(
            "correlation of a row's L0 with its true count, above TopK",
            ours,
            theirs,
            "count_correlation",
            L0,
            higher=True,
        ),
    ]


def with_probes(job: Job, keys: jax.Array, truth: Any, state: State) -> State:
    """A probe per seed, fitted on the first rows of its pool; the score is the count on a scale of 10, with noise."""
    probes = []
    for i, key in enumerate(keys):
        k_rows, k_noise = jax.random.split(jax.random.fold_in(key, POOL))
        drawn = job.bed.sample(jax.tree.map(lambda a: a[i], truth), k_rows, START_ROWS)  # noqa: B023 - used at once
        count = jnp.sum(drawn["codes"] != 0, axis=1)
        score = 10 * count / job.bed.most + jax.random.normal(k_noise, count.shape)
        probes.append(fit_probe(drawn["x"], jnp.clip(score, 0, 10)))
    settings = state.params["probe_b"].shape[1]
    over = lambda a: jnp.repeat(jnp.stack(a)[:, None], settings, axis=1)  # noqa: E731
    new = {"probe_w": over([p.w for p in probes]), "probe_b": over([p.b for p in probes])}
    return replace(state, params={**state.params, **new})
