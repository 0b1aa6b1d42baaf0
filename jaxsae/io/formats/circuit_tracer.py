"""circuit-tracer: a transcoder in `layer_i.safetensors`, or a cross-layer one in files `W_enc_i` and `W_dec_i`."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jaxsae.io.formats._arrays import Arrays
from jaxsae.io.formats._base import Config, Notes, bad, opened, refuse
from jaxsae.io.formats._build import affine, assemble, provenance
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._parts import parts
from jaxsae.io.formats._safetensors import chunks
from jaxsae.io.formats._sidecar import SIDECAR, remarks, write_with_notes
from jaxsae.io.formats._sites import site_rows
from jaxsae.io.formats._weights import transposed
from jaxsae.io.formats._write import as_json, write_files
from jaxsae.sae import SAE, Bias, NoNorm, PerSite, PreSelect, Relu, Threshold, Triangular

NAME = "circuit_tracer"
TITLE = "circuit-tracer transcoders"
OPTIONS: tuple[str, ...] = ()
LAYERS, ENC, DEC = r"layer_(\d+)\.safetensors", r"W_enc_(\d+)\.safetensors", r"W_dec_(\d+)\.safetensors"
CONFIG, MAX_YAML = "config.yaml", 2**20
THRESHOLD = "activation_function.threshold"


def recognises(listing: Listing) -> bool:
    """The names of the files of weights."""
    return bool(listing.matching(LAYERS) or (listing.matching(ENC) and not listing.focus))


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads one transcoder, or all layers of a cross-layer transcoder.

    Raises:
        FormatError: a folder with several transcoders: name one of its files.
    """
    layers, encoders = listing.matching(LAYERS), listing.matching(ENC)
    if layers and encoders:
        bad(listing.path, encoders[0], "either transcoders or a cross-layer transcoder", "both")
    if encoders:
        return _clt(listing, encoders)
    if len(layers) > 1:
        bad(listing.path, layers[1], f"one transcoder; name one file, such as {listing.root / layers[0]}", len(layers))
    return _single(listing, layers[0])


