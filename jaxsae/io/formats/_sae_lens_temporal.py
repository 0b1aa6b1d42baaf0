"""SAELens' temporal architecture: its arrays under our names, both ways."""

from typing import Any

import numpy as np

from jaxsae.io.formats._arrays import Arrays, cast, dtype_called
from jaxsae.io.formats._base import Config
from jaxsae.io.formats._build import assemble, centring
from jaxsae.io.formats._listing import Listing
from jaxsae.sae import SAE, DatasetNorm, Meta, NoNorm, Rank, Relu, Temporal, TemporalReadout

#: The parts of a layer: theirs, ours.
PARTS = {"q_target": "q", "k_ctx": "k", "v_ctx": "v", "c_proj": "o"}


def build_temporal(listing: Listing, config: Config, arrays: Arrays, meta: Meta) -> SAE:
    """Reads a temporal SAE."""
    d_in, d_sae = config.integer("d_in"), config.integer("d_sae")
    n_heads, bottleneck = config.integer("n_heads", 8), config.integer("bottleneck_factor", 64)
    n_layers, tied = config.integer("n_attn_layers", 1, most=256), config.flag("tied_weights", True)
    if d_sae % (n_heads * bottleneck):
        config.fail("d_sae", f"a multiple of n_heads * bottleneck_factor = {n_heads * bottleneck}", d_sae)
    centred, width = config.flag("apply_b_dec_to_input", True), d_sae // bottleneck
    encoder = Temporal(d_in, d_sae, n_heads, n_layers, width, tied, centring(centred))
    found = cast(_read(arrays, encoder), dtype_called(config))
    if tied and not centred:
        found["b_dec"] = np.zeros_like(found["b_dec"])
        meta = meta.with_extra(folded=("b_dec: stored but not used by the peer, 0 here",))
    norm: Any = NoNorm()
    options = ("none", "constant_scalar_rescale")
    if config.choice("normalize_activations", options, "constant_scalar_rescale") != "none":
        factor = np.asarray(config.number("activation_normalization_factor", 1.0, above=0), np.float32)
        norm, found["c_in"], found["c_out"] = DatasetNorm(), factor, factor.copy()
    k = None
    if config.choice("sae_diff_type", ("topk", "relu"), "topk") == "topk":
        k = config.integer("kval_topk", most=d_sae)
    selector = Relu() if k is None else Rank(k)
    readout = TemporalReadout(encoder)
    return assemble(listing, found, encoder=encoder, selector=selector, readout=readout, norm=norm, meta=meta, k=k)


def _shapes(encoder: Temporal) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Their name -> (ours, their shape) of everything."""
    d, f, width = encoder.d_in, encoder.d_sae, encoder.width
    table: dict[str, tuple[str, tuple[int, ...]]] = {"W_dec": ("W_dec", (f, d)), "b_dec": ("b_dec", (d,))}
    if not encoder.tied:
        table["W_enc"] = ("W_enc", (d, f))
    for i in range(encoder.n_layers):
        for theirs, ours in PARTS.items():
            size = width if ours in "qk" else f
            table[f"attn_layers.{i}.{theirs}.weight"] = (f"attn{i}_W_{ours}", (size, f))
            table[f"attn_layers.{i}.{theirs}.bias"] = (f"attn{i}_b_{ours}", (size,))
    return table


def _read(arrays: Arrays, encoder: Temporal) -> dict[str, np.ndarray]:
    table = _shapes(encoder)
    arrays.only(table)
    found = {ours: arrays.take(theirs, shape) for theirs, (ours, shape) in table.items()}
    return {n: np.ascontiguousarray(a.T) if n.startswith("attn") else a for n, a in found.items()}


def written(sae: SAE, encoder: Temporal) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays under their names, configuration keys) of a temporal SAE."""
    arrays = {}
    for theirs, (ours, _) in _shapes(encoder).items():
        array = np.asarray(sae.params[ours])
        arrays[theirs] = np.ascontiguousarray(array.T) if ours.startswith("attn") else array
    scaled = isinstance(sae.norm, DatasetNorm)
    config = {
        "n_heads": encoder.n_heads,
        "n_attn_layers": encoder.n_layers,
        "bottleneck_factor": encoder.d_sae // encoder.width,
        "sae_diff_type": "relu" if sae.k is None else "topk",
        "kval_topk": sae.k,
        "tied_weights": encoder.tied,
        "normalize_activations": "constant_scalar_rescale" if scaled else "none",
        "activation_normalization_factor": float(sae.params["c_in"]) if scaled else 1.0,
        "apply_b_dec_to_input": encoder.b_pre == "b_dec",
    }
    return arrays, config
