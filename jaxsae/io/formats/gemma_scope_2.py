"""Gemma Scope 2: `params.safetensors` of an SAE or transcoder; one `params_layer_i.safetensors` per layer of a CLT."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxsae.io.formats._arrays import Arrays
from jaxsae.io.formats._base import Notes, bad, refuse
from jaxsae.io.formats._build import affine, assemble, provenance
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._parts import parts
from jaxsae.io.formats._safetensors import chunks
from jaxsae.io.formats._sidecar import SIDECAR, remarks, write_with_notes
from jaxsae.io.formats._sites import site_rows
from jaxsae.io.formats._write import as_json, write_files
from jaxsae.sae import SAE, Bias, NoNorm, PerSite, PerSiteSkip, PreSelect, Relu, Threshold, Triangular

NAME = "gemma_scope_2"
TITLE = "Gemma Scope 2 params.safetensors"
OPTIONS: tuple[str, ...] = ()
WEIGHTS, CONFIG = "params.safetensors", "config.json"
LAYERS = r"params_layer_(\d+)\.safetensors"
PLAIN = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
SKIP = "affine_skip_connection"


def recognises(listing: Listing) -> bool:
    """The names of the files of weights."""
    return WEIGHTS in listing or bool(listing.matching(LAYERS))


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads an SAE, transcoder, affine transcoder or cross-layer transcoder; b_dec is not subtracted."""
    layers = listing.matching(LAYERS)
    if WEIGHTS in listing and layers:
        bad(listing.path, layers[0], f"either {WEIGHTS} or one file per layer", "both")
    return _clt(listing, layers) if layers else _single(listing)


def _single(listing: Listing) -> SAE:
    arrays = listing.arrays(WEIGHTS)
    config = listing.config(CONFIG) if CONFIG in listing else None
    arrays.only(PLAIN, (SKIP,))
    d, f = arrays.shape("w_enc", "df")
    o = arrays.shape("b_dec", "o")[0]
    found = {
        "W_enc": arrays.take("w_enc", (d, f)),
        "W_dec": arrays.take("w_dec", (f, o)),
        "b_enc": arrays.take("b_enc", (f,)),
        "b_dec": arrays.take("b_dec", (o,)),
        "threshold": arrays.take("threshold", (f,)),
    }
    if config is not None:
        config.choice("architecture", ("jump_relu",), "jump_relu")
        if config.flag("affine_connection", SKIP in arrays) != (SKIP in arrays):
            there = "has an" if SKIP in arrays else "has no"
            config.fail("affine_connection", f"what {WEIGHTS} says: it {there} {SKIP}", config["affine_connection"])
    if SKIP in arrays:
        found["W_skip"] = arrays.take(SKIP, (d, o))
    meta = provenance(
        NAME,
        "transcoder" if config is not None and "hf_hook_point_out" in config else "sae",
        config=config,
        host=config.text("model_name", None) if config is not None else None,
        site=config.text("hf_hook_point_in", None) if config is not None else None,
        site_out=config.text("hf_hook_point_out", None) if config is not None else None,
    )
    return assemble(listing, found, encoder=affine(found, False), selector=Threshold(), meta=meta)


def _clt(listing: Listing, layers: list[str]) -> SAE:
    numbers = [int(re.fullmatch(LAYERS, n)[1]) for n in layers]  # type: ignore[index]
    files = [listing.arrays(n) for n in layers]
    if numbers != list(range(len(numbers))):
        bad(listing.path, layers[-1], f"layers 0 to {len(numbers) - 1} without gaps", numbers)
    d, f = files[0].shape("w_enc", "df")
    entry = files[0].entries.get("w_dec")
    if entry is not None and len(entry.shape) == 2:
        wanted = "[latents, layers, width] of a CLT (crosscoders of this release have no known reader)"
        bad(files[0].file, "w_dec", wanted, f"shape {list(entry.shape)}")
    sites, o = files[0].shape("w_dec", "fLo")[1:]
    if sites != len(files):
        bad(listing.path, layers[-1], f"{sites} files, one per layer of w_dec", f"{len(files)}")
    skip = SKIP in files[0]
    parts_found = [_layer(a, i, d, f, sites, o, skip) for i, a in enumerate(files)]
    found = {n: np.stack([p[n] for p in parts_found]) for n in ("W_enc", "b_enc")}
    found["b_dec"] = np.concatenate([p["b_dec"] for p in parts_found])
    found["threshold"] = np.concatenate([p["threshold"] for p in parts_found])
    if skip:
        found["W_skip"] = np.stack([p["W_skip"] for p in parts_found])
    found |= {f"W_dec_{i}": p["W_dec"] for i, p in enumerate(parts_found)}
    width, out = sites * d, sites * o
    return assemble(
        listing,
        found,
        encoder=PerSite(width, sites * f, sites),
        selector=Threshold(),
        dictionary=Triangular(sites * f, out, sites),
        readout=PerSiteSkip(width, out, sites) if skip else Bias(out),
        rows=site_rows(sites, d, o),
        meta=provenance(NAME, "clt"),
    )


