"""Reading SAELens: a configuration in version 6 terms and its arrays, one function per kind of architecture."""

from typing import Any

import numpy as np

from jaxsae.errors import FormatError
from jaxsae.io.formats._arrays import Arrays, cast, dtype_called
from jaxsae.io.formats._base import Config, bad
from jaxsae.io.formats._build import affine, assemble, centring, fold_decoder_norm, provenance, start_for
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._sae_lens_temporal import build_temporal
from jaxsae.io.formats._safetensors import open_safetensors
from jaxsae.io.formats._weights import scale_rows
from jaxsae.sae import (
    SAE,
    BatchRule,
    DatasetNorm,
    Gated,
    LinearSkip,
    Meta,
    NoNorm,
    Pursuit,
    Rank,
    Relu,
    RowLength,
    RowNorm,
    RowShape,
    TanhRelu,
    Threshold,
    Whiten,
)

PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
#: Arrays beyond the plain four, by architecture.
KINDS = {
    "standard": (),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "topk": (),
    "abstopk": (),
    "jumprelu": ("threshold",),
    "transcoder": (),
    "skip_transcoder": ("W_skip",),
    "jumprelu_transcoder": ("threshold",),
    "jumprelu_skip_transcoder": ("threshold", "W_skip"),
    "batchtopk": ("topk_threshold",),
    "matryoshka_batchtopk": ("topk_threshold",),
    "matching_pursuit": (),
    "temporal": (),
}
NORMS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in", "covariance_whitening")
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
#: Keys that only a training checkpoint's configuration has.
TRAINING = ("decoder_init_norm", "jumprelu_init_threshold", "l0_coefficient", "l1_coefficient", "topk_threshold_lr")


def build(listing: Listing, config: Config, arrays: Arrays, options: dict[str, Any]) -> SAE:
    """The SAE of a version 6 configuration."""
    kind = config.choice("architecture", KINDS)
    metadata = config.part("metadata", None)
    meta = provenance(
        "sae_lens",
        kind,
        config=config,
        host=metadata.text("model_name", None),
        site=metadata.text("hook_name", None),
        site_out=metadata.text("hook_name_out", None),
    )
    if "selection" in options and kind not in ("batchtopk", "matryoshka_batchtopk"):
        raise FormatError(f"option 'selection': only for batch top-k training checkpoints, found architecture {kind!r}")
    if kind == "temporal":
        return build_temporal(listing, config, arrays, meta)
    norm, extra = _norm(listing, config, kind, options)
    heads = config.choice("reshape_activations", ("none", "hook_z"), "none") == "hook_z"
    frame = {"norm": norm, "rows": RowShape(heads=heads), "meta": meta}
    if kind == "matching_pursuit":
        return _pursuit(listing, config, arrays, extra, frame)
    found = _read(config, arrays, kind)
    centred = _centred(config, kind)
    if kind == "gated":
        d_in, d_sae = found["W_enc"].shape
        encoder: Any = Gated(d_in, d_sae, centring(centred), start_for(found))
    else:
        encoder = affine(found, centred)
    found, selector, k, frame["meta"] = _selection(config, arrays, kind, found, meta, options)
    readout = None
    if "W_skip" in found:
        readout = LinearSkip(encoder.d_in, found["W_dec"].shape[1], raw=not isinstance(norm, NoNorm))
    return assemble(listing, {**found, **extra}, encoder=encoder, selector=selector, readout=readout, k=k, **frame)


def _read(config: Config, arrays: Arrays, kind: str) -> dict[str, np.ndarray]:
    d_in, d_sae = config.integer("d_in"), config.integer("d_sae")
    d_out = config.integer("d_out") if "transcoder" in kind else d_in
    per_latent = ("b_enc", "b_gate", "b_mag", "r_mag", "threshold")
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    shapes |= dict.fromkeys(per_latent, (d_sae,)) | {"W_skip": (d_out, d_in), "topk_threshold": ()}
    names = [n for n in (*PLAIN, *KINDS[kind]) if not (kind == "gated" and n == "b_enc")]
    logarithm = "threshold" in names and "log_threshold" in arrays and "threshold" not in arrays
    if logarithm:
        names[names.index("threshold")] = "log_threshold"
        shapes["log_threshold"] = (d_sae,)
    factor = config.text("factor", None)
    arrays.only(names + ([factor] if factor else []), optional=() if factor else ("scaling_factor",))
    found = {n: arrays.take(n, shapes[n], finite=n != "log_threshold") for n in names}
    if logarithm:
        found["threshold"] = np.exp(found.pop("log_threshold").astype(np.float32))
    if "W_skip" in found:
        found["W_skip"] = np.ascontiguousarray(found["W_skip"].T)
    found = cast(found, dtype_called(config), keep=("threshold",) if _is_training(config) else ())
    if factor:
        scale_rows(found["W_dec"], arrays.take(factor, (d_sae,)))
    elif "scaling_factor" in arrays and not np.all(arrays.take("scaling_factor", arrays["scaling_factor"].shape) == 1):
        bad(arrays.file, "scaling_factor", "ones (any other factor belongs into the weights)", "other values")
    return found


def _centred(config: Config, kind: str) -> bool:
    centred = config.flag("apply_b_dec_to_input", True)
    if "transcoder" in kind and centred:
        found = config.get("apply_b_dec_to_input", "no such key, which means true")
        config.fail("apply_b_dec_to_input", f"false for the architecture {kind}", found)
    return centred


