"""Folding: the same frozen coder in other units."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from jaxsae.errors import ConfigError
from jaxsae.sae.dictionaries import Free
from jaxsae.sae.encode import PreSelect
from jaxsae.sae.encoders import Affine
from jaxsae.sae.gates import Gated
from jaxsae.sae.sae import SAE
from jaxsae.sae.selectors import Rank, Relu, Threshold


def unit_atoms(sae: SAE) -> SAE:
    """The same coder with atoms of norm 1, so that codes are the sizes of what they add to the output.

        n_j = ||d_j||      d_j <- d_j / n_j      and times n_j: encoder columns, encoder biases, thresholds

    Reconstructions are equal, codes are multiplied by the norms; a threshold left as it was would let latents with
    n_j > 1 fire more often and those with n_j < 1 less.  A latent without an atom (n_j = 0) stays as it is.

    Args:
        sae: with an affine or gated encoder and any threshold; or a rank by norm, which becomes a plain rank.

    Raises:
        ConfigError: another encoder or selector; a rank of scores without norms, which the new units would reorder.

    Example:
        >>> from jaxsae.sae import make_sae
        >>> W = jnp.array([[2.0, 0.0]])
        >>> sae = unit_atoms(make_sae({"W_enc": W.T, "b_enc": jnp.zeros(1), "W_dec": W, "b_dec": jnp.zeros(2)}))
        >>> sae.W_dec.tolist(), sae.encode(jnp.array([[1.0, 0.0]])).dense().tolist()
        ([[1.0, 0.0]], [[4.0]])
    """
    encode: Any = sae.encoder
    known = (
        isinstance(encode, PreSelect)
        and isinstance(encode.encoder, (Affine, Gated))
        and isinstance(sae.dictionary, Free)
    )
    selector = encode.selector if known else None
    if not isinstance(selector, (Relu, Threshold)) and not (isinstance(selector, Rank) and selector.by_norm):
        raise ConfigError(
            "norms fold into an affine or gated encoder with a threshold, or with a rank by norm; "
            f"found {type(getattr(encode, 'encoder', encode)).__name__} with {selector}"
        )
    norms = sae.dictionary.norms(sae.params)
    n = jnp.where(norms > 0, norms, 1.0)
    scaled = {name: leaf * n for name, leaf in sae.params.items() if name in ("b_enc", "b_gate", "b_mag", "threshold")}
    matrices = {"W_enc": sae.params["W_enc"] * n[None], "W_dec": sae.params["W_dec"] / n[:, None]}
    if isinstance(selector, Rank):
        encode = replace(encode, selector=replace(selector, by_norm=False))
    return sae.replace(params={**sae.params, **scaled, **matrices}, encoder=encode)  # type: ignore[attr-defined]
