"""llamascopium's mixtures of linear transforms and attention dictionaries."""

from typing import Any

import numpy as np

from jaxsae.io.formats._arrays import Arrays
from jaxsae.io.formats._base import Config
from jaxsae.io.formats._llamascopium_sites import read_threshold
from jaxsae.io.formats._sites import over_norm
from jaxsae.io.formats._weights import row_norms, transposed
from jaxsae.sae import Affine, Bias, Lorsa, Rank, Relu, Threshold, Transforms

Found = tuple[dict[str, np.ndarray], dict[str, Any]]


def selection(
    config: Config, arrays: Arrays, act: str, by_norm: bool, norms: np.ndarray
) -> tuple[Any, int | None, dict[str, np.ndarray]]:
    """(selector, k, threshold) where every latent is judged once.

    `norms` turn thresholds on h * norm into thresholds on h; ones where the norm does not count.
    """
    if act == "relu":
        return Relu(), None, {}
    if act == "jumprelu":
        threshold = over_norm(read_threshold(arrays, norms.shape), norms)
        return Threshold(rectify=False), None, {"threshold": threshold}
    k = config.integer("top_k", most=len(norms))
    return Rank(k, by_norm=by_norm), k, {}


def ranks(config: Config) -> dict[int, int]:
    """How many transforms there are of each rank, ascending.

    Raises:
        FormatError: not an object of positive whole numbers.
    """
    found = config.part("rank_counts")
    if not found or not all(key.isdigit() and 0 < int(key) < 2**20 for key in found if len(key) < 8):
        config.fail("rank_counts", "an object of ranks and counts", dict(found))
    return {int(key): found.integer(key) for key in sorted(found, key=lambda k: int(k) if k.isdigit() else 0)}


def read_molt(config: Config, arrays: Arrays, d: int, f: int, act: str, by_norm: bool) -> Found:
    """(arrays, slot members) of a mixture of linear transforms; latents are ordered by rank."""
    counts = ranks(config)
    f = sum(counts.values())
    dictionary = Transforms(d, d, tuple(counts.items()))
    found = {"W_enc": arrays.take("W_E", (d, f)), "b_enc": arrays.take("b_E", (f,)), "b_dec": _bias(config, arrays, d)}
    for rank, count in counts.items():
        found[f"U_{rank}"] = arrays.take(f"U_matrices.{rank}", (count, d, rank))
        found[f"V_{rank}"] = arrays.take(f"V_matrices.{rank}", (count, rank, d))
    norms = transform_norms(found, counts) if by_norm and act == "jumprelu" else np.ones(f)
    selector, k, extra = selection(config, arrays, act, by_norm, norms)
    encoder = Affine(d, f, "none", "random")
    frame = {"encoder": encoder, "selector": selector, "dictionary": dictionary, "readout": Bias(d), "k": k}
    return {**found, **extra}, frame


def transform_norms(found: dict[str, np.ndarray], counts: dict[int, int]) -> np.ndarray:
    """Frobenius norms of U_i V_i: [S] float64."""
    norms = []
    for rank in counts:
        U, V = (found[f"{side}_{rank}"].astype(np.float64) for side in "UV")
        left = np.einsum("cdr,cds->crs", U, U)
        norms.append(np.sqrt(np.einsum("crs,cre,cse->c", left, V, V)))
    return np.concatenate(norms)


def _bias(config: Config, arrays: Arrays, d: int) -> np.ndarray:
    return arrays.take("b_D", (d,)) if config.flag("use_decoder_bias", True) else np.zeros(d, np.float32)


def read_lorsa(config: Config, arrays: Arrays, d: int, f: int, act: str, by_norm: bool) -> Found:
    """(arrays, slot members) of an attention dictionary; the stored rotary tables are used as they are."""
    heads, width = config.integer("n_qk_heads"), config.integer("d_qk_head")
    if f % heads:
        config.fail("n_qk_heads", f"a divisor of the {f} latents", heads)
    if config.flag("use_post_qk_ln", False):
        config.fail("use_post_qk_ln", "false (normalised queries and keys are not supported)", True)
    found = {
        "W_enc": transposed(arrays.take("W_V", (f, d))),
        "b_enc": arrays.take("b_V", (f,)),
        "W_dec": arrays.take("W_O", (f, d)),
        "b_dec": _bias(config, arrays, d),
        "W_q": arrays.take("W_Q", (heads, d, width)),
        "W_k": arrays.take("W_K", (heads, d, width)),
        "b_q": arrays.take("b_Q", (heads, width)),
        "b_k": arrays.take("b_K", (heads, width)),
    }
    rotary, context = 0, config.integer("n_ctx")
    if config.choice("positional_embedding_type", ("rotary", "none"), "rotary") == "rotary":
        rotary = config.integer("rotary_dim", most=width)
        found |= {n: arrays.take(n, (context, rotary)) for n in ("rotary_cos", "rotary_sin")}
    encoder = Lorsa(
        d,
        f,
        heads,
        width,
        attn_scale=config.number("attn_scale", None, above=0),
        rotary_dim=rotary,
        rotary_base=config.number("rotary_base", 10_000.0, above=0),
        adjacent=config.flag("rotary_adjacent_pairs", True),
        context=context,
    )
    norms = row_norms(found["W_dec"]) if by_norm and act == "jumprelu" else np.ones(f)
    selector, k, extra = selection(config, arrays, act, by_norm, norms)
    return {**found, **extra}, {"encoder": encoder, "selector": selector, "readout": Bias(d), "k": k}
