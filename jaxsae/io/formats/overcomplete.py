"""overcomplete: the state dict of one of its SAEs (`.pt`), with a hand-written `overcomplete.json` or options.

A state dict lacks the class, k, the normaliser of the dictionary and the running threshold; those are the options.
"""

from typing import Any

import numpy as np

from jaxsae.io.formats._arrays import Arrays
from jaxsae.io.formats._base import Config, bad
from jaxsae.io.formats._build import assemble, provenance
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._module import open_module
from jaxsae.io.formats._pickle import Name
from jaxsae.io.formats._weights import inverse, product, row_norms, scale_rows, transposed
from jaxsae.sae import SAE, Affine, LayerNormed, OrthogonalPursuit, Pursuit, Quantised, Rank, Relu, Threshold

NAME = "overcomplete"
TITLE = "overcomplete state dict"
CONFIG = "overcomplete.json"
OPTIONS = ("kind", "top_k", "normalization", "running_threshold", "hard", "max_iter", "whole_module")
MODULE = "model.pt"
KINDS = ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE", "QSAE", "MpSAE", "OMPSAE")
NORMALISERS = ("l2", "max_l2", "l1", "max_l1", "identity")
MULTIPLIER = "dictionary.multiplier"
#: Keys that give a class away.
TELLS = {"thresholds": "JumpSAE", "Q": "QSAE"}
EPS, BN_EPS = 1e-8, 1e-5


def _file(listing: Listing) -> str | None:
    found = [n for n in listing.matching(r"[^/]+\.pt") if any(k.startswith("dictionary.") for k in listing.keys(n))]
    return found[0] if len(found) == 1 else "state_dict.pt" if "state_dict.pt" in found else None


