"""llamascopium's coders of several sites: crosscoders and cross-layer transcoders, both ways."""

import math
from typing import Any

import numpy as np

from jaxsae.io.formats._arrays import Arrays
from jaxsae.io.formats._base import Config, bad
from jaxsae.io.formats._build import affine
from jaxsae.io.formats._sites import over_norm, ragged_norms, site_norms, site_rows, stacked_atoms
from jaxsae.sae import BatchRule, Bias, Blocks, BySite, PerSite, Rank, Relu, SharedSites, Stacked, Threshold, Triangular


def hooks(config: Config, key: str) -> list[str]:
    """A list of different hook names.

    Raises:
        FormatError: it is something else.
    """
    found = config.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(h, str) for h in found) or len(found) > 4096:
        config.fail(key, "a list of hook names", found)
    return found


def dataset_scales(arrays: Arrays, names: list[str], d: int) -> np.ndarray:
    """sqrt(d) / the stored mean norm of each hook: [L].

    Raises:
        FormatError: a norm is missing or was never set.
    """
    found = []
    for name in names:
        key = f"dataset_average_activation_norm.{name}"
        value = arrays.scalar(key, finite=False)
        if not 0 < value < math.inf:
            bad(arrays.file, key, "a positive norm, since norm_activation is dataset-wise", value)
        found.append(math.sqrt(d) / value)
    return np.asarray(found)


def per_site(values: np.ndarray, width: int) -> np.ndarray:
    """[L] -> [L * width]: one number per coordinate."""
    return np.repeat(values, width).astype(np.float32)


def read_crosscoder(
    config: Config, arrays: Arrays, d: int, f: int, act: str, by_norm: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, slot members) of a crosscoder; latents are shared under ReLU, one set per head otherwise."""
    sites = len(hooks(config, "hook_points"))
    bias = config.flag("use_decoder_bias", True)
    found = {
        "W_enc": arrays.take("W_E", (sites, d, f)).reshape(sites * d, f),
        "b_enc": arrays.take("b_E", (sites, f)).astype(np.float64).sum(0).astype(np.float32),
        "b_dec": arrays.take("b_D", (sites, d)).reshape(-1) if bias else np.zeros(sites * d, np.float32),
    }
    W_dec = arrays.take("W_D", (sites, f, d))
    frame: dict[str, Any] = {"rows": site_rows(sites, d, d)}
    if act == "relu":
        found["W_dec"] = stacked_atoms(W_dec)
        dictionary = Stacked(f, sites * d, sites)
        return found, frame | {"encoder": affine(found, False), "selector": Relu(), "dictionary": dictionary}
    found["W_dec"] = W_dec
    frame |= {"encoder": SharedSites(sites * d, sites * f, sites), "dictionary": Blocks(sites * f, sites * d, sites)}
    if act == "topk":
        k = config.integer("top_k", most=f)
        return found, frame | {"selector": BySite(Rank(k), sites, by_norm), "k": k}
    threshold = read_threshold(arrays, (f,))
    norms = site_norms(W_dec) if by_norm else np.ones((sites, f))
    found["threshold"] = over_norm(threshold[None], norms).reshape(-1)
    return found, frame | {"selector": Threshold(rectify=False)}


def read_clt(
    config: Config, arrays: Arrays, d: int, f: int, act: str, by_norm: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, slot members) of a cross-layer transcoder; decoders are regrouped from target to source layer."""
    sites = len(hooks(config, "hook_points_in"))
    if len(hooks(config, "hook_points_out")) != sites:
        config.fail("hook_points_out", f"{sites} hooks, as hook_points_in", config["hook_points_out"])
    bias = config.flag("use_decoder_bias", True)
    W_enc = arrays.take("W_E", (sites, d, f))
    by_target = [arrays.take(f"W_D.{j}", (j + 1, f, d)) for j in range(sites)]
    ragged = []
    for i in range(sites):
        ragged.append(np.stack([by_target[j][i] for j in range(i, sites)], axis=1))
    b_dec = [arrays.take(f"b_D.{j}", (d,)) if bias else np.zeros(d, np.float32) for j in range(sites)]
    found = {"W_enc": W_enc, "b_enc": arrays.take("b_E", (sites, f)), "b_dec": np.concatenate(b_dec)}
    found |= {f"W_dec_{i}": W for i, W in enumerate(ragged)}
    width, latents = sites * d, sites * f
    frame: dict[str, Any] = {
        "rows": site_rows(sites, d, d),
        "encoder": PerSite(width, latents, sites),
        "dictionary": Triangular(latents, width, sites),
        "readout": Bias(width),
    }
    if act == "relu":
        return found, frame | {"selector": Relu()}
    if act == "topk":
        k = config.integer("top_k", most=f)
        return found, frame | {"selector": BySite(Rank(k), sites, by_norm), "k": k}
    if act in ("layertopk", "batchlayertopk"):  # one ranking over the latents of all layers
        k = config.integer("top_k", most=latents)
        rank = Rank(k, by_norm=by_norm) if act == "layertopk" else Rank(k, BatchRule(), by_norm=by_norm)
        return found, frame | {"selector": rank, "k": k}
    threshold = read_threshold(arrays, (sites, f))
    norms = ragged_norms(ragged) if by_norm else np.ones((sites, f))
    found["threshold"] = over_norm(threshold, norms).reshape(-1)
    return found, frame | {"selector": Threshold(rectify=False)}


LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"


def read_threshold(arrays: Arrays, shape: tuple[int, ...]) -> np.ndarray:
    """exp of the stored logarithms, -inf meaning 0.

    Raises:
        FormatError: NaN or +inf among them.
    """
    stored = arrays.take(LOG_THRESHOLD, shape, finite=False).astype(np.float32)
    if np.isnan(stored).any() or np.isposinf(stored).any():
        bad(arrays.file, LOG_THRESHOLD, "logarithms below infinity", "NaN or infinity")
    return np.exp(stored.astype(np.float64))
