"""Llama Scope and the OpenMOSS library up to 1.x: `hyperparams.json` and a checkpoint in one of several places."""

import math
from typing import Any

import numpy as np

from jaxsae.io.formats._arrays import Arrays, cast, dtype_called
from jaxsae.io.formats._base import Config, bad
from jaxsae.io.formats._build import affine, assemble, centring, fold_decoder_norm, provenance, start_for
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._weights import transposed, widened
from jaxsae.sae import SAE, Glu, NoNorm, Rank, Relu, RowLength, Threshold

NAME = "llama_scope"
TITLE = "Llama Scope, OpenMOSS lm-saes 1.x"
OPTIONS: tuple[str, ...] = ()
CONFIG, DISTILL = "hyperparams.json", "config.json"
#: Where the weights may lie, in the order in which their loader looks.
PLACES = [
    f"{stem}.{suffix}"
    for stem in ("sae_weights", "checkpoints/pruned", "checkpoints/final")
    for suffix in ("safetensors", "pt")
]
LOG_THRESHOLD = "log_jumprelu_threshold"
NORMS = ("none", "token-wise", "batch-wise", "dataset-wise", "inference")


def _file(listing: Listing) -> str | None:
    return next((n for n in PLACES if n in listing), None)


def _is_distill(listing: Listing) -> bool:
    return DISTILL in listing and {LOG_THRESHOLD, "encoder.weight"} <= listing.keys("sae_weights.safetensors")


def recognises(listing: Listing) -> bool:
    """`hyperparams.json` with a checkpoint, or the R1-Distill layout by its keys."""
    return (CONFIG in listing and _file(listing) is not None) or _is_distill(listing)


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads an SAE or transcoder the way their loader does: data-set norms and decoder norms go into the weights."""
    distill = CONFIG not in listing
    config = listing.config(DISTILL if distill else CONFIG)
    arrays = _state(listing.arrays(_file(listing) or PLACES[0]))
    d = config.integer("d_model")
    f = config.integer("d_sae", None) or d * config.integer("expansion_factor")
    glu = config.flag("use_glu_encoder", False)
    found = _read(config, arrays, d, f, glu, distill)
    kind = "jumprelu" if distill else config.choice("act_fn", ("relu", "topk", "jumprelu"), "relu")
    norm_kind = config.choice("norm_activation", NORMS, "none")
    if norm_kind == "batch-wise":
        config.fail("norm_activation", "anything but batch-wise (the result would depend on the batch)", norm_kind)
    folded = []
    if norm_kind == "dataset-wise":
        found = _fold_dataset(config, found, d, glu)
        folded.append("data-set norms into weights and biases")
    if config.flag("sparsity_include_decoder_norm", not distill):
        found = fold_decoder_norm(found)
        folded.append("decoder norms: atoms have norm 1")
    selector, k = _selector(config, kind, found, f, distill)
    centred = config.flag("apply_decoder_bias_to_pre_encoder", False) and config.flag("use_decoder_bias", True)
    encoder: Any = Glu(d, f, centring(centred), start_for(found)) if glu else affine(found, centred)
    site, out = config.text("hook_point_in", None), config.text("hook_point_out", None)
    meta = provenance(
        NAME,
        f"glu_{kind}" if glu else kind,
        config=config,
        site=site,
        site_out=out if out != site else None,
        folded=tuple(folded),
    )
    norm = RowLength(restore=False) if norm_kind == "token-wise" else NoNorm()
    return assemble(listing, found, encoder=encoder, selector=selector, norm=norm, k=k, meta=meta)


def _state(arrays: Arrays) -> Arrays:
    """The weights themselves: `.pt` files wrap them as {"sae": ..., "version": ...}."""
    inner = {n.removeprefix("sae."): e for n, e in arrays.entries.items() if n.startswith("sae.")}
    return Arrays(arrays.file, inner) if inner else arrays


def _read(config: Config, arrays: Arrays, d: int, f: int, glu: bool, distill: bool) -> dict[str, np.ndarray]:
    bias = config.flag("use_decoder_bias", True)
    names = ["encoder.weight", "encoder.bias", "decoder.weight"] + ["decoder.bias"] * bias
    names += ["encoder_glu.weight", "encoder_glu.bias"] * glu + [LOG_THRESHOLD] * distill
    arrays.only(names)
    found = {
        "W_enc": transposed(arrays.take("encoder.weight", (f, d))),
        "b_enc": arrays.take("encoder.bias", (f,)),
        "W_dec": transposed(arrays.take("decoder.weight", (d, f))),
    }
    found["b_dec"] = arrays.take("decoder.bias", (d,)) if bias else np.zeros(d, found["W_dec"].dtype)
    if glu:
        found["W_glu"] = transposed(arrays.take("encoder_glu.weight", (f, d)))
        found["b_glu"] = arrays.take("encoder_glu.bias", (f,))
    if "dtype" in config:
        found = cast(found, dtype_called(config))
    if distill:
        log_threshold = arrays.take(LOG_THRESHOLD, (f,), finite=False)
        if np.isnan(log_threshold).any() or np.isposinf(log_threshold).any():
            bad(arrays.file, LOG_THRESHOLD, "logarithms below infinity", "NaN or infinity")
        found["threshold"] = np.exp(log_threshold.astype(np.float32))
    return found


def _fold_dataset(config: Config, found: dict[str, np.ndarray], d: int, glu: bool) -> dict[str, np.ndarray]:
    """b_enc / s_in, b_dec / s_out, W_dec s_in / s_out with s = sqrt(d) / the data set's mean norm."""
    if glu:
        config.fail(
            "norm_activation", "no data-set norm with a GLU encoder (its gate cannot be rescaled)", "dataset-wise"
        )
    norms = config.part("dataset_average_activation_norm")
    s_in, s_out = (math.sqrt(d) / norms.number(key, above=0) for key in ("in", "out"))
    found = widened(found)
    found["b_enc"] = (found["b_enc"] / s_in).astype(np.float32)
    found["b_dec"] = (found["b_dec"] / s_out).astype(np.float32)
    found["W_dec"] *= np.float32(s_in / s_out)
    return found


def _selector(config: Config, kind: str, found: dict[str, np.ndarray], f: int, distill: bool) -> tuple[Any, int | None]:
    if kind == "topk":
        k = config.integer("top_k", most=f)
        return Rank(k), k
    if kind == "relu":
        return Relu(), None
    if not distill:
        found["threshold"] = np.full(f, config.number("jump_relu_threshold", 0.0), np.float32)
    return Threshold(rectify=False), None
