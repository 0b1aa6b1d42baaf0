"""What changes when a method that ranks latents is used by a threshold: FVU and L0 of both forms, measured.

`python -m jaxsae.testing.gaps docs/methods.md` measures what `forms.json` beside the page does not hold yet, and writes
the section on it anew.  Every method is trained over five seeds on testbed S4, where rows differ in complexity.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae import recipes
from jaxsae.objective import batch_variance
from jaxsae.sae import Column, EmaThreshold, Rank
from jaxsae.science.arms import DEAD, ROWS, STEPS, job
from jaxsae.science.beds import S4, D, S
from jaxsae.science.fleet import JUDGE, JUDGE_ROWS, Job, Trained, train
from jaxsae.science.methods.a13_adaptive_k import with_probes

SEEDS, K, LR, BETA = (0, 1, 2, 3, 4), 6, 16e-3, 0.99
TITLE = "## Rank form against threshold form"
SETTINGS = {
    "bed": "S4",
    "d_in": D,
    "d_sae": S,
    "steps": STEPS,
    "rows": ROWS,
    "lr": LR,
    "beta": BETA,
    "seeds": len(SEEDS),
}

RAW: dict[str, Any] = {"normalize_activations": False, "dead_after_tokens": DEAD}
#: Every method that ranks, at a mean L0 near 6 (group_max: 8, which divides the dictionary; top_afa chooses its own).
METHODS: dict[str, Callable[[], recipes.Recipe]] = {
    "topk": lambda: recipes.topk(D, S, K, **RAW),
    "abs_topk": lambda: recipes.abs_topk(D, S, K, **RAW),
    "multi_topk": lambda: recipes.multi_topk(D, S, K, **RAW),
    "hierarchical_topk": lambda: recipes.hierarchical_topk(D, S, K, **RAW),
    "k_sparse": lambda: recipes.k_sparse(D, S, K, training_steps=STEPS),
    "group_max": lambda: recipes.group_max(D, S, 8, **RAW),
    "adaptive_k": lambda: recipes.adaptive_k(D, S, 3, lr_warm_up_steps=0, dead_after_tokens=DEAD),
    "top_afa": lambda: recipes.top_afa(D, S, k_aux=16, **RAW),
    "batch_topk": lambda: recipes.batch_topk(D, S, K, k_aux=16, **RAW),
    "matryoshka": lambda: recipes.matryoshka(D, S, K, k_aux=16, dead_after_tokens=DEAD),
    "ortsae": lambda: recipes.ortsae(D, S, K, k_aux=16, **RAW),
    "mutual_choice": lambda: recipes.mutual_choice(D, S, K, **RAW),
    "feature_choice": lambda: recipes.feature_choice(D, S, K, **RAW),
}


def ranks(recipe: recipes.Recipe) -> bool:
    """Whether latents, or rows of a latent, compete for a place in the code while it trains."""
    selector = getattr(recipe.encoder, "selector", None)
    return isinstance(selector, (Rank, Column)) or "rank" in recipe.encoder.forms


def ready(name: str) -> Job:
    """The job.  Thresholds are averaged over about the last 100 steps: with 0.999 it would be most of the run."""
    recipe = METHODS[name]()
    swap = lambda t: replace(t, beta=BETA) if isinstance(t, EmaThreshold) else t  # noqa: E731
    recipe = replace(recipe, trackers=tuple(swap(t) for t in recipe.trackers))
    return job(recipe, S4, **({"prepare": with_probes} if name == "adaptive_k" else {}))


@partial(jax.jit, static_argnums=0)
def both_forms(job: Job, keys: jax.Array, truth: Any, state: recipes.State) -> dict[str, tuple[jax.Array, jax.Array]]:
    """(FVU, mean L0) of every seed in both forms, on held-out rows.

    A method whose ranking runs over a batch has its rank form on batches of the size it was trained with.
    """
    recipe, axes = job.recipe, job.recipe.over_runs()

    def of_seed(key: jax.Array, truth: Any, state: recipes.State) -> dict:
        x = job.bed.sample(truth, jax.random.fold_in(key, JUDGE), JUDGE_ROWS)["x"]

        def frozen(form: str) -> tuple[jax.Array, jax.Array]:
            sae = recipe.export(state, form)
            codes = sae.encode(x)
            return _numbers(x, sae.decode(codes, like=x), codes.dense())

        def as_trained() -> tuple[jax.Array, jax.Array]:
            p, ctx = recipe.weights(state), recipe.ctx(state)
            out = lambda rows: recipe.forward(p, {"x": rows}, ctx, fused=False)  # noqa: E731
            parts = jax.lax.map(lambda rows: (out(rows).yhat, out(rows).sel.codes.dense()), x.reshape(-1, job.rows, D))
            return _numbers(x, *(a.reshape(JUDGE_ROWS, -1) for a in parts))

        rank = frozen("rank") if "rank" in recipe.encoder.forms else as_trained()
        return {"rank": rank, "threshold": frozen("threshold")}

    first = jax.tree.map(lambda a: a[:, 0], (state.params, state.track, state.hyper, state.average))
    state = replace(
        state, params=first[0], track=first[1], hyper=first[2], average=first[3], opt=(), key=state.key[:, 0]
    )
    return jax.vmap(of_seed, in_axes=(0, 0, replace(axes, opt=None)))(keys, truth, state)


def _numbers(x: jax.Array, yhat: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    fvu = jnp.sum((x - yhat) ** 2) / batch_variance(x, jnp.ones(len(x)))
    return fvu, jnp.mean(jnp.sum(codes != 0, axis=1))


def measure(name: str) -> dict[str, Any]:
    """Trains one method and reads off both forms: lists of one number per seed."""
    began = time.time()
    trained: Trained = train(ready(name), SEEDS, {"lr": (LR,)})
    found = both_forms(trained.job, trained.keys, trained.truth, trained.state)
    forms = {form: {"fvu": np.asarray(v[0]).tolist(), "l0": np.asarray(v[1]).tolist()} for form, v in found.items()}
    own = "row" if "rank" in trained.job.recipe.encoder.forms else "batch"
    return {**forms, "over": own, "settings": SETTINGS, "seconds": round(time.time() - began, 1)}


def section(found: dict[str, Any]) -> str:
    """The section of the page."""
    lines = [
        TITLE,
        "",
        f"Both forms of the same dictionaries on {JUDGE_ROWS} held-out rows, mean over {len(SEEDS)} seeds, standard "
        "deviation of the difference over seeds in brackets.",
        f"Testbed S4 (1 to 12 features on per row), d_in {D}, d_sae {S}, {STEPS} steps of {ROWS} rows, learning rate "
        f"{LR:g}, threshold averaged with decay {BETA:g}.",
        "*over*: what competes for a place in the rank form, the latents of a row, or all of a batch (then the rank "
        "form is that of training, and cannot be exported).",
        "Written by `python -m jaxsae.testing.gaps docs/methods.md`; every number is in `docs/forms.json`.",
        "",
        "| method | over | FVU, rank | FVU, threshold | difference | L0, rank | L0, threshold | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in sorted(found.items()):
        cells = [f"`{name}`", one["over"]]
        for what, form in (("fvu", "{:.4f}"), ("l0", "{:.2f}")):
            a, b = (np.asarray(one[side][what]) for side in ("rank", "threshold"))
            gap = b - a
            cells += [form.format(a.mean()), form.format(b.mean()), f"{gap.mean():+.2g} ({gap.std(ddof=1):.1g})"]
        lines.append("| " + " | ".join(cells) + " |")
    missing = sorted(set(METHODS) - set(found))
    lines += ["", f"Not measured yet: {', '.join(f'`{name}`' for name in missing)}."] if missing else []
    return "\n".join([*lines, ""])


def replaced(page: str, new: str) -> str:
    """The page with its section of this title replaced, or added at the end."""
    before, title, rest = page.partition(TITLE)
    after = rest.partition("\n## ") if title else ("", "", "")
    return before.rstrip("\n") + "\n\n" + new + (after[1] + after[2] if after[1] else "")


def main(page: pathlib.Path) -> None:
    """Measures what is missing, keeps every finished method, writes the section."""
    kept = page.with_name("forms.json")
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for name in METHODS:
        if found.get(name, {}).get("settings") != SETTINGS:
            found[name] = measure(name)
            kept.write_text(json.dumps(found, indent=1) + "\n")
            print(name, found[name], flush=True)
    page.write_text(replaced(page.read_text(), section(found)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
