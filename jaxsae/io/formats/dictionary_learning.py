"""dictionary_learning: `ae.pt` beside `config.json`, as a finished run leaves them, or a checkpoint of one."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxsae.errors import FormatError
from jaxsae.io.formats._arrays import Arrays
from jaxsae.io.formats._base import Config, Notes, bad
from jaxsae.io.formats._build import affine, assemble, fold_decoder_norm, provenance
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._parts import Parts, parts
from jaxsae.io.formats._pt import pt_bytes
from jaxsae.io.formats._sidecar import write_with_notes
from jaxsae.io.formats._weights import row_norms, transposed
from jaxsae.sae import SAE, BatchRule, Gated, Rank, Relu, Threshold

NAME = "dictionary_learning"
TITLE = "dictionary_learning trainer folder"
OPTIONS = ("selection", "dict_class")
WEIGHTS, CONFIG = "ae.pt", "config.json"
#: The arrays of each class: their name -> (ours, axes in their order).
LINEAR = {"encoder.weight": ("W_enc", "fd"), "encoder.bias": ("b_enc", "f"), "decoder.weight": ("W_dec", "df")}
DIRECT = {"W_enc": ("W_enc", "df"), "b_enc": ("b_enc", "f"), "W_dec": ("W_dec", "fd"), "b_dec": ("b_dec", "d")}
GATES = {n: (o, "f") for n, o in (("gate_bias", "b_gate"), ("mag_bias", "b_mag"), ("r_mag", "r_mag"))}
CLASSES = {
    "AutoEncoder": {**LINEAR, "bias": ("b_dec", "d")},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": ("b_dec", "d")},
    "GatedAutoEncoder": {n: LINEAR[n] for n in ("encoder.weight", "decoder.weight")}
    | {**GATES, "decoder_bias": ("b_dec", "d")},
    "JumpReluAutoEncoder": {**DIRECT, "threshold": ("threshold", "f")},
    "AutoEncoderTopK": {**LINEAR, "b_dec": ("b_dec", "d")},
    "BatchTopKSAE": {**LINEAR, "b_dec": ("b_dec", "d")},
    "MatryoshkaBatchTopKSAE": DIRECT,
}
RANKED = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
INTEGERS = ("int64", "int32", "int16", "uint8", "int8")


def _file(listing: Listing) -> str | None:
    found = [n for n in listing.matching(r"(checkpoints/)?ae(_\d+)?\.pt") if n in (WEIGHTS, listing.focus)]
    return found[0] if found else None


def recognises(listing: Listing) -> bool:
    """`ae.pt`, or a checkpoint `ae_STEP.pt` that was named."""
    return _file(listing) is not None


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads any class.

    Args:
        listing: the trainer's folder, or one checkpoint in it.
        options: `selection` of a top-k class: "threshold" or "batch" instead of its default (top-k per row for
            AutoEncoderTopK, the learned threshold for the batch classes); `dict_class` where config.json is missing.
    """
    arrays = listing.arrays(_file(listing) or WEIGHTS)
    trainer = listing.config(CONFIG).part("trainer") if CONFIG in listing else Config(arrays.file, options)
    kind = trainer.choice("dict_class", CLASSES)
    whole = (CONFIG in listing and trainer) or None
    arrays, factor = _weights_of(arrays)
    found = _read(arrays, kind, trainer)
    meta = provenance(NAME, kind, config=whole, host=trainer.text("lm_name", None), site=_site(trainer))
    if factor is not None:
        for name in ("b_enc", "b_dec", "b_gate", "b_mag", "threshold"):
            if name in found and (name != "threshold" or np.all(found[name] > 0)):
                found[name] = (found[name] * factor).astype(np.float32)
        meta = meta.with_extra(folded=(f"norm_factor {factor:g} of an unfinished run into the biases",))
    if kind == "GatedAutoEncoder":
        d, f = found["W_enc"].shape
        return assemble(listing, found, encoder=Gated(d, f), selector=Relu(), meta=meta)
    if kind == "AutoEncoder":
        found = fold_decoder_norm(found)
        meta = meta.with_extra(folded=(*meta.get("folded", ()), "decoder norm, as their loader does"))
    encoder = affine(found, kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"))
    if kind not in RANKED:
        selector: Any = Threshold() if kind == "JumpReluAutoEncoder" else Relu()
        return assemble(listing, found, encoder=encoder, selector=selector, meta=meta)
    return _ranked(listing, arrays, found, kind, trainer, options, encoder, meta)


def _site(trainer: Config) -> str | None:
    return trainer.text("submodule_name", None)


def _weights_of(arrays: Arrays) -> tuple[Arrays, float | None]:
    """The state dict itself, and the norm factor where it lies inside a backup of a run that was not finished."""
    if not {"ae.encoder.weight", "ae.W_enc"} & set(arrays):
        if any(k not in ("k",) for k in arrays.scalars):
            key = next(iter(arrays.scalars))
            bad(arrays.file, key, "only arrays", arrays.scalars[key])
        return arrays, None
    inner = {n.removeprefix("ae."): e for n, e in arrays.entries.items() if n.startswith("ae.")}
    factor: Any = arrays.scalars.get("norm_factor")
    if "norm_factor" in arrays:
        factor = arrays.scalar("norm_factor")
    if factor is not None and (not isinstance(factor, (int, float)) or not 0 < factor < 1e30):
        bad(arrays.file, "norm_factor", "a positive number or none", factor)
    return Arrays(arrays.file, inner), None if factor is None else float(factor)


def _read(arrays: Arrays, kind: str, trainer: Config) -> dict[str, np.ndarray]:
    table = CLASSES[kind]
    extra = ["k", "threshold"] if kind in RANKED else []
    extra += ["group_sizes"] if kind.startswith("Matryoshka") else []
    arrays.only([*table, *extra])
    key, axes = next((n, axes) for n, (ours, axes) in table.items() if ours == "W_enc")
    sizes = dict(zip(axes, arrays.shape(key, axes), strict=True))
    trainer.equals("activation_dim", sizes["d"], f"the width of {key}")
    trainer.equals("dict_size", sizes["f"], f"the latents of {key}")
    found = {}
    for theirs, (ours, axes) in table.items():
        array = arrays.take(theirs, tuple(sizes[c] for c in axes))
        found[ours] = transposed(array) if (ours, axes) in (("W_enc", "fd"), ("W_dec", "df")) else array
    return found


def _ranked(
    listing: Listing,
    arrays: Arrays,
    found: dict[str, np.ndarray],
    kind: str,
    trainer: Config,
    options: dict[str, Any],
    encoder: Any,
    meta: Any,
) -> SAE:
    d_sae = found["W_enc"].shape[1]
    k, threshold = int(arrays.scalar("k", INTEGERS)), arrays.scalar("threshold")
    if not 0 < k <= d_sae:
        bad(arrays.file, "k", f"a whole number from 1 to {d_sae}", k)
    trainer.equals("k", k, f"as in {arrays.file.name}")
    meta = meta.with_extra(k=k, topk_threshold=threshold)
    if kind.startswith("Matryoshka"):
        groups = arrays.take("group_sizes", arrays["group_sizes"].shape, INTEGERS)
        if groups.ndim != 1 or groups.sum() != d_sae or np.any(groups <= 0):
            bad(arrays.file, "group_sizes", f"sizes that add up to {d_sae}", groups.tolist())
        meta = meta.with_extra(group_sizes=tuple(map(int, groups)))
    selection = options.get("selection", "rank" if kind == "AutoEncoderTopK" else "threshold")
    if selection == "threshold":
        found["threshold"] = np.full(d_sae, threshold, np.float32)
        return assemble(listing, found, encoder=encoder, selector=Threshold(), meta=meta)
    if selection == "rank" and kind == "AutoEncoderTopK":
        return assemble(listing, found, encoder=encoder, selector=Rank(k), k=k, meta=meta)
    if selection == "batch" and kind != "AutoEncoderTopK":
        selector = Rank(min(d_sae, 4 * k), BatchRule())
        return assemble(listing, found, encoder=encoder, selector=selector, k=k, meta=meta)
    able = "'rank' or 'threshold'" if kind == "AutoEncoderTopK" else "'threshold' or 'batch'"
    raise FormatError(f"option 'selection': expected {able} for {kind}, found {selection!r}")


# ------------------------------------------------------------------------------------------------ writing
def save(sae: SAE, path: Path, notes: Notes) -> None:
    """Writes `ae.pt` and `config.json` of the class that computes the same."""
    p = parts(sae, NAME, notes).fold_scaling()
    p.needs_plain_rows()
    kind, p, extra = _class_of(sae, p)
    content: dict[str, Any] = {}
    for theirs, (ours, axes) in CLASSES[kind].items():
        array = p.arrays[ours].astype(np.float32, copy=False)
        content[theirs] = transposed(array) if (ours, axes) in (("W_enc", "fd"), ("W_dec", "df")) else array
    content |= extra
    config = {"trainer": _trainer(sae, p, kind, extra)}
    text = [json.dumps(config, indent=4).encode()]
    write_with_notes(path / WEIGHTS, pt_bytes(content), NAME, sae, notes, {CONFIG: text})


def _class_of(sae: SAE, p: Parts) -> tuple[str, Parts, dict[str, np.ndarray]]:
    kind = p.needs("relu", "topk", "jumprelu", "gated")
    if kind == "gated":
        return "GatedAutoEncoder", p.centred_by_b_dec(), {}
    if kind == "topk":
        p = p.unit_atoms() if p.selector.by_norm else p
        learned = np.float32(sae.meta.get("topk_threshold", -1.0))
        extra = {"k": np.asarray(p.k, np.int32), "threshold": np.asarray(learned)}
        return "AutoEncoderTopK", p.centred_by_b_dec(), extra
    if kind == "relu":
        if p.centred and np.allclose(row_norms(p.arrays["W_dec"]), 1, atol=1e-6):
            return "AutoEncoder", p, {}
        return "AutoEncoderNew", p.uncentred(), {}
    return _threshold_class(sae, p)


def _threshold_class(sae: SAE, p: Parts) -> tuple[str, Parts, dict[str, np.ndarray]]:
    """A batch class if the dictionary came from one and still has one threshold, else JumpReLU."""
    threshold, source, k = p.arrays["threshold"], sae.meta.get("architecture"), sae.meta.get("k")
    if source in RANKED[1:] and k is not None and np.all(threshold == threshold[0]):
        extra = {"k": np.asarray(k, np.int32), "threshold": np.asarray(threshold[0], np.float32)}
        if source.startswith("Matryoshka"):
            extra["group_sizes"] = np.asarray(sae.meta.get("group_sizes"), np.int64)
        return source, p.centred_by_b_dec(), extra
    return "JumpReluAutoEncoder", p.uncentred(), {}


def _trainer(sae: SAE, p: Parts, kind: str, extra: dict[str, np.ndarray]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    if sae.meta.get("source_format") == NAME:
        kept = json.loads(sae.meta.get("source_config", "{}"))
    kept |= {"dict_class": kind, "activation_dim": p.d_in, "dict_size": p.d_sae}
    kept.setdefault("trainer_class", "jaxsae")
    if sae.meta.host:
        kept["lm_name"] = sae.meta.host
    if sae.meta.site:
        kept["submodule_name"] = sae.meta.site
    if "k" in extra:
        kept["k"] = int(extra["k"])
    if "group_sizes" in extra:
        kept["group_sizes"] = extra["group_sizes"].tolist()
    return kept
