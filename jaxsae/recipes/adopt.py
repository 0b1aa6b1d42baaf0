"""Training that goes on from something: from a frozen SAE of any origin, or from another recipe's state."""

from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import ConfigError
from jaxsae.recipes import forms
from jaxsae.recipes.recipe import Recipe, init
from jaxsae.recipes.state import State
from jaxsae.sae import (
    SAE,
    Affine,
    Column,
    DatasetNorm,
    NoNorm,
    PreSelect,
    Rank,
    Relu,
    Threshold,
    Tied,
    TiedAffine,
    Unit,
)
from jaxsae.typing import Batch, Params, PyTree

#: Options that only say where training begins.
STARTS = ("start", "init_norm", "start_scale", "start_share", "start_above", "rule")
#: Leaves that grow with the latent's scale: pre-activations are linear in them.
PER_SCALE = ("W_enc", "b_enc", "b_gate", "b_mag", "threshold", "log_threshold")
#: Atoms whose norms agree so well count as equally long (bf16 files are no better).
EQUAL_NORMS = 1e-2


def init_from(
    recipe: Recipe,
    sae: SAE,
    key: jax.Array,
    sample_batch: Batch,
    frozen: PyTree = (),
    *,
    strict: bool = True,
    **hyper: Any,
) -> State:
    """A fresh state whose weights are those of a frozen SAE: the start of fine-tuning.

    The first forward pass of the state equals the SAE.  Where the two keep their weights in different form they are
    converted, exactly in real arithmetic: a dataset norm is measured on `sample_batch` and un-folded
    (W_enc /= c_in, W_dec *= c_out, b_dec *= c_out), a centring on b_dec moves into or out of the encoder's bias, and
    under a unit-norm dictionary latents are rescaled (codes change their unit, reconstructions do not).  Thresholds
    become learned ones or a gate, and an encoder along its atoms one matrix with them, where the recipe trains these
    (`jaxsae.recipes.forms`).  Optimiser moments, dead-latent counters and the step start afresh; a threshold average
    starts at the SAE's threshold.  Swept scalars, k among them, are the recipe's own.

    Args:
        recipe: how to go on; its slots must match those of the SAE, up to the conversions above.
        sae: any dictionary, loaded or exported.  It stays usable: nothing is shared with the state.
        key: random key of the run.
        sample_batch: a sample of the data, as the source gives it.
        frozen: arrays from outside that the view reads.
        strict: refuse a recipe that selects latents by another rule than the SAE.  False: take the weights all the
            same; the first forward pass then differs.
        **hyper: other values for swept scalars, e.g. `k=sae.k`.

    Raises:
        ConfigError: another width or size, or a slot that does not match; the message says what is expected.

    Example:
        >>> from jaxsae import recipes
        >>> recipe, batch = recipes.topk(8, 32, k=4), {"x": jax.random.normal(jax.random.key(0), (64, 8))}
        >>> sae = recipe.export(recipes.init(recipe, jax.random.key(1), batch))
        >>> init_from(recipe, sae, jax.random.key(2), batch).params["W_dec"].shape
        (32, 8)
    """
    sae = forms.gated(recipe, sae)
    _check_sizes(recipe, sae)
    state = init(recipe, key, sample_batch, frozen, hyper)
    leaves: Params = {name: leaf for name, leaf in sae.params.items() if name != "k"}
    leaves = forms.tied(recipe, sae, _unfolded(recipe, sae, leaves, state.params))
    leaves = _recentred(recipe, sae, leaves)
    leaves = _rescaled(recipe, sae, leaves, strict)
    track = _selection(recipe, sae, leaves, state.track, strict)
    return _begun(recipe, state, leaves, track, strict)


