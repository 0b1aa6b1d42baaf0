"""Crosscoders of the dictionary_learning fork: `model_final.pt`, `checkpoint_N.pt`, or a hub `model.safetensors`."""

from typing import Any

import numpy as np

from jaxsae.errors import FormatError
from jaxsae.io.formats._arrays import Arrays
from jaxsae.io.formats._base import Config, bad
from jaxsae.io.formats._build import affine, assemble, provenance
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._sites import over_norm, site_norms, site_rows, stacked_atoms
from jaxsae.io.formats._weights import transposed
from jaxsae.sae import (
    SAE,
    BatchRule,
    Blocks,
    NoNorm,
    Rank,
    Relu,
    SharedSites,
    Stacked,
    Standardise,
    Threshold,
)

NAME = "crosscoder"
TITLE = "dictionary_learning crosscoder (science-of-finetuning fork)"
OPTIONS = ("selection",)
MARKS = {"encoder.weight", "encoder.bias", "decoder.weight"}
COMPILED = "_orig_mod."
BUFFERS = ("activation_mean", "activation_std", "activation_global_scale", "target_rms", "code_normalization_id")
#: Code normalisations by id: weights of (sum of site norms, norm of the whole atom).
CODE_NORMS = {1: (1.0, 0.0), 2: (0.0, 1.0), 3: (0.1, 1.0), 4: (0.0, 0.0)}
DECOUPLED = 5
INTEGERS = ("int64", "int32", "int16", "uint8", "int8")


def _file(listing: Listing) -> str | None:
    names = [n for n in ("model_final.pt", "model.safetensors") if n in listing]
    if listing.focus:
        names = listing.matching(r"(checkpoints/)?(model_final|checkpoint_\d+)\.pt|model\.safetensors")
    found = [n for n in names if len({k.removeprefix(COMPILED) for k in listing.keys(n)} & MARKS) >= 2]
    return found[0] if found else None