def recognises(listing: Listing) -> bool:
    """A `.pt` file with their dictionary's keys."""
    return _file(listing) is not None


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads any class with a linear, one-layer normalised, tied or untied encoder, as it computes in eval mode.

    Args:
        listing: the folder or file.
        options: what the state dict lacks; they win over `overcomplete.json`.  `kind`, one of the class names;
            `top_k` (k of the pursuits, too); `normalization` of the dictionary ("l2"); `running_threshold` of
            BatchTopKSAE; `hard` of QSAE; `max_iter` of OMPSAE (10).  `whole_module=True` consents to reading a pickled
            module (`model.pt`, or the file named), which knows all of these itself; it is read as data, no code runs.
    """
    if options.get("whole_module"):
        arrays, stored = _module(listing)
        source: Any = arrays.file
    else:
        arrays = listing.arrays(_file(listing) or "state_dict.pt")
        stored = dict(listing.config(CONFIG)) if CONFIG in listing else {}
        source = listing.root / CONFIG if CONFIG in listing else arrays.file
    config = Config(source, {**stored, **{k: v for k, v in options.items() if k != "whole_module"}})
    kind = _kind(arrays, config)
    for key in arrays.scalars:
        bad(arrays.file, key, "only arrays", arrays.scalars[key])
    atoms, used = _dictionary(arrays, config)
    f, d = atoms.shape
    meta = provenance(NAME, kind, config=config)
    found = {"W_dec": atoms, "b_dec": np.zeros(d, np.float32)}
    if kind in ("MpSAE", "OMPSAE"):
        arrays.only(used)
        k = config.integer("top_k", most=f)
        encoder: Any = Pursuit(d, f, k, rectify=False)
        if kind == "OMPSAE":
            encoder = OrthogonalPursuit(d, f, k, config.integer("max_iter", 10, most=10_000))
        return assemble(listing, found, encoder=encoder, meta=meta)
    encoder, parts, own = _encoder(arrays, atoms, f, d)
    tell = {"JumpSAE": ["thresholds"], "QSAE": ["Q"]}.get(kind, [])
    arrays.only([*used, *own, *tell])
    selector, k, extra = _selector(arrays, config, kind, f)
    return assemble(listing, {**found, **parts, **extra}, encoder=encoder, selector=selector, k=k, meta=meta)


def _module(listing: Listing) -> tuple[Arrays, dict[str, Any]]:
    """(state dict, facts) of a pickled module."""
    name = listing.focus or MODULE
    if name not in listing:
        bad(listing.root / name, None, "a pickled module", "nothing")
    arrays, plain, module = open_module(listing.root / name)
    state = module.state
    facts: dict[str, Any] = {"kind": module.name.rpartition(".")[2].removeprefix("RA")}
    for key, ours in (("top_k", "top_k"), ("k", "top_k"), ("hard", "hard"), ("max_iter", "max_iter")):
        if key in state:
            facts[ours] = state[key]
    dictionary = state["_modules"].get("dictionary")
    normaliser = getattr(dictionary, "state", {}).get("normalization")
    if isinstance(normaliser, Name):
        facts["normalization"] = normaliser.name.removeprefix("normalize_")
    if "running_threshold" in plain:
        facts["running_threshold"] = plain.scalar("running_threshold")
    return arrays, facts


def _kind(arrays: Arrays, config: Config) -> str:
    told = next((kind for key, kind in TELLS.items() if key in arrays), None)
    kind = config.choice("kind", KINDS, told) if told else config.choice("kind", KINDS)
    if told and kind != told:
        config.fail("kind", f"{told}, whose arrays the file holds", kind)
    return kind


def _dictionary(arrays: Arrays, config: Config) -> tuple[np.ndarray, list[str]]:
    """(atoms [S, D], keys used): the matrix that their evaluation mode fuses."""
    multiplier = np.exp(arrays.scalar(MULTIPLIER))
    if not np.isfinite(multiplier):
        bad(arrays.file, MULTIPLIER, "the logarithm of a float32", arrays.scalar(MULTIPLIER))
    if "dictionary.W" in arrays:
        f, m = arrays.shape("dictionary.W", "fm")
        d = arrays.shape("dictionary.C", "md")[1]
        W, C = arrays.take("dictionary.W", (f, m)), arrays.take("dictionary.C", (m, d))
        atoms = (product(W, C) + arrays.take("dictionary.Relax", (f, d))).astype(np.float32)
        used = ["dictionary.W", "dictionary.C", "dictionary.Relax"]
    else:
        shape = arrays.shape("dictionary._weights", "fd")
        atoms = arrays.take("dictionary._weights", shape).astype(np.float32, copy=False)
        normaliser = config.choice("normalization", NORMALISERS, "l2")
        if normaliser != "identity":
            norms = row_norms(atoms) if "l2" in normaliser else np.abs(atoms).sum(1, dtype=np.float64)
            largest = np.broadcast_to(inverse(norms.max(keepdims=True)), norms.shape)
            scale_rows(atoms, largest if normaliser.startswith("max") else 1 / (norms + EPS))
        used = ["dictionary._weights"]
    return atoms * np.float32(multiplier), [*used, MULTIPLIER]


def _encoder(arrays: Arrays, atoms: np.ndarray, f: int, d: int) -> tuple[Any, dict[str, np.ndarray], list[str]]:
    """(encoder, its arrays, keys used)."""
    tied = [n for n in arrays if n.startswith("encoder.tied_to.")]
    linear = "encoder.final_block.0" if any(n.startswith("encoder.final_block") for n in arrays) else "encoder"
    names = [f"{linear}.weight"] * (not tied) + [f"{linear}.bias"] * (f"{linear}.bias" in arrays)
    W = transposed(atoms) if tied else transposed(arrays.take(f"{linear}.weight", (f, d)))
    b = arrays.take(f"{linear}.bias", (f,)) if f"{linear}.bias" in arrays else np.zeros(f, np.float32)
    parts = {"W_enc": W, "b_enc": b}
    plain = Affine(d, f)
    second = "encoder.final_block.1"
    if f"{second}.weight" not in arrays:
        return plain, parts, names + tied
    gain, bias = arrays.take(f"{second}.weight", (f,)), arrays.take(f"{second}.bias", (f,))
    names += [f"{second}.weight", f"{second}.bias"]
    if f"{second}.running_var" not in arrays:
        return LayerNormed(d, f, BN_EPS), parts | {"ln_gain": gain, "ln_bias": bias}, names + tied
    mean, variance = arrays.take(f"{second}.running_mean", (f,)), arrays.take(f"{second}.running_var", (f,))
    if np.any(variance < 0):
        bad(arrays.file, f"{second}.running_var", "variances", "negative numbers")
    scale = gain / np.sqrt(variance.astype(np.float64) + BN_EPS)
    parts = {"W_enc": (W * scale[None]).astype(np.float32), "b_enc": ((b - mean) * scale + bias).astype(np.float32)}
    counters = [n for n in arrays if n == f"{second}.num_batches_tracked"]
    return plain, parts, [*names, *tied, f"{second}.running_mean", f"{second}.running_var", *counters]


def _selector(arrays: Arrays, config: Config, kind: str, f: int) -> tuple[Any, int | None, dict[str, np.ndarray]]:
    if kind == "TopKSAE":
        k = config.integer("top_k", most=f)
        return Rank(k), k, {}
    if kind == "BatchTopKSAE":
        threshold = np.full(f, config.number("running_threshold"), np.float32)
        return Threshold(), None, {"threshold": just_below(threshold)}
    if kind == "JumpSAE":
        threshold = np.exp(arrays.take("thresholds", (f,)).astype(np.float32))
        return Threshold(), None, {"threshold": just_below(threshold)}
    if kind == "QSAE":
        levels = arrays.take("Q", (arrays.shape("Q", "q")[0],))
        return Quantised(len(levels), config.flag("hard")), None, {"levels": levels}
    return Relu(), None, {}


def just_below(threshold: np.ndarray) -> np.ndarray:
    """The largest float32 below each threshold: their test is >=, ours is >."""
    return np.nextafter(threshold.astype(np.float32), np.float32(-np.inf))