def _begun(recipe: Recipe, state: State, leaves: Params, track: PyTree, strict: bool) -> State:
    """The fresh state with these leaves in it."""
    params = {}
    for name, fresh in state.params.items():
        if name not in leaves and not strict and name in recipe.encoder.axes:
            leaves[name] = fresh
        if name not in leaves or leaves[name].shape != fresh.shape:
            found = tuple(leaves[name].shape) if name in leaves else "none"
            raise ConfigError(
                f"recipe {recipe.name!r} expects an array {name!r} of shape {tuple(fresh.shape)} from the SAE, found "
                f"{found}; choose a recipe with the slots of the SAE"
            )
        params[name] = jnp.array(leaves[name], fresh.dtype)  # a copy: steps donate the state
    left = sorted(set(leaves) - set(params) - {"threshold"})
    if left:
        raise ConfigError(f"recipe {recipe.name!r} has no place for the SAE's array {left[0]!r}; choose one that has")
    average = {name: jnp.array(params[name]) for name in state.average}
    opt = jax.jit(recipe.optimizer.build().init)(recipe.split(params)[0])
    return replace(state, params=params, track=track, average=average, opt=opt)


# ------------------------------------------------------------------------------------------ slot by slot
def _same(a: Any, b: Any, *but: str) -> bool:
    """Same member with the same options, apart from where training begins and what `but` names."""
    skip = (*STARTS, *but)
    return a == b or (
        type(a) is type(b) and all(getattr(a, f.name) == getattr(b, f.name) for f in fields(a) if f.name not in skip)
    )


def _refuse(recipe: Recipe, slot: str, wanted: Any, found: Any, fix: str) -> ConfigError:
    return ConfigError(f"recipe {recipe.name!r} expects the {slot} {wanted}, the SAE has {found}; {fix}")


def _check_sizes(recipe: Recipe, sae: SAE) -> None:
    wanted = {"d_in": recipe.d_in, "d_sae": recipe.d_sae, "d_out": recipe.dictionary.d_out}
    for name, size in wanted.items():
        if getattr(sae, name) != size:
            raise ConfigError(
                f"recipe {recipe.name!r} expects an SAE with {name} = {size}, found {getattr(sae, name)}; "
                f"build the recipe with {name}={getattr(sae, name)}"
            )
    plain = [dict(d.axes) == {"W_dec": "SE"} for d in (recipe.dictionary, sae.dictionary)]
    ties = isinstance(recipe.dictionary, Tied) and plain[1]
    if not all(plain) and not ties and not _same(recipe.dictionary, sae.dictionary):
        raise _refuse(recipe, "dictionary", recipe.dictionary, sae.dictionary, "choose a recipe with that one")
    raw_is_inner = isinstance(sae.norm, NoNorm)
    if not _same(recipe.readout, sae.readout, *(("raw",) if raw_is_inner else ())):
        raise _refuse(recipe, "readout", recipe.readout, sae.readout, "choose a recipe with that one")


def _unfolded(recipe: Recipe, sae: SAE, leaves: Params, fresh: Params) -> Params:
    """Leaves that take rows as the recipe scales them; constants of a dataset norm are those measured on the sample."""
    if recipe.norm == sae.norm:
        return leaves
    if isinstance(sae.norm, NoNorm) and isinstance(recipe.norm, DatasetNorm):
        constants = {name: fresh[name] for name in recipe.norm.axes}
        factors = recipe.norm.fold(constants, {name: jnp.float32(1.0) for name in leaves})
        return {**{name: leaf / factors[name] for name, leaf in leaves.items()}, **constants}
    fix = "an input scaling per row is no linear map and cannot be folded; choose a recipe with the same norm"
    raise _refuse(recipe, "norm", recipe.norm, sae.norm, fix)


