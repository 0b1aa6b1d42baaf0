"""FVU and loss recovered against L0 on a real model, at one fixed token budget, for the families and the baselines."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae import recipes
from jaxsae.data import CacheSource
from jaxsae.errors import ConfigError, closest
from jaxsae.evals import EvalConfig, evaluate, fit_baseline
from jaxsae.objective import Linear
from jaxsae.sae import SAE, Bias, DatasetNorm, NoNorm, at_k

#: L0s aimed at; methods with a k take them as they are.
BUDGETS = (8, 16, 32, 64)
#: Rows that baselines are fitted on.
FIT_ROWS = 16_384


@dataclass(frozen=True)
class Frontier:
    """Sizes of the study.

    Attributes:
        d_sae: latents of every dictionary (PCA and ICA: at most the width).
        steps: updates.
        rows: rows of a batch; steps * rows is the token budget.
        lr: peak learning rate of every method; constant, then linearly to 0 over the last fifth; see `alike`.
        seeds: of initial weights and batches.
        eval_rows: held-out rows for FVU and L0.
        ce_tokens: held-out tokens for loss recovered.
    """

    d_sae: int = 1024
    steps: int = 200
    rows: int = 512
    lr: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    eval_rows: int = 4096
    ce_tokens: int = 1024


#: (d_in, study) -> recipe; the scalar that moves its sparsity; its values, or () where one run serves all budgets.
Family = tuple[Callable[[int, Frontier], recipes.Recipe], str, tuple[float, ...]]


def _ranked(name: str, **options: Any) -> Callable[[int, Frontier], recipes.Recipe]:
    def build(d: int, f: Frontier) -> recipes.Recipe:
        sizes = {"k": max(BUDGETS), "dead_after_tokens": f.rows * f.steps // 4}
        return getattr(recipes, name)(d, f.d_sae, normalize_activations=False, **sizes, **options)

    return build


def _penalised(name: str, **options: Any) -> Callable[[int, Frontier], recipes.Recipe]:
    return lambda d, f: getattr(recipes, name)(d, f.d_sae, **options)


def _timed(name: str, **options: Any) -> Callable[[int, Frontier], recipes.Recipe]:
    return lambda d, f: getattr(recipes, name)(d, f.d_sae, training_steps=f.steps, **options)


WARM = {"lr_warm_up_steps": 0}
FAMILIES: dict[str, Family] = {
    "topk": (_ranked("topk"), "k", BUDGETS),
    "batch_topk": (_ranked("batch_topk", k_aux=256), "k", BUDGETS),
    "relu_l1": (_timed("relu_l1"), "l1_coefficient", (6.0, 9.0, 13.0, 18.0)),
    "hierarchical_topk": (_ranked("hierarchical_topk", every=4), "k", ()),
    "matryoshka": (_ranked("matryoshka", k_aux=256), "k", BUDGETS),
    "gated": (_penalised("gated", l1_warm_up_steps=20, **WARM), "l1_coefficient", (2.5, 4.0, 6.0, 9.0)),
    "jumprelu_target_l0": (
        _timed("jumprelu_target_l0", l0_warm_up_steps=20, bandwidth=0.05, start_threshold=0.05, **WARM),
        "target_l0",
        BUDGETS,
    ),
    "p_anneal": (_timed("p_anneal", sparsity_warm_up_steps=20, **WARM), "sparsity_coefficient", (0.8, 1.5, 2.5, 4.0)),
    "abs_topk": (_ranked("abs_topk"), "k", BUDGETS),
}
#: Baselines, and the number of their latents: as many as the dictionaries have, or as many as there can be.
FITTED = ("pca", "kmeans", "random", "ica", "nmf")


def names() -> tuple[str, ...]:
    """Families, then baselines."""
    return (*FAMILIES, *FITTED)


def check_names(only: tuple[str, ...]) -> None:
    """Refuses families that the study does not have.

    Raises:
        ConfigError: the name, and the nearest one.
    """
    for name in only:
        if name not in names():
            raise ConfigError(f"the frontier has no family {name!r}{closest(name, names())}")


def run(
    study: Frontier,
    cache: Any,
    host: Any,
    folder: Path,
    only: tuple[str, ...] = (),
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[dict[str, Any]]:
    """Trains and judges what is not in `folder` yet, and returns all its points.

    Args:
        study: sizes.
        cache: activation cache with one site.
        host: the model it comes from.
        folder: keeps one JSON file per family, setting and seed.
        only: families or baselines; () for all.
        progress: progress(stage, done, total).

    Raises:
        ConfigError: no such family.
    """
    check_names(only)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in study.seeds:
        for name in only or names():
            for label, make in _parts(name, study, cache, seed, progress):
                path = folder / f"{name}-{label}-{seed}.json"
                if not _done(path, study):
                    _keep(path, study, cache, host, make(), {"family": name, "setting": label, "seed": seed})
    return points(folder)


def points(folder: Path) -> list[dict[str, Any]]:
    """Everything measured so far."""
    return [p for path in sorted(folder.glob("*.json")) for p in json.loads(path.read_text())["points"]]


def _parts(name: str, study: Frontier, cache: Any, seed: int, progress: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, maker) of each piece of work; a maker gives [(k or None, SAE)] and facts."""
    if name in FITTED:
        yield "fit", partial(_fitted, name, study, cache, seed)
        return
    build, sweep, values = FAMILIES[name]
    d = cache.split("train").d(cache.site(None))
    recipe = alike(build(d, study), d, study)
    settings: tuple[float | None, ...] = values or (None,)
    for value in settings:
        hyper = {"lr": study.lr} | ({} if value is None else {sweep: value})
        label = "all" if value is None else f"{value:g}"
        stage = f"{name} {label} seed {seed}"
        yield label, partial(_trained, recipe, study, cache, seed, hyper, stage, progress)