def _describes(listing: Listing) -> dict[str, Any]:
    """host and site from `config.yaml`, where there is one."""
    if CONFIG not in listing:
        return {}
    file = listing.root / CONFIG
    try:
        data = yaml.safe_load(opened(file, MAX_YAML).decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        bad(file, None, "YAML", f"something else ({type(e).__name__})")
    if not isinstance(data, dict):
        bad(file, None, "a mapping", type(data).__name__)
    config = Config(file, {str(k): v for k, v in data.items()})
    return {
        "host": config.text("model_name", None),
        "site": config.text("feature_input_hook", None),
        "site_out": config.text("feature_output_hook", None),
    }


def _threshold(arrays: Arrays, name: str, f: int, found: dict[str, np.ndarray]) -> None:
    for key in arrays:
        if "log_threshold" in key:
            bad(arrays.file, key, f"{name}, or none for ReLU", "logarithms, which their reader refuses")
    if name in arrays:
        found[name] = arrays.take(name, (f,))


def _single(listing: Listing, name: str) -> SAE:
    arrays = listing.arrays(name)
    found: dict[str, np.ndarray] = {}
    f, d = arrays.shape("W_enc", "fd")
    _threshold(arrays, THRESHOLD, f, found)
    arrays.only(("W_enc", "W_dec", "b_enc", "b_dec"), ("W_skip", THRESHOLD))
    found |= {"W_enc": transposed(arrays.take("W_enc", (f, d))), "b_enc": arrays.take("b_enc", (f,))}
    older = arrays.shape("W_dec", "fd") == (d, f) and d != f  # releases of mid-2025 transposed this one as well
    found["W_dec"] = transposed(arrays.take("W_dec", (d, f))) if older else arrays.take("W_dec", (f, d))
    found["b_dec"] = arrays.take("b_dec", (d,))
    if "W_skip" in arrays:
        found["W_skip"] = transposed(arrays.take("W_skip", (d, d)))
    selector: Any = Relu()
    if THRESHOLD in found:
        found["threshold"], selector = found.pop(THRESHOLD), Threshold(rectify=False)
    layer = int(re.fullmatch(LAYERS, name)[1])  # type: ignore[index]
    meta = provenance(NAME, "transcoder", layer=layer, **_describes(listing))
    return assemble(listing, found, encoder=affine(found, False), selector=selector, meta=meta)


def _clt(listing: Listing, encoders: list[str]) -> SAE:
    decoders, sites = listing.matching(DEC), len(encoders)
    for kind, pattern, names in (("W_enc", ENC, encoders), ("W_dec", DEC, decoders)):
        numbers = [int(re.fullmatch(pattern, n)[1]) for n in names]  # type: ignore[index]
        if numbers != list(range(sites)):
            bad(listing.path, f"{kind}_*", f"layers 0 to {sites - 1} without gaps", numbers)
    first = listing.arrays(encoders[0])
    f, d = first.shape("W_enc_0", "fd")
    has_threshold = any(f"threshold_{i}" in listing.arrays(n) for i, n in enumerate(encoders))
    layers = [_layer(listing, i, f, d, sites, has_threshold) for i in range(sites)]
    found = {n: np.stack([layer[n] for layer in layers]) for n in ("W_enc", "b_enc")}
    found |= {f"W_dec_{i}": layer["W_dec"] for i, layer in enumerate(layers)}
    found["b_dec"] = np.concatenate([layer["b_dec"] for layer in layers])
    selector: Any = Relu()
    if has_threshold:
        found["threshold"] = np.concatenate([layer["threshold"] for layer in layers])
        selector = Threshold(rectify=False)
    width, latents = sites * d, sites * f
    return assemble(
        listing,
        found,
        encoder=PerSite(width, latents, sites),
        selector=selector,
        dictionary=Triangular(latents, width, sites),
        readout=Bias(width),
        rows=site_rows(sites, d, d),
        meta=provenance(NAME, "clt", **_describes(listing)),
    )


def _layer(listing: Listing, i: int, f: int, d: int, sites: int, threshold: bool) -> dict[str, np.ndarray]:
    enc, dec = listing.arrays(f"W_enc_{i}.safetensors"), listing.arrays(f"W_dec_{i}.safetensors")
    names = {"W_enc": (f, d), "b_enc": (f,), "b_dec": (d,)} | ({"threshold": (f,)} if threshold else {})
    scratch: dict[str, np.ndarray] = {}
    _threshold(enc, f"threshold_{i}", f, scratch)
    enc.only([f"{n}_{i}" for n in names])
    dec.only([f"W_dec_{i}"])
    found = {n: enc.take(f"{n}_{i}", shape) for n, shape in names.items()}
    found["W_enc"] = np.ascontiguousarray(found["W_enc"].T)
    return found | {"W_dec": dec.take(f"W_dec_{i}", (f, sites - i, d))}


# ------------------------------------------------------------------------------------------------ writing
def save(sae: SAE, path: Path, notes: Notes) -> None:
    """Writes `layer_i.safetensors` (or the file `path` names), or the files of a cross-layer transcoder.

    i is the layer that the dictionary's site names, else 0.
    """
    if isinstance(sae.encoder, PreSelect) and isinstance(sae.encoder.encoder, PerSite):
        _save_clt(sae, path, notes)
        return
    p = parts(sae, NAME, notes).fold_scaling()
    p.needs_plain_rows(skip=True)
    raw = isinstance(p.selector, Threshold) and not p.selector.signed
    if not raw:
        p.needs("relu")
    p = p.uncentred()
    arrays = {
        "W_enc": transposed(p.arrays["W_enc"]),
        "W_dec": p.arrays["W_dec"],
        "b_enc": p.arrays["b_enc"],
        "b_dec": p.arrays["b_dec"],
    }
    if p.skip:
        arrays["W_skip"] = transposed(p.arrays["W_skip"])
    if raw:
        arrays[THRESHOLD] = _unrectified(p.selector, p.arrays["threshold"])
    if len({a.dtype for a in arrays.values()}) > 1:
        arrays = {n: a.astype(np.float32) for n, a in arrays.items()}
    file = path if os.path.splitext(path)[1] == ".safetensors" else path / f"layer_{_layer_of(sae)}.safetensors"
    write_with_notes(file, chunks(arrays), NAME, sae, notes, {CONFIG: _yaml(sae, "transcoder_set")})


def _unrectified(selector: Threshold, threshold: np.ndarray) -> np.ndarray:
    """Their latents are h where h > t, without a relu: for a rectified selector no t may lie below 0."""
    return np.maximum(threshold, 0) if selector.rectify else threshold


def _layer_of(sae: SAE) -> int:
    stored = sae.meta.get("layer")
    found = re.search(r"blocks\.(\d+)\.", sae.meta.site)
    return int(stored) if stored is not None else int(found[1]) if found else 0


def _yaml(sae: SAE, kind: str) -> list[bytes]:
    data = {
        "model_name": sae.meta.host or "unknown",
        "model_kind": kind,
        "feature_input_hook": sae.meta.site or "unknown",
        "feature_output_hook": sae.meta.get("site_out", sae.meta.site) or "unknown",
    }
    return [yaml.safe_dump(data, sort_keys=False).encode()]


def _save_clt(sae: SAE, path: Path, notes: Notes) -> None:
    selector = sae.encoder.selector  # type: ignore[attr-defined]
    sites = sae.encoder.encoder.sites  # type: ignore[attr-defined]
    known = isinstance(selector, Relu) or (isinstance(selector, Threshold) and not selector.signed)
    plain = isinstance(sae.dictionary, Triangular) and isinstance(sae.readout, Bias) and isinstance(sae.norm, NoNorm)
    if not known or not plain or sae.d_out != sae.d_in:
        what = f"{type(selector).__name__}, {type(sae.readout).__name__}, {type(sae.norm).__name__}"
        refuse(NAME, f"a cross-layer transcoder with {what}", ("llamascopium",))
    a = {n: np.asarray(v) for n, v in sae.params.items()}
    b_dec = a["b_dec"].reshape(sites, -1)
    files: dict[str, Any] = {}
    threshold = _unrectified(selector, a["threshold"]).reshape(sites, -1) if "threshold" in a else None
    for i in range(sites):
        one = {f"W_enc_{i}": np.ascontiguousarray(a["W_enc"][i].T), f"b_enc_{i}": a["b_enc"][i], f"b_dec_{i}": b_dec[i]}
        if threshold is not None:
            one[f"threshold_{i}"] = threshold[i]
        files[f"W_enc_{i}.safetensors"] = chunks(one)
        files[f"W_dec_{i}.safetensors"] = chunks({f"W_dec_{i}": a[f"W_dec_{i}"]})
    files[CONFIG] = _yaml(sae, "cross_layer_transcoder")
    files[SIDECAR] = as_json(remarks(NAME, sae, notes))
    write_files(path, files)