def _recentred(recipe: Recipe, sae: SAE, leaves: Params) -> Params:
    """Moves the centring: with b_pre = b_dec pre-activations lose b_dec @ W_enc, which the bias gives back."""
    ours: Any = getattr(recipe.encoder, "encoder", recipe.encoder)
    theirs: Any = getattr(sae.encoder, "encoder", sae.encoder)
    alike = _same(ours, theirs, "b_pre") or (isinstance(ours, TiedAffine) and isinstance(theirs, Affine))
    if isinstance(recipe.encoder, PreSelect) != isinstance(sae.encoder, PreSelect) or not alike:
        raise _refuse(recipe, "encoder", ours, theirs, "choose a recipe with that one")
    if getattr(ours, "b_pre", None) == getattr(theirs, "b_pre", None):
        return leaves
    shift = leaves["b_dec"].astype(jnp.float32) @ leaves["W_enc"].astype(jnp.float32)
    shift = shift if ours.b_pre == "b_dec" else -shift
    if "b_gate" in leaves:
        magnitude = shift * jnp.exp(leaves["r_mag"])
        return {**leaves, "b_gate": leaves["b_gate"] + shift, "b_mag": leaves["b_mag"] + magnitude}
    if set(ours.axes) - {"W_enc"} != {"b_enc"}:
        raise _refuse(recipe, "encoder", ours, theirs, f"use b_pre={theirs.b_pre!r}")
    return {**leaves, "b_enc": leaves["b_enc"] + shift}


def _rescaled(recipe: Recipe, sae: SAE, leaves: Params, strict: bool) -> Params:
    """Latents in the unit in which their atoms have norm 1, where the recipe's dictionary keeps them so."""
    if not isinstance(recipe.dictionary, Unit):
        return leaves
    norms = jnp.linalg.norm(leaves["W_dec"].astype(jnp.float32), axis=1)
    norms = jnp.where(norms > 0, norms, 1.0)
    low, high = float(norms.min()), float(norms.max())
    if max(high, 1 / low) - 1 < 1e-4:
        return leaves
    selector: Any = getattr(sae.encoder, "selector", None)
    ranks = isinstance(selector, Rank) and not selector.by_norm
    if strict and ranks and high / low - 1 > EQUAL_NORMS:
        raise ConfigError(
            f"recipe {recipe.name!r} keeps atoms at norm 1, the SAE's have norms from {low:.3g} to {high:.3g} and "
            "ranks its latents without them; choose a recipe with a free dictionary"
        )
    if not {n for n, a in recipe.encoder.axes.items() if "S" in a} <= set(PER_SCALE) | {"r_mag"}:
        raise _refuse(recipe, "dictionary", recipe.dictionary, f"norms from {low:.3g} to {high:.3g}", "use a free one")
    scaled = {name: leaf * norms for name, leaf in leaves.items() if name in PER_SCALE and leaf.ndim == 1}
    return {**leaves, **scaled, "W_enc": leaves["W_enc"] * norms[None], "W_dec": leaves["W_dec"] / norms[:, None]}


def _selection(recipe: Recipe, sae: SAE, leaves: Params, track: PyTree, strict: bool) -> PyTree:
    """Checks that both select latents alike; fills in `threshold`, as a leaf or as a running average."""
    ours: Any = getattr(recipe.encoder, "selector", None)
    theirs: Any = getattr(sae.encoder, "selector", None)
    if isinstance(ours, Threshold) and isinstance(theirs, Relu):
        leaves["threshold"], theirs = jnp.zeros(recipe.d_sae), replace(ours)
    if forms.learned(recipe, theirs, leaves):
        return track
    seeded = _seeded(recipe, ours, theirs, leaves, track)
    if seeded is not None:
        return seeded
    norms_are_one = isinstance(recipe.dictionary, Unit)
    alike = _same(ours, theirs, "cap", *(("by_norm",) if norms_are_one else ()))
    if isinstance(ours, Relu) and isinstance(theirs, Threshold):
        alike = not theirs.signed and not bool(jnp.any(leaves["threshold"] != 0))
    if strict and not alike:
        fix = "choose a recipe that selects like it, or pass strict=False to take the weights alone"
        raise _refuse(recipe, "selector", ours, theirs, fix)
    return track


