"""llamascopium (OpenMOSS 2.x): `config.json` with a `sae_type`, and `sae_weights.safetensors` (or `.pt`)."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxsae.io.formats import _llamascopium_write
from jaxsae.io.formats._arrays import Arrays
from jaxsae.io.formats._base import Config, Notes
from jaxsae.io.formats._build import affine, assemble, provenance, start_for
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._llamascopium_other import ranks, read_lorsa, read_molt, selection
from jaxsae.io.formats._llamascopium_sites import (
    LOG_THRESHOLD,
    dataset_scales,
    hooks,
    per_site,
    read_clt,
    read_crosscoder,
)
from jaxsae.io.formats._weights import row_norms
from jaxsae.sae import (
    SAE,
    BatchRule,
    DatasetNorm,
    Glu,
    NoNorm,
    Rank,
    RowLength,
    Standardise,
)

NAME = "llamascopium"
TITLE = "llamascopium (OpenMOSS 2.x) folder"
OPTIONS: tuple[str, ...] = ()
CONFIG, WEIGHTS = "config.json", ("sae_weights.safetensors", "sae_weights.pt")
TYPES = ("sae", "crosscoder", "clt", "molt", "lorsa")
ACTS = {
    "sae": ("relu", "topk", "jumprelu", "batchtopk"),
    "clt": ("relu", "topk", "jumprelu", "layertopk", "batchlayertopk"),
    **dict.fromkeys(("crosscoder", "molt", "lorsa"), ("relu", "topk", "jumprelu")),
}
NORMS = ("none", "inference", "token-wise", "batch-wise", "dataset-wise")
AVERAGE = "dataset_average_activation_norm."


def recognises(listing: Listing) -> bool:
    """`config.json` that says `sae_type`, or cannot be read, beside their weights."""
    return CONFIG in listing and any(n in listing for n in WEIGHTS) and not _belongs_elsewhere(listing)


def _belongs_elsewhere(listing: Listing) -> bool:
    """The R1-Distill folders of their older library have the same two file names."""
    return "encoder.weight" in listing.keys(WEIGHTS[0]) and not listing.has_key(CONFIG, "sae_type")


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads an SAE, transcoder, crosscoder, cross-layer transcoder, MOLT or Lorsa.

    Data-set norms stay with the coder (its latents are those of the normalised row, as in the peer).
    """
    config = listing.config(CONFIG)
    arrays = listing.arrays(next(n for n in WEIGHTS if n in listing))
    kind = config.choice("sae_type", TYPES)
    d = config.integer("d_model")
    f = 0 if kind == "molt" else _latents(config, d)
    act = config.choice("act_fn", ACTS[kind], "relu")
    by_norm = config.flag("sparsity_include_decoder_norm", True)
    names = [n for n in arrays if not n.startswith(AVERAGE)]
    Arrays(arrays.file, {n: arrays[n] for n in names}).only(*_names(config, kind, act))
    reader = {"sae": _read_sae, "crosscoder": read_crosscoder, "clt": read_clt, "molt": read_molt, "lorsa": read_lorsa}
    found, frame = reader[kind](config, arrays, d, f, act, by_norm)
    norm, constants = _norm(config, arrays, kind, d)
    site, out = config.text("hook_point_in", None), config.text("hook_point_out", None)
    meta = provenance(NAME, kind, config=config, site=site, site_out=out if out != site else None)
    return assemble(listing, {**found, **constants}, norm=norm, meta=meta, **frame)


def _latents(config: Config, d: int) -> int:
    """d_model * expansion_factor, which must be (nearly) whole."""
    product = d * config.number("expansion_factor", above=0)
    if not 1 <= product < 2**31 or abs(product - round(product)) > 1e-6 * product:
        config.fail("expansion_factor", f"a factor that makes a whole number of latents of d_model {d}", product / d)
    return round(product)


