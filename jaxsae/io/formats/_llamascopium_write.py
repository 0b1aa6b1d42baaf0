"""Writing llamascopium folders: plain coders, crosscoders, cross-layer transcoders, MOLTs, attention dictionaries."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxsae.io.formats._base import Notes, refuse
from jaxsae.io.formats._parts import parts
from jaxsae.io.formats._safetensors import chunks
from jaxsae.io.formats._sidecar import remarks
from jaxsae.io.formats._sites import unstacked_atoms
from jaxsae.io.formats._weights import transposed, widened
from jaxsae.io.formats._write import as_json, write_files
from jaxsae.sae import (
    SAE,
    Affine,
    BatchRule,
    Bias,
    BySite,
    DatasetNorm,
    Lorsa,
    NoNorm,
    PerSite,
    PreSelect,
    Rank,
    Relu,
    RowLength,
    RowRule,
    Threshold,
    Transforms,
    Triangular,
)

FORMAT = "llamascopium"
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
AVERAGE = "dataset_average_activation_norm."
VERSION = "2.0.0"


def write(sae: SAE, path: Path, notes: Notes) -> None:
    """Writes `config.json` and `sae_weights.safetensors`."""
    inner = sae.encoder.encoder if isinstance(sae.encoder, PreSelect) else sae.encoder
    if isinstance(inner, PerSite):
        arrays, config = _clt(sae)
    elif isinstance(inner, Lorsa):
        arrays, config = _lorsa(sae, inner)
    elif isinstance(sae.dictionary, Transforms):
        arrays, config = _molt(sae)
    elif len(sae.rows.inputs) == 2 and isinstance(inner, Affine):
        arrays, config = _crosscoder(sae)
    else:
        arrays, config = _plain(sae, notes)
    kept: dict[str, Any] = {}
    if sae.meta.get("source_format") == FORMAT:
        kept = json.loads(sae.meta.get("source_config", "{}"))
    config = {**_defaults(sae), **kept, **config, "jaxsae": remarks(FORMAT, sae, notes)}
    for name in _hooks(config):
        arrays.setdefault(AVERAGE + name, np.ones((), np.float32))
    if len({a.dtype for n, a in arrays.items() if a.dtype.kind in "fV" and not n.startswith(AVERAGE)}) > 1:
        arrays = widened(arrays)
    weights = chunks(arrays, {"version": VERSION})
    write_files(path, {"sae_weights.safetensors": weights, "config.json": as_json(config)})


def _defaults(sae: SAE) -> dict[str, Any]:
    site = sae.meta.site or "in"
    return {
        "sae_type": "sae",
        "use_decoder_bias": True,
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": False,
        "top_k": 50,
        "hook_point_in": site,
        "hook_point_out": sae.meta.get("site_out", site),
    }


def _hooks(config: dict[str, Any]) -> list[str]:
    if config["sae_type"] == "crosscoder":
        return config["hook_points"]
    if config["sae_type"] == "clt":
        return [*config["hook_points_in"], *config["hook_points_out"]]
    return [config["hook_point_in"], config["hook_point_out"]]


def expansion(d: int, f: int) -> float:
    """A factor with int(d * factor) == f in floating point."""
    factor = f / d
    while int(d * factor) < f:
        factor = math.nextafter(factor, math.inf)
    return factor


def _logarithm(threshold: np.ndarray) -> np.ndarray:
    if np.any(threshold < 0):
        refuse(FORMAT, "negative thresholds (it stores logarithms)", ("circuit_tracer",))
    with np.errstate(divide="ignore"):
        return np.log(threshold.astype(np.float64)).astype(np.float32)


def _plain(sae: SAE, notes: Notes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    p = parts(sae, FORMAT, notes)
    scaled = isinstance(p.norm, DatasetNorm)
    constants = p.arrays
    if scaled and p.centred:
        p = p.uncentred()
    if not scaled and not isinstance(p.norm, (NoNorm, RowLength)):
        p = p.fold_scaling()
    config: dict[str, Any] = {}
    if scaled:
        config["norm_activation"] = "dataset-wise"
    elif isinstance(p.norm, RowLength) and not p.norm.restore:
        config["norm_activation"] = "token-wise"
    elif not isinstance(p.norm, NoNorm):
        refuse(FORMAT, f"the input scaling {p.norm}", ("sae_lens",))
    if p.rows.heads or p.skip or p.d_in != p.d_out:
        refuse(FORMAT, "rows split into heads, a skip path, or d_out other than d_in", ("sae_lens",))
    kind = "batchtopk" if _is_batch(p) else p.needs("relu", "topk", "jumprelu", "glu")
    p = p.uncentred()
    names = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
    if kind == "glu":
        names |= {"W_glu": "W_E_glu", "b_glu": "b_E_glu"}
        config["use_glu_encoder"] = True
    arrays = {theirs: p.arrays[ours] for ours, theirs in names.items()}
    act, extra, more = _activation(p.selector, p.arrays, p.k)
    if scaled:
        d = p.d_in
        hooks = _hooks({**_defaults(sae), **_source(sae), "sae_type": "sae"})
        norms = [math.sqrt(d) / float(constants[c]) for c in ("c_in", "c_out")]
        if hooks[0] == hooks[1] and norms[0] != norms[1]:
            hooks[1] += ".out"
            config["hook_point_out"] = hooks[1]
        extra |= {AVERAGE + h: np.asarray(n, np.float32) for h, n in zip(hooks, norms, strict=True)}
    config |= {"d_model": p.d_in, "expansion_factor": expansion(p.d_in, p.d_sae), "act_fn": act, **more}
    return arrays | extra, config


def _is_batch(p: Any) -> bool:
    """The peer keeps k * rows of a batch too, for a whole k."""
    s = p.selector
    return isinstance(s, Rank) and isinstance(s.rule, BatchRule) and s.rectify and not s.signed and _whole(p.k)


def _whole(k: Any) -> bool:
    return k is not None and float(k).is_integer()


def _source(sae: SAE) -> dict[str, Any]:
    return json.loads(sae.meta.get("source_config", "{}")) if sae.meta.get("source_format") == FORMAT else {}


def _activation(
    selector: Any, arrays: dict[str, np.ndarray], k: int | None
) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    """(act_fn, its arrays, its configuration) of one of the three selections there are."""
    if isinstance(selector, Relu):
        return "relu", {}, {"sparsity_include_decoder_norm": False}
    if isinstance(selector, Threshold) and not selector.signed:
        threshold = arrays["threshold"]
        if selector.rectify:  # relu(h) where h > t < 0 is relu(h): the same as a threshold of 0
            threshold = np.maximum(threshold, 0)
        return "jumprelu", {LOG_THRESHOLD: _logarithm(threshold)}, {"sparsity_include_decoder_norm": False}
    if isinstance(selector, Rank) and isinstance(selector.rule, BatchRule):
        return "batchtopk", {}, {"top_k": k, "sparsity_include_decoder_norm": selector.by_norm}
    if isinstance(selector, Rank) and isinstance(selector.rule, RowRule) and selector.rectify and not selector.signed:
        return "topk", {}, {"top_k": k, "sparsity_include_decoder_norm": selector.by_norm}
    refuse(FORMAT, f"the selection {selector}", ("sae_lens",))


def _plain_scale(sae: SAE) -> None:
    if not isinstance(sae.norm, NoNorm):
        refuse(FORMAT, f"several sites, transforms or attention with {type(sae.norm).__name__}")


def _crosscoder(sae: SAE) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    sites, d = sae.rows.inputs
    selector = sae.encoder.selector  # type: ignore[attr-defined]
    _plain_scale(sae)
    if not isinstance(selector, Relu) or sae.rows.outputs != (sites, d) or sae.encoder.encoder.b_pre != "none":  # type: ignore[attr-defined]
        refuse(FORMAT, "a crosscoder of shared latents with anything but ReLU (it judges each head by itself)")
    a = {n: np.asarray(v) for n, v in sae.params.items()}
    b_enc = np.zeros((sites, sae.d_sae), a["b_enc"].dtype)
    b_enc[0] = a["b_enc"]
    arrays = {
        "W_E": a["W_enc"].reshape(sites, d, sae.d_sae),
        "b_E": b_enc,
        "W_D": unstacked_atoms(np.asarray(sae.W_dec), sites),
        "b_D": a["b_dec"].reshape(sites, d),
    }
    hooks = _source(sae).get("hook_points") or [f"site_{i}" for i in range(sites)]
    config = {"sae_type": "crosscoder", "d_model": d, "expansion_factor": expansion(d, sae.d_sae), "act_fn": "relu"}
    return arrays, config | {"hook_points": hooks, "sparsity_include_decoder_norm": False}


def _clt(sae: SAE) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    sites = sae.encoder.encoder.sites  # type: ignore[attr-defined]
    d = sae.d_in // sites
    selector, k = sae.encoder.selector, sae.k  # type: ignore[attr-defined]
    _plain_scale(sae)
    plain = isinstance(sae.dictionary, Triangular) and isinstance(sae.readout, Bias)
    if not plain or sae.d_out != sae.d_in:
        refuse(FORMAT, "a cross-layer transcoder with a skip path or other output widths", ("gemma_scope_2",))
    a = {n: np.asarray(v) for n, v in sae.params.items()}
    f = sae.d_sae // sites
    ragged = [a[f"W_dec_{i}"] for i in range(sites)]
    b_dec = a["b_dec"].reshape(sites, d)
    arrays = {"W_E": a["W_enc"], "b_E": a["b_enc"]}
    for j in range(sites):
        arrays[f"W_D.{j}"] = np.stack([ragged[i][:, j - i] for i in range(j + 1)])
        arrays[f"b_D.{j}"] = b_dec[j]
    more: dict[str, Any]
    if isinstance(selector, BySite) and isinstance(selector.inner, Rank):
        act, extra, more = _activation(selector.inner, a, k)
        more["sparsity_include_decoder_norm"] = selector.by_norm
    elif isinstance(selector, Rank):
        act, extra, more = _activation(selector, a, k)
        act = {"topk": "layertopk", "batchtopk": "batchlayertopk"}[act]
    else:
        act, extra, more = _activation(selector, a, k)
    if LOG_THRESHOLD in extra:
        extra[LOG_THRESHOLD] = extra[LOG_THRESHOLD].reshape(sites, f)
    source = _source(sae)
    config = {
        "sae_type": "clt",
        "d_model": d,
        "expansion_factor": expansion(d, f),
        "act_fn": act,
        "hook_points_in": source.get("hook_points_in") or [f"blocks.{i}.hook_resid_mid" for i in range(sites)],
        "hook_points_out": source.get("hook_points_out") or [f"blocks.{i}.hook_mlp_out" for i in range(sites)],
    }
    return arrays | extra, config | more


def _molt(sae: SAE) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    _plain_scale(sae)
    D: Any = sae.dictionary
    ranks = [r for r, _ in D.ranks]
    plain = isinstance(sae.encoder, PreSelect) and isinstance(sae.encoder.encoder, Affine)
    if not plain or sae.encoder.encoder.b_pre != "none" or D.d_in != D.d_out or ranks != sorted(ranks):  # type: ignore[attr-defined]
        refuse(FORMAT, "this mixture of linear transforms (centred, not square, or not ordered by rank)")
    a = {n: np.asarray(v) for n, v in sae.params.items()}
    arrays = {"W_E": a["W_enc"], "b_E": a["b_enc"], "b_D": a["b_dec"]}
    for r in ranks:
        arrays |= {f"U_matrices.{r}": a[f"U_{r}"], f"V_matrices.{r}": a[f"V_{r}"]}
    act, extra, more = _activation(sae.encoder.selector, a, sae.k)  # type: ignore[attr-defined]
    counts = {str(r): count for r, count in D.ranks}
    config = {"sae_type": "molt", "d_model": D.d_in, "expansion_factor": D.d_sae / D.d_in, "act_fn": act}
    return arrays | extra, config | more | {"rank_counts": counts}


def _lorsa(sae: SAE, encoder: Lorsa) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    _plain_scale(sae)
    if sae.d_out != sae.d_in:
        refuse(FORMAT, "an attention dictionary whose output is of another width")
    a = {n: np.asarray(v) for n, v in sae.params.items()}
    names = {"W_Q": "W_q", "W_K": "W_k", "b_Q": "b_q", "b_K": "b_k", "b_V": "b_enc", "b_D": "b_dec"}
    arrays = {theirs: a[ours] for theirs, ours in names.items()}
    arrays |= {"W_V": transposed(a["W_enc"]), "W_O": np.asarray(sae.W_dec)}
    n = encoder.context
    arrays |= {"mask": np.tril(np.ones((n, n), bool)), "IGNORE": np.asarray(-np.inf, np.float32)}
    if encoder.rotary_dim:
        arrays |= {name: a[name] for name in encoder.fixed}
    act, extra, more = _activation(sae.encoder.selector, a, sae.k)  # type: ignore[attr-defined]
    config = {
        "sae_type": "lorsa",
        "d_model": sae.d_in,
        "expansion_factor": expansion(sae.d_in, sae.d_sae),
        "act_fn": act,
        "n_qk_heads": encoder.n_heads,
        "d_qk_head": encoder.d_head,
        "positional_embedding_type": "rotary" if encoder.rotary_dim else "none",
        "rotary_dim": encoder.rotary_dim,
        "rotary_base": encoder.rotary_base,
        "rotary_adjacent_pairs": encoder.adjacent,
        "n_ctx": n,
        "attn_scale": encoder.attn_scale or math.sqrt(encoder.d_head),
    }
    return arrays | extra, config | more