def _is_training(config: Config) -> bool:
    return any(key in config for key in TRAINING)


def _selection(
    config: Config, arrays: Arrays, kind: str, found: dict[str, np.ndarray], meta: Meta, options: dict[str, Any]
) -> tuple[dict[str, np.ndarray], Any, float | None, Meta]:
    """(arrays, selector, k, meta) of one of the affine architectures."""
    activation = config.choice("activation", ("relu", "tanh-relu"), "relu")
    if "jumprelu" in kind:
        return found, Threshold(rectify=not _is_training(config)), None, meta
    if "topk" not in kind:
        return found, TanhRelu() if activation == "tanh-relu" else Relu(), None, meta
    if config.flag("rescale_acts_by_decoder_norm", _is_training(config)):
        found = fold_decoder_norm(found)
        meta = meta.with_extra(folded=("decoder norm: latents in units of the atom's norm, as the peer gives them",))
    most = found["W_enc"].shape[1]
    if kind in ("topk", "abstopk"):
        k = config.integer("k", most=most)
        return found, Rank(k, signed=kind == "abstopk"), k, meta
    if "matryoshka_widths" in config:
        meta = meta.with_extra(matryoshka_widths=tuple(_widths(config, most)))
    threshold = found.pop("topk_threshold")
    selection = options.get("selection", "batch")
    if selection not in ("batch", "threshold"):
        raise FormatError(f"option 'selection': expected 'batch' or 'threshold', found {selection!r}")
    if selection == "threshold":
        found["threshold"] = np.full(most, threshold, np.float32)
        return found, Threshold(), None, meta
    k_float = config.number("k", above=0)
    meta = meta.with_extra(topk_threshold=float(threshold))
    return found, Rank(min(most, int(4 * k_float) + 1), BatchRule()), k_float, meta


def _widths(config: Config, d_sae: int) -> list[int]:
    widths = config["matryoshka_widths"]
    ok = isinstance(widths, list) and all(type(w) is int and w > 0 for w in widths)
    if not ok or sorted(set(widths)) != widths or widths[-1] != d_sae:
        config.fail("matryoshka_widths", f"growing widths that end in {d_sae}", widths)
    return widths


def _norm(listing: Listing, config: Config, kind: str, options: dict[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
    """(norm member, its arrays): what the configuration says, and the scaler of an unfinished run."""
    norm = config.choice("normalize_activations", NORMS, "none")
    restore = "transcoder" not in kind
    if norm == "layer_norm":
        return RowNorm(1, restore), {}
    if norm == "constant_norm_rescale":
        return RowLength(restore), {}
    if options.get("norm_scaling_factor") is not None:
        return DatasetNorm(), _scales(Config(config.file, options).number("norm_scaling_factor", above=0))
    scaler = listing.config(SCALER) if SCALER in listing else None
    if scaler is None:
        return NoNorm(), {}
    factor = scaler.number("scaling_factor", None, above=0)
    if scaler.flag("has_whitening", False):
        if norm != "covariance_whitening":
            scaler.fail("has_whitening", f"false where normalize_activations is {norm}", True)
        return Whiten(), _whitening(listing, config.integer("d_in"))
    if factor is not None:
        if norm != "expected_average_only_in":
            scaler.fail("scaling_factor", f"null where normalize_activations is {norm}", factor)
        return DatasetNorm(), _scales(factor)
    return NoNorm(), {}


def _scales(factor: float) -> dict[str, np.ndarray]:
    return {name: np.asarray(factor, np.float32) for name in ("c_in", "c_out")}


def _whitening(listing: Listing, d: int) -> dict[str, np.ndarray]:
    if WHITENING not in listing:
        bad(listing.root / WHITENING, None, f"the whitening that {SCALER} speaks of", "nothing")
    arrays = open_safetensors(listing.root / WHITENING)
    arrays.only(("mean", "matrix", "inverse_matrix"))
    names = {"white_mean": ("mean", (d,)), "white": ("matrix", (d, d)), "colour": ("inverse_matrix", (d, d))}
    return {ours: arrays.take(theirs, shape).astype(np.float32) for ours, (theirs, shape) in names.items()}


def _pursuit(listing: Listing, config: Config, arrays: Arrays, extra: dict, frame: dict[str, Any]) -> SAE:
    d_in, d_sae = config.integer("d_in"), config.integer("d_sae")
    arrays.only(("W_dec", "b_dec"))
    found = {"W_dec": arrays.take("W_dec", (d_sae, d_in)), "b_dec": arrays.take("b_dec", (d_in,))}
    found = cast(found, dtype_called(config))
    centred = _centred(config, "matching_pursuit")
    if not centred:
        found["b_dec"] = np.zeros_like(found["b_dec"])
        frame["meta"] = frame["meta"].with_extra(folded=("b_dec: stored but not used by the peer, 0 here",))
    encoder = Pursuit(
        d_in,
        d_sae,
        steps=config.integer("max_iterations", d_in),
        b_pre=centring(centred),
        stop_below=config.number("residual_threshold", 0.01),
        stop_on_repeat=config.flag("stop_on_duplicate_support", True),
    )
    return assemble(listing, {**found, **extra}, encoder=encoder, **frame)