def _names(config: Config, kind: str, act: str) -> tuple[list[str], list[str]]:
    """(required, optional) arrays of a type."""
    bias = config.flag("use_decoder_bias", True)
    threshold = [LOG_THRESHOLD] * (act == "jumprelu")
    if kind == "clt":
        n = len(hooks(config, "hook_points_in"))
        names = ["W_E", "b_E"] + [f"W_D.{j}" for j in range(n)] + [f"b_D.{j}" for j in range(n)] * bias
    elif kind == "lorsa":
        names = ["W_Q", "W_K", "b_Q", "b_K", "W_V", "b_V", "W_O"] + ["b_D"] * bias
        return names + threshold, ["mask", "IGNORE", "rotary_sin", "rotary_cos"]
    elif kind == "molt":
        names = ["W_E", "b_E"] + [f"{m}_matrices.{r}" for r in ranks(config) for m in "UV"] + ["b_D"] * bias
    else:
        names = ["W_E", "b_E", "W_D"] + ["b_D"] * bias
        names += ["W_E_glu", "b_E_glu"] * (kind == "sae" and config.flag("use_glu_encoder", False))
    return names + threshold, []


def _read_sae(
    config: Config, arrays: Arrays, d: int, f: int, act: str, by_norm: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    found = {
        "W_enc": arrays.take("W_E", (d, f)),
        "b_enc": arrays.take("b_E", (f,)),
        "W_dec": arrays.take("W_D", (f, d)),
    }
    bias = config.flag("use_decoder_bias", True)
    found["b_dec"] = arrays.take("b_D", (d,)) if bias else np.zeros(d, found["W_dec"].dtype)
    encoder: Any = affine(found, False)
    if config.flag("use_glu_encoder", False):
        found |= {"W_glu": arrays.take("W_E_glu", (d, f)), "b_glu": arrays.take("b_E_glu", (f,))}
        encoder = Glu(d, f, "none", start_for(found))
    norms = row_norms(found["W_dec"]) if by_norm and act == "jumprelu" else np.ones(f)
    if act == "batchtopk":
        k = config.integer("top_k", most=f)
        return found, {"encoder": encoder, "selector": Rank(min(f, 4 * k), BatchRule(), by_norm=by_norm), "k": k}
    selector, k, extra = selection(config, arrays, act, by_norm, norms)
    return {**found, **extra}, {"encoder": encoder, "selector": selector, "k": k}


def _norm(config: Config, arrays: Arrays, kind: str, d: int) -> tuple[Any, dict[str, np.ndarray]]:
    norm = config.choice("norm_activation", NORMS, "none")
    if norm == "batch-wise":
        config.fail("norm_activation", "anything but batch-wise (the result would depend on the batch)", norm)
    if norm == "token-wise":
        if kind in ("crosscoder", "clt"):
            config.fail("norm_activation", f"anything but token-wise for a {kind}", norm)
        return RowLength(restore=False), {}
    if norm != "dataset-wise":
        return NoNorm(), {}
    if kind in ("crosscoder", "clt"):
        ins, outs = ("hook_points",) * 2 if kind == "crosscoder" else ("hook_points_in", "hook_points_out")
        s_in, s_out = (dataset_scales(arrays, hooks(config, key), d) for key in (ins, outs))
        zeros = np.zeros(len(s_in) * d, np.float32)
        scales = {"x_scale": per_site(s_in, d), "y_scale": per_site(s_out, d)}
        return Standardise(), {"x_mean": zeros, "y_mean": zeros.copy(), **scales}
    names = [config.text("hook_point_in"), config.text("hook_point_out")]
    c_in, c_out = dataset_scales(arrays, names, d)
    return DatasetNorm(), {"c_in": np.asarray(c_in, np.float32), "c_out": np.asarray(c_out, np.float32)}


def save(sae: SAE, path: Path, notes: Notes) -> None:
    """Writes `config.json` and `sae_weights.safetensors`."""
    _llamascopium_write.write(sae, path, notes)
