"""Writing SAELens version 6 folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np

import jaxsae
from jaxsae.io.formats._base import Notes, refuse
from jaxsae.io.formats._parts import Parts, parts
from jaxsae.io.formats._sae_lens_temporal import written
from jaxsae.io.formats._safetensors import chunks
from jaxsae.io.formats._weights import row_norms, transposed
from jaxsae.io.formats._write import as_json, write_files
from jaxsae.sae import SAE, NoNorm, PreSelect, Pursuit, RowLength, RowNorm, Temporal

FORMAT = "sae_lens"
#: The layout version a reader of ours or theirs decides by.
LAYOUT = "6.0.0"
SKIPPABLE = {"relu": "transcoder", "jumprelu": "jumprelu_transcoder"}
NAMES = {"relu": "standard", "gated": "gated", "jumprelu": "jumprelu", "topk": "topk", "abstopk": "abstopk"}


def write(sae: SAE, path: Path, notes: Notes) -> None:
    """Writes `cfg.json` and `sae_weights.safetensors`."""
    if isinstance(sae.encoder, PreSelect) and isinstance(sae.encoder.encoder, Temporal):
        arrays, config = written(sae, sae.encoder.encoder)
        config["architecture"] = "temporal"
    elif isinstance(sae.encoder, Pursuit):
        arrays, config = _pursuit(sae, sae.encoder)
    else:
        arrays, config = _plain(sae, notes)
    dtypes = {a.dtype for a in arrays.values()}
    if len(dtypes) > 1:
        arrays = {n: a.astype(np.float32) for n, a in arrays.items()}
    config = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": next(iter(arrays.values())).dtype.name,
        "device": "cpu",
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if sae.rows.heads else "none",
        **config,
        "metadata": _metadata(sae, notes),
    }
    write_files(path, {"sae_weights.safetensors": chunks(arrays), "cfg.json": as_json(config)})


def _plain(sae: SAE, notes: Notes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    p = parts(sae, FORMAT, notes).fold_scaling()
    kind = p.needs(*NAMES)
    config: dict[str, Any] = {}
    if _is_transcoder(sae, p):
        if kind not in SKIPPABLE:
            what = "a linear skip" if p.skip else f"d_out {p.d_out} where d_in is {p.d_in}"
            refuse(FORMAT, f"{kind} with {what}", ("sparsify",) if kind == "topk" and p.d_in == p.d_out else ())
        p = p.uncentred()
        name = SKIPPABLE[kind].replace("transcoder", "skip_transcoder") if p.skip else SKIPPABLE[kind]
        config["d_out"] = p.d_out
    else:
        name = NAMES[kind]
    config |= {"architecture": name, "apply_b_dec_to_input": p.centred, **_norm(sae, p, "transcoder" in name)}
    if kind in ("topk", "abstopk"):
        config |= {"k": p.k, "rescale_acts_by_decoder_norm": p.selector.by_norm}
        if p.selector.by_norm:
            notes("latents are multiplied by the norm of their atom (rescale_acts_by_decoder_norm)")
            notes.scaled(row_norms(p.arrays["W_dec"]))
    arrays = dict(p.arrays)
    if p.skip:
        arrays["W_skip"] = transposed(arrays["W_skip"])
    return arrays, config


def _is_transcoder(sae: SAE, p: Parts) -> bool:
    out = sae.meta.get("site_out")
    named = out is not None and out != sae.meta.site and p.kind in SKIPPABLE
    return p.skip or p.d_in != p.d_out or named


def _norm(sae: SAE, p: Parts, transcoder: bool) -> dict[str, str]:
    norm = p.norm
    if isinstance(norm, NoNorm):
        return {}
    names = {RowNorm: "layer_norm", RowLength: "constant_norm_rescale"}
    if type(norm) not in names or getattr(norm, "ddof", 1) != 1 or norm.restore == transcoder:
        refuse(FORMAT, f"the input scaling {norm}" + (" of a transcoder" if transcoder else ""))
    if p.skip and not getattr(sae.readout, "raw", False):
        refuse(FORMAT, f"a skip path that reads rows after {type(norm).__name__}")
    return {"normalize_activations": names[type(norm)]}


def _pursuit(sae: SAE, encoder: Pursuit) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if not encoder.rectify or not isinstance(sae.norm, NoNorm) or sae.rows.inputs:
        refuse(FORMAT, f"the pursuit {encoder} after {type(sae.norm).__name__}")
    arrays = {"W_dec": np.asarray(sae.W_dec), "b_dec": np.asarray(sae.b_dec)}
    centred = encoder.b_pre == "b_dec"
    if not centred and np.any(arrays["b_dec"]):
        refuse(FORMAT, "a matching pursuit that adds b_dec without subtracting it first")
    config = {
        "architecture": "matching_pursuit",
        "residual_threshold": encoder.stop_below,
        "max_iterations": encoder.steps,
        "stop_on_duplicate_support": encoder.stop_on_repeat,
        "apply_b_dec_to_input": centred,
    }
    return arrays, config


def _metadata(sae: SAE, notes: Notes) -> dict[str, Any]:
    """The peer's own metadata where the dictionary came from one of its folders, ours added."""
    kept: dict[str, Any] = {}
    if sae.meta.get("source_format") == FORMAT:
        kept = json.loads(sae.meta.get("source_config", "{}")).get("metadata", {})
    if sae.meta.host:
        kept["model_name"] = sae.meta.host
    if sae.meta.site:
        kept["hook_name"] = sae.meta.site
    if sae.meta.get("site_out"):
        kept["hook_name_out"] = sae.meta.get("site_out")
    folded = [*sae.meta.get("folded", ()), *notes.all]
    return kept | {"sae_lens_version": LAYOUT, "jaxsae": {"version": jaxsae.__version__, "folded": folded}}
