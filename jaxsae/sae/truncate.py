"""Smaller coders inside a trained one: its k best entries per row, or its first latents."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from jaxsae.errors import ConfigError
from jaxsae.sae.dictionaries import Free
from jaxsae.sae.sae import SAE
from jaxsae.sae.selectors import Rank, Relu, Threshold
from jaxsae.sae.soft_cap import SoftCap


def at_k(sae: SAE, k: int) -> SAE:
    """The same coder keeping the k best entries of each row.

    For HierarchicalTopK, MSAE and multi-TopK, which were trained at many k, and for the alpha * k of k-sparse
    autoencoders.

    Args:
        sae: in rank form, or with plain ReLU codes.
        k: how many, up to d_sae.

    Raises:
        ConfigError: k out of range, or a selection that has no ranking.

    Example:
        >>> import jax
        >>> from jaxsae.sae import make_sae
        >>> arrays = {"W_enc": jnp.eye(3), "b_enc": jnp.zeros(3), "W_dec": jnp.eye(3), "b_dec": jnp.zeros(3)}
        >>> at_k(make_sae(arrays, k=1), 2)(jnp.array([1.0, 3.0, 2.0])).tolist()
        [0.0, 3.0, 2.0]
    """
    if not 0 < k <= sae.d_sae:
        raise ConfigError(f"k must lie between 1 and d_sae = {sae.d_sae}, found {k}")
    encoder: Any = sae.encoder
    selector = _ranked(getattr(encoder, "selector", None), k)
    params = {**sae.params, "k": jnp.int32(k)}
    return replace(sae, params=params, encoder=replace(encoder, selector=selector))


def _ranked(selector: Any, k: int) -> Any:
    if isinstance(selector, SoftCap):
        return replace(selector, selector=_ranked(selector.selector, k))
    if isinstance(selector, Rank) and selector.rule.per_row:
        return replace(selector, cap=k)
    if isinstance(selector, Relu):
        return Rank(k)
    raise ConfigError(f"{type(selector).__name__} does not rank the entries of a row; export the rank form")


def at_prefix(sae: SAE, length: int) -> SAE:
    """The same coder with its first latents only: a level of a Matryoshka.

    Args:
        sae: whose latents are judged one by one (ReLU or thresholds), so that the others can be left out.
        length: how many latents, up to d_sae.

    Raises:
        ConfigError: length out of range, or a selection in which latents compete.

    Example:
        >>> from jaxsae.sae import make_sae
        >>> arrays = {"W_enc": jnp.eye(3), "b_enc": jnp.zeros(3), "W_dec": jnp.eye(3), "b_dec": jnp.zeros(3)}
        >>> at_prefix(make_sae(arrays), 2)(jnp.array([1.0, 3.0, 2.0])).tolist()
        [1.0, 3.0, 0.0]
    """
    if not 0 < length <= sae.d_sae:
        raise ConfigError(f"a prefix must lie between 1 and d_sae = {sae.d_sae}, found {length}")
    encoder: Any = sae.encoder
    selector = getattr(encoder, "selector", None)
    alone = selector.selector if isinstance(selector, SoftCap) else selector
    if not isinstance(alone, Relu | Threshold):
        raise ConfigError(f"latents compete in {type(alone).__name__}: a prefix needs the threshold form")
    axes = {**sae.encoder.axes, **sae.dictionary.axes}
    cut = {
        name: jnp.take(a, jnp.arange(length), axis=axes[name].index("S")) if "S" in axes.get(name, "") else a
        for name, a in sae.params.items()
    }
    inner = replace(encoder, encoder=replace(encoder.encoder, d_sae=length))
    return replace(sae, params=cut, encoder=inner, dictionary=Free(length, sae.d_out))