def _seeded(recipe: Recipe, ours: Any, theirs: Any, leaves: Params, track: PyTree) -> PyTree | None:
    """Trackers of a recipe that trains by batch rank and infers by a threshold, starting at the SAE's threshold."""
    ranks = isinstance(ours, Column) or (isinstance(ours, Rank) and not ours.rule.per_row)
    by_batch = ranks and "threshold" in track
    if not (by_batch and isinstance(theirs, Threshold) and ours.signed == theirs.signed):
        return None
    norms = jnp.linalg.norm(leaves["W_dec"], axis=1) if ours.by_norm else jnp.ones(recipe.d_sae)
    theta, own = leaves["threshold"] * norms, track["threshold"]
    if own["sum"].ndim == 0:
        low, high = float(theta.min()), float(theta.max())
        if not np.isclose(low, high, rtol=EQUAL_NORMS):
            raise ConfigError(
                f"recipe {recipe.name!r} keeps one threshold for all latents, the SAE's lie between {low:.3g} and "
                f"{high:.3g}; choose a recipe with a threshold per latent"
            )
        theta = theta.mean()
    return {**track, "threshold": {"sum": jnp.array(theta, own["sum"].dtype), "weight": jnp.ones_like(own["weight"])}}


# ------------------------------------------------------------------------------------------ from another state
@dataclass(frozen=True)
class Adopted:
    """Which leaves of a state came from the earlier one, and which are new; dotted names."""

    kept: tuple[str, ...]
    fresh: tuple[str, ...]


def adopt(
    recipe: Recipe, state: State, key: jax.Array, sample_batch: Batch, frozen: PyTree = (), **hyper: Any
) -> tuple[State, Adopted]:
    """The next phase of a training in phases: this recipe's state, with all that fits from the last phase's.

    Parameters, moments, averages and trackers with equal name and shape are kept; all else is initialised as usual.
    Swept scalars, the random key and the step are the new phase's own, so its schedules run from their beginning.

    Args:
        recipe: of the new phase.
        state: of the last phase; it stays usable.
        key: random key of the new phase.
        sample_batch: a sample of the data, for what is initialised.
        frozen: arrays from outside that the view reads.
        **hyper: other values for swept scalars.

    Returns:
        the state, and the names of what was kept and what is fresh.

    Raises:
        ConfigError: no parameter fits.

    Example:
        >>> from jaxsae import recipes
        >>> batch = {"x": jax.random.normal(jax.random.key(0), (64, 8))}
        >>> first = recipes.init(recipes.topk(8, 32, k=8), jax.random.key(1), batch)
        >>> state, which = adopt(recipes.topk(8, 32, k=4), first, jax.random.key(2), batch)
        >>> "params.W_dec" in which.kept, int(state.hyper["k"])
        (True, 4)
    """
    new = init(recipe, key, sample_batch, frozen, hyper)
    parts = ("params", "opt", "track", "average")
    old = _named({part: getattr(state, part) for part in parts})
    paths, tree = jax.tree_util.tree_flatten_with_path({part: getattr(new, part) for part in parts})
    names = [_name(path) for path, _ in paths]
    leaves, kept = [], []
    for name, (_, fresh) in zip(names, paths, strict=True):
        found = old.get(name)
        fits = found is not None and names.count(name) == 1 and found.shape == fresh.shape
        kept += [name] if fits else []
        leaves.append(jnp.array(found, fresh.dtype) if fits else fresh)
    if not any(name.startswith("params.") for name in kept):
        raise ConfigError(
            f"recipe {recipe.name!r}: expected parameters such as W_dec with the shapes of this recipe, found none in "
            "the earlier state; give both phases the same d_in and d_sae"
        )
    found = jax.tree.unflatten(tree, leaves)
    for name in set(found["average"]) - {n.removeprefix("average.") for n in kept}:
        found["average"][name] = jnp.array(found["params"][name])
    return replace(new, **found), Adopted(tuple(kept), tuple(n for n in names if n not in kept))


def _name(path: tuple) -> str:
    """A leaf's dotted name without positions: an optimiser chain may have another link in the new phase."""
    keys = [getattr(part, "key", getattr(part, "name", None)) for part in path]
    return ".".join(str(k) for k in keys if k is not None)


def _named(tree: PyTree) -> dict[str, Any]:
    """Leaves by name; names that stand twice are left out."""
    leaves = [(_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
    names = [name for name, _ in leaves]
    return {name: leaf for name, leaf in leaves if names.count(name) == 1}
