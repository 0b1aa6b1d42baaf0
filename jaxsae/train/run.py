"""One training run from its configuration: cache in, run directory with an exported dictionary out."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh

import jaxsae
from jaxsae import parallel
from jaxsae.config import to_dict
from jaxsae.data.cache import Cache, open_cache
from jaxsae.data.sources import CacheSource, rows_on_this_process
from jaxsae.errors import ConfigError
from jaxsae.recipes import Recipe, State
from jaxsae.sae import SAE, Meta
from jaxsae.train.compilation_cache import keep_compiled
from jaxsae.train.config import EvaluatePolicy, TrainConfig
from jaxsae.train.fleet import Fleet, largest_k, parse_sweep
from jaxsae.train.logs import Record
from jaxsae.train.loop import Fitted, fit
from jaxsae.train.member_export import export_members
from jaxsae.train.room import write
from jaxsae.train.run_dir import RunDir, write_json


@dataclass(frozen=True)
class TrainResult:
    """What `train` returns.

    Attributes:
        sae: the exported dictionary; also in `run_dir.sae`, unless this machine's memory is too small to write it: then
            `summary["left_out"]` says so, and its arrays lie where they were trained, as they do on all processes of
            several but the first.  Of a sweep, that of the run with the lowest last loss; all of them are in
            `run_dir.member(i).sae`.
        state: after the last step.
        recipe: the method with everything filled in, or the fleet of a sweep.
        run_dir: where the run lies.
        metrics: the newest record of each kind: `metrics["train"]`, `metrics["heldout"]`.
        summary: plain values, as written to `train.json`.
    """

    sae: SAE
    state: State
    recipe: Recipe | Fleet
    run_dir: RunDir
    metrics: dict[str, Record]
    summary: dict[str, Any]


def train(config: TrainConfig) -> TrainResult:
    """Trains what a configuration describes, or goes on with it if its output already holds a part.

    Killed at any moment and called again it gives bit for bit the result of a run that was left alone; once it is
    complete, a further call only exports it again.  These keys may change in between, since they cannot change what
    was done so far: output (moved as a whole), cache (if it holds the same rows), training_tokens (if no schedule
    would have been different by now), checkpoint, log, evaluate, mesh, watch, compilation_cache.

    Args:
        config: the run.

    Raises:
        ConfigError: an impossible value, or the output holds another run; the key is named.
        DataError: no usable cache, or rows that are not finite.
        CheckpointError: the output cannot be continued or written.
        Interrupted: SIGTERM or Ctrl-C; the state is saved, call again.
        Diverged: the loss is not finite, or spiked where that is to stop a run; the last good checkpoint stays.

    Example:
        >>> from jaxsae.recipes import topk
        >>> config = TrainConfig(topk.Config(d_sae=8192, k=32), cache="runs/acts")  # doctest: +SKIP
        >>> train(config).metrics["heldout"]["fvu"]  # doctest: +SKIP
        0.18
    """
    keep_compiled(config.compilation_cache)
    cache = open_cache(config.cache)
    site = cache.site(config.hook_name)
    d_in = dict(cache.manifest.sites)[site]
    recipe = method(config, d_in)
    mesh = _mesh(config, recipe)
    source = _source(cache, site, config, config.train_batch_size_tokens, "train", mesh)
    heldout, evaluate = _heldout(cache, site, config, mesh)
    with RunDir(config.output).open() as run_dir:
        _refuse_orphan(run_dir)
        fitted = fit(
            recipe,
            source,
            config.steps,
            key=jax.random.key(config.seed),
            heldout=heldout,
            mesh=mesh,
            zero=config.mesh.zero,
            run_dir=run_dir,
            config=to_dict(config),
            identity=_identity(cache, site),
            checkpoint=config.checkpoint,
            log=config.log,
            evaluate=evaluate,
            watch=config.watch,
        )
        tokens = fitted.step * source.batch_size
        meta = _meta(cache, site, tokens)
        summary = {**_summary(recipe, site, fitted, tokens, run_dir), "mesh": dict(mesh.shape) if mesh else {}}
        if isinstance(recipe, Fleet):
            summary, sae = export_members(recipe, fitted, run_dir, meta, summary)
        else:
            with parallel.use(mesh):  # where the parameters lie: no device could hold them whole
                sae = recipe.export(replace(fitted.state, opt=()), meta=meta)
            sae, left_out = write(sae, run_dir, run_dir.place.remote)
            summary |= {"sae": None, "left_out": left_out} if left_out else {}
        parallel.on_first("summary", lambda: write_json(run_dir.summary, summary))
    return TrainResult(sae, fitted.state, recipe, run_dir, fitted.metrics, summary)


def method(config: TrainConfig, d_in: int) -> Recipe | Fleet:
    """The recipe of a configuration, or the fleet that its sweep describes."""
    if not config.sweep:
        return config.method(d_in)
    members = parse_sweep(config.sweep, config.seed, config.sweep_grid)
    return Fleet(config.method(d_in, largest_k(config.recipe, members)), members)


def _mesh(config: TrainConfig, recipe: Recipe | Fleet) -> Mesh | None:
    """The mesh of a run; its reason is shown."""
    chosen = choose(config, recipe, jax.devices())
    if config.log.progress and parallel.first():
        print(chosen, file=sys.stderr)
    return chosen.mesh


def choose(config: TrainConfig, recipe: Recipe | Fleet, devices: Sequence[Any]) -> parallel.Chosen:
    """The mesh a run would have on these devices."""
    members = recipe.size if isinstance(recipe, Fleet) else 1
    need = parallel.Need(recipe.d_in, recipe.d_sae, config.train_batch_size_tokens, members)
    own = next(d for d in devices if d.process_index == parallel.index())
    limits = parallel.exchange("memory", json.dumps(parallel.memory_of(own)))  # all have to choose alike
    known = [limit for limit in map(json.loads, limits) if limit]
    return parallel.choose_mesh(config.mesh, need, devices, min(known, default=None))


def _source(cache: Cache, site: str, config: TrainConfig, size: int, split: str, mesh: Mesh | None) -> CacheSource:
    rows = None if mesh is None else rows_on_this_process(parallel.sharding(mesh, "B"), size)
    return CacheSource(cache, size, sites=site, split=split, seed=config.seed, rows=rows)


def _heldout(
    cache: Cache, site: str, config: TrainConfig, mesh: Mesh | None
) -> tuple[CacheSource | None, EvaluatePolicy]:
    """Batches of held-out rows, no more of them than there are rows for."""
    rows, policy = cache.split("heldout").rows, config.evaluate
    if not rows or not policy.batches:
        return None, policy
    parts = 1 if mesh is None else mesh.shape["data"]
    size = min(config.train_batch_size_tokens, rows) // parts * parts
    if not size:
        raise ConfigError(
            f"the cache holds {rows} held-out rows, fewer than the {parts} devices along data; "
            "take a smaller mesh, or evaluate.batches = 0"
        )
    source = _source(cache, site, config, size, "heldout", mesh)
    return source, replace(policy, batches=min(policy.batches, rows // size))


def _identity(cache: Cache, site: str) -> dict[str, Any]:
    """What decides the rows of a cache, wherever it lies."""
    manifest = json.loads(json.dumps(cache.manifest.to_json()))
    return {"site": site, "rows": cache.split("train").rows, "manifest": manifest}


def _meta(cache: Cache, site: str, tokens: int) -> Meta:
    return Meta(host=str(cache.manifest.host.get("name", "")), site=site).with_extra(tokens_trained=tokens)


def _summary(recipe: Recipe | Fleet, site: str, fitted: Fitted, tokens: int, run_dir: RunDir) -> dict[str, Any]:
    newest = {kind: {k: v for k, v in r.items() if k != "kind"} for kind, r in fitted.metrics.items()}
    sizes = {"recipe": recipe.name, "site": site, "d_in": recipe.d_in, "d_sae": recipe.d_sae}
    done = {"steps": fitted.step, "tokens_trained": tokens, "seconds": round(fitted.seconds, 3)}
    versions = {"jaxsae": jaxsae.__version__, "jax": jax.__version__}
    return {**sizes, **done, **newest, "sae": f"{run_dir}/sae", "versions": versions}


def _refuse_orphan(run_dir: RunDir) -> None:
    """A dictionary without checkpoints cannot be continued and must not be overwritten."""
    if run_dir.holds("sae") and not run_dir.holds("checkpoints"):
        raise ConfigError(
            f"{str(run_dir)!r} holds a finished dictionary but no checkpoints to continue from; "
            "expected a new folder or a run, choose another output"
        )