def alike(recipe: recipes.Recipe, d: int, study: Frontier) -> recipes.Recipe:
    """The recipe with what all families share: schedule, start of b_dec, and rows scaled by one constant.

    A run is too short to learn the mean of the activations, which would hide what the families differ in.
    """
    return replace(
        recipe,
        lr_schedule=Linear(0, study.steps // 5, study.steps),
        norm=DatasetNorm() if isinstance(recipe.norm, NoNorm) else recipe.norm,
        readout=Bias(d, start="geometric_median"),
    )


def _trained(
    recipe: recipes.Recipe, study: Frontier, cache: Any, seed: int, hyper: dict, stage: str, progress: Any
) -> tuple[list[tuple[int | None, SAE]], dict]:
    source = CacheSource(cache, study.rows, seed=seed)

    def batch(step: int) -> dict[str, jax.Array]:
        return {n: jnp.asarray(a, jnp.float32) for n, a in source.batch(step).items()}

    scalars = {n: jnp.asarray(v) for n, v in hyper.items()}
    state = recipes.init(recipe, jax.random.key(seed), batch(0), (), scalars)
    began = time.perf_counter()
    for step in range(study.steps):
        state, _ = recipes.step(recipe, state, batch(step))
        if step % 10 == 9:
            progress(stage, step + 1, study.steps)
    jax.block_until_ready(state.step)
    facts = {"seconds": round(time.perf_counter() - began, 1), "hyper": hyper}
    sae = recipe.export(state)
    if recipe.levels.ranks and "k" not in hyper:
        return [(k, at_k(sae, k)) for k in BUDGETS], facts
    return [(None, sae)], facts


def _fitted(name: str, study: Frontier, cache: Any, seed: int) -> tuple[list[tuple[int | None, SAE]], dict]:
    split = cache.split("train")
    d, rows = split.d(cache.site(None)), min(FIT_ROWS, split.rows)
    x = np.asarray(split.read(0, rows, cache.site(None)), np.float32)
    size = {"pca": d, "ica": 128, "nmf": 128}.get(name, study.d_sae)
    began = time.perf_counter()
    saes: list[tuple[int | None, SAE]] = [(k, fit_baseline(name, x, size, k, seed)) for k in BUDGETS if k <= size]
    return saes, {"seconds": round(time.perf_counter() - began, 1), "d_sae": size, "fit_rows": rows}


def _done(path: Path, study: Frontier) -> bool:
    try:
        return json.loads(path.read_text())["study"] == _plain(study)
    except (OSError, ValueError, KeyError):
        return False


def _plain(study: Frontier) -> dict[str, Any]:
    """What a point depends on: not how many seeds there are."""
    return {n: getattr(study, n) for n in ("d_sae", "steps", "rows", "lr", "eval_rows", "ce_tokens")}


def _keep(path: Path, study: Frontier, cache: Any, host: Any, made: Any, facts: dict[str, Any]) -> None:
    saes, more = made
    config = EvalConfig(rows=study.eval_rows, ce_tokens=study.ce_tokens, bootstrap=0)
    found = []
    for k, sae in saes:
        numbers = evaluate(sae, cache, host, config=config)
        kept = ("fvu", "l0", "dead_share", "loss_recovered_mean", "sae_ce", "clean_ce", "mean_ce", "ce_tokens")
        found.append({**facts, **more, "k": k, **{n: numbers[n] for n in kept if n in numbers}})
    path.write_text(json.dumps({"study": _plain(study), "points": found}, indent=1) + "\n")