def recognises(listing: Listing) -> bool:
    """One of the file names, with their keys."""
    return _file(listing) is not None


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads CrossCoder, BatchTopKCrossCoder and the fork's BatchTopKSAE.

    Rows are [L, d].  Latents are shared by the sites, except under the DECOUPLED normalisation, where latent (l, i)
    stands at l * dict_size + i.

    Args:
        listing: the folder or file.
        options: `selection`: "batch" for the batch-level top-k instead of the learned threshold.
    """
    raw = listing.arrays(_file(listing) or "model_final.pt")
    arrays = Arrays(raw.file, {n.removeprefix(COMPILED): e for n, e in raw.entries.items()}, raw.scalars)
    config = listing.config("config.json") if "config.json" in listing else Config(raw.file, {})
    config = config.part("trainer") if "trainer" in config else config
    if config.get("encoder_layers") is not None:
        config.fail(
            "encoder_layers", "null (an encoder of some layers only is not supported)", config["encoder_layers"]
        )
    if "b_dec" in arrays:
        return _sae(listing, arrays, config, options)
    sites, d, f = arrays.shape("encoder.weight", "Ldf")
    config.equals("num_layers", sites, "the first axis of encoder.weight")
    _check_sizes(config, d, f)
    batch = "k" in arrays or "threshold" in arrays
    arrays.only((*MARKS, "decoder.bias", *(("k", "threshold") if batch else ())), BUFFERS)
    found = {
        "W_enc": arrays.take("encoder.weight", (sites, d, f)).reshape(sites * d, f),
        "b_enc": arrays.take("encoder.bias", (f,)),
        "b_dec": arrays.take("decoder.bias", (sites, d)).reshape(-1),
    }
    W_dec = arrays.take("decoder.weight", (sites, f, d))
    norm, constants = _norm(arrays, (sites, d))
    code_norm = _code_norm(arrays)
    kind = "BatchTopKCrossCoder" if batch else "CrossCoder"
    meta = provenance(NAME, kind, config=config, code_normalization=code_norm)
    frame: dict[str, Any] = {"norm": norm, "rows": site_rows(sites, d, d), "meta": meta}
    if batch and code_norm == DECOUPLED:
        threshold = _thresholds(arrays, sites)
        found |= {
            "W_dec": W_dec,
            "threshold": over_norm(threshold[:, None], site_norms(W_dec)).reshape(-1),
            **constants,
        }
        encoder: Any = SharedSites(sites * d, sites * f, sites)
        dictionary: Any = Blocks(sites * f, sites * d, sites)
        _only_threshold(options)
        return assemble(listing, found, encoder=encoder, selector=Threshold(), dictionary=dictionary, **frame)
    found |= {"W_dec": stacked_atoms(W_dec), **constants}
    dictionary = Stacked(f, sites * d, sites, *_norm_weights(code_norm, config))
    selector, k = Relu(), None
    if batch:
        norms = _code_norms(W_dec, dictionary)
        selector, k = _batch(arrays, config, found, norms, f, options)
    return assemble(
        listing, found, encoder=affine(found, False), selector=selector, dictionary=dictionary, k=k, **frame
    )


def _check_sizes(config: Config, d: int, f: int) -> None:
    config.equals("activation_dim", d, "the width of encoder.weight")
    config.equals("dict_size", f, "the latents of encoder.weight")


def _norm(arrays: Arrays, shape: tuple[int, ...]) -> tuple[Any, dict[str, np.ndarray]]:
    """Standardise, or nothing where the buffers are missing or all NaN, as the peer stores no normalisation."""
    if "activation_mean" not in arrays:
        return NoNorm(), {}
    mean = arrays.take("activation_mean", shape, finite=False)
    if np.isnan(mean).all():
        return NoNorm(), {}
    scale_shape = arrays["activation_global_scale"].shape if "activation_global_scale" in arrays else shape[:1]
    scale = arrays.take("activation_global_scale", () if scale_shape == () else shape[:-1])
    if not np.isfinite(mean).all() or not np.all(scale > 0):
        key = "activation_mean" if not np.isfinite(mean).all() else "activation_global_scale"
        bad(arrays.file, key, "finite means and positive scales (or NaN throughout)", "other numbers")
    wide = np.broadcast_to(scale[..., None] if scale.ndim else scale, shape).reshape(-1).astype(np.float32)
    flat = mean.reshape(-1).astype(np.float32)
    return Standardise(), {"x_mean": flat, "y_mean": flat.copy(), "x_scale": wide, "y_scale": wide + np.float32(1e-8)}


def _code_norm(arrays: Arrays) -> int:
    """The id of the code normalisation; files from before there were several mean the first."""
    if "code_normalization_id" not in arrays:
        return 1
    found = int(arrays.scalar("code_normalization_id", INTEGERS))
    if found not in (*CODE_NORMS, DECOUPLED):
        bad(arrays.file, "code_normalization_id", "a number from 1 to 5", found)
    return found


def _norm_weights(code_norm: int, config: Config) -> tuple[float, float]:
    if code_norm == DECOUPLED:
        return CODE_NORMS[1]
    if code_norm == 3:
        return config.number("code_normalization_alpha_cc", 0.1), config.number("code_normalization_alpha_sae", 1.0)
    return CODE_NORMS[code_norm]


def _code_norms(W_dec: np.ndarray, dictionary: Stacked) -> np.ndarray:
    each = site_norms(W_dec)
    if dictionary.sum_weight == dictionary.whole_weight == 0:
        return np.ones(each.shape[1])
    return dictionary.sum_weight * each.sum(0) + dictionary.whole_weight * np.sqrt((each**2).sum(0))


def _thresholds(arrays: Arrays, sites: int) -> np.ndarray:
    shape = arrays["threshold"].shape if "threshold" in arrays else ()
    return np.broadcast_to(arrays.take("threshold", () if shape == () else (sites,)), (sites,))


def _batch(
    arrays: Arrays, config: Config, found: dict, norms: np.ndarray | None, f: int, options: dict[str, Any]
) -> tuple[Any, int | None]:
    k = int(arrays.scalar("k", INTEGERS))
    if not 0 < k <= f:
        bad(arrays.file, "k", f"a whole number from 1 to {f}", k)
    config.equals("k", k, f"as in {arrays.file.name}")
    threshold = arrays.scalar("threshold")
    if options.get("selection", "threshold") == "batch":
        return Rank(min(f, 4 * k), BatchRule(), by_norm=norms is not None), k
    _only_threshold(options)
    found["threshold"] = over_norm(np.full(f, threshold), np.ones(f) if norms is None else norms)
    return Threshold(), None


def _only_threshold(options: dict[str, Any]) -> None:
    if options.get("selection", "threshold") != "threshold":
        raise FormatError(f"option 'selection': expected 'threshold' or 'batch', found {options['selection']!r}")


def _sae(listing: Listing, arrays: Arrays, config: Config, options: dict[str, Any]) -> SAE:
    """The fork's BatchTopKSAE: as the original's, with the normalisation buffers of one site."""
    f, d = arrays.shape("encoder.weight", "fd")
    _check_sizes(config, d, f)
    arrays.only((*MARKS, "b_dec", "k", "threshold"), BUFFERS)
    found = {
        "W_enc": transposed(arrays.take("encoder.weight", (f, d))),
        "b_enc": arrays.take("encoder.bias", (f,)),
        "W_dec": transposed(arrays.take("decoder.weight", (d, f))),
        "b_dec": arrays.take("b_dec", (d,)),
    }
    norm, constants = _norm(arrays, (d,))
    selector, k = _batch(arrays, config, found, None, f, options)
    meta = provenance(NAME, "BatchTopKSAE", config=config)
    encoder = affine(found, True)
    found |= constants
    return assemble(listing, found, encoder=encoder, selector=selector, norm=norm, k=k, meta=meta)