def _layer(arrays: Arrays, i: int, d: int, f: int, sites: int, o: int, skip: bool) -> dict[str, np.ndarray]:
    arrays.only(PLAIN + ((SKIP,) if skip else ()))
    found = {
        "W_enc": arrays.take("w_enc", (d, f)),
        "b_enc": arrays.take("b_enc", (f,)),
        "b_dec": arrays.take("b_dec", (o,)),
        "threshold": arrays.take("threshold", (f,)),
        "W_dec": np.ascontiguousarray(arrays.take("w_dec", (f, sites, o))[:, i:]),
    }
    return found | ({"W_skip": arrays.take(SKIP, (d, o))} if skip else {})


def save(sae: SAE, path: Path, notes: Notes) -> None:
    """Writes `params.safetensors` and `config.json`, or one `params_layer_i.safetensors` per layer of a CLT."""
    if isinstance(sae.encoder, PreSelect) and isinstance(sae.encoder.encoder, PerSite):
        _save_clt(sae, path, notes)
        return
    p = parts(sae, NAME, notes).fold_scaling()
    p.needs("jumprelu", "relu")
    p.needs_plain_rows(skip=True, wide=True)
    p = p.uncentred().zero_threshold()
    names = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
    names |= {"W_skip": SKIP} if p.skip else {}
    arrays = {theirs: p.arrays[ours].astype(np.float32, copy=False) for ours, theirs in names.items()}
    config: dict[str, Any] = {
        "architecture": "jump_relu",
        "model_name": sae.meta.host,
        "hf_hook_point_in": sae.meta.site,
    }
    if sae.meta.get("site_out") or p.skip or p.d_in != p.d_out:
        config |= {"hf_hook_point_out": sae.meta.get("site_out", ""), "affine_connection": p.skip}
    write_with_notes(path / WEIGHTS, chunks(arrays), NAME, sae, notes, {CONFIG: as_json(config)})


def _save_clt(sae: SAE, path: Path, notes: Notes) -> None:
    selector = sae.encoder.selector  # type: ignore[attr-defined]
    jump = isinstance(selector, Threshold) and not selector.signed
    a = {n: np.asarray(v) for n, v in sae.params.items()}
    exact = isinstance(selector, Relu) or (jump and (selector.rectify or not np.any(a["threshold"] < 0)))
    readable = isinstance(sae.readout, (Bias, PerSiteSkip)) and isinstance(sae.dictionary, Triangular)
    if not exact or not readable or not isinstance(sae.norm, NoNorm):
        what = f"{selector}, {type(sae.readout).__name__}, {type(sae.norm).__name__}"
        refuse(NAME, f"a cross-layer transcoder with {what}", ("llamascopium",))
    sites = sae.encoder.encoder.sites  # type: ignore[attr-defined]
    threshold = a["threshold"] if jump else np.zeros(sae.d_sae, np.float32)
    files: dict[str, Any] = {}
    for i in range(sites):
        W = a[f"W_dec_{i}"]
        one = {
            "w_enc": a["W_enc"][i],
            "b_enc": a["b_enc"][i],
            "w_dec": np.pad(W, ((0, 0), (i, 0), (0, 0))),
            "b_dec": a["b_dec"].reshape(sites, -1)[i],
            "threshold": threshold.reshape(sites, -1)[i],
        }
        if "W_skip" in a:
            one[SKIP] = a["W_skip"][i]
        files[f"params_layer_{i}.safetensors"] = chunks({n: v.astype(np.float32) for n, v in one.items()})
    write_files(path, {**files, SIDECAR: as_json(remarks(NAME, sae, notes))})
