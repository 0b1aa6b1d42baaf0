"""A decoder of a few thousand random weights with a tokenizer of bytes: a host for tests, without a download."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsae.hosts.host import Host
from jaxsae.hosts.llama import Llama
from jaxsae.hosts.tokenizer import END_OF_TEXT, Tokenizer, byte_level


def tiny_host(
    key: Array | None = None, n_layers: int = 3, d_model: int = 32, dtype: str = "float32", **settings: Any
) -> Host:
    """A host with random weights; every site has activations of ordinary size and every weight matters.

    Args:
        key: of the weights; default `jax.random.key(0)`.
        n_layers: blocks.
        d_model: width of the residual stream; a multiple of 8.
        dtype: of the weights.
        settings: other fields of `Llama`.

    Returns:
        A host whose tokenizer gives each byte its own token; token 0 is `<|endoftext|>`.

    Example:
        >>> host = tiny_host(n_layers=2)
        >>> host.tokenizer.decode(host.tokenizer.encode("a"))
        'a'
    """
    model = Llama(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=4,
        n_kv_heads=2,
        d_head=d_model // 4,
        d_mlp=2 * d_model,
        vocab_size=257,
        context_length=512,
    )
    model = dataclasses.replace(model, **settings)
    params = random_params(model, jax.random.key(0) if key is None else key, dtype)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return Host("tiny", model, params, byte_tokenizer(), digest.hexdigest())


def random_params(model: Llama, key: Array, dtype: str = "float32") -> Any:
    """Normal weights scaled by `1 / sqrt(inputs)`, gains spread around 1, embeddings of size 1."""
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))  # no compilation, unlike jax.random

    def leaf(path: tuple, shape: tuple[int, ...]) -> Array:
        noise, name = random.standard_normal(shape, np.float32), path[-1].key
        if name.startswith("ln"):
            noise = 1 + 0.2 * noise
        elif name.startswith("W"):
            noise = noise / np.sqrt(shape[-2])
        return jnp.asarray(noise, dtype)

    return jax.tree.map_with_path(leaf, model.shapes(), is_leaf=lambda s: isinstance(s, tuple))


def byte_tokenizer() -> Tokenizer:
    """One token per byte, after `<|endoftext|>` at 0."""
    from tokenizers import pre_tokenizers

    tokens = [END_OF_TEXT[0], *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return Tokenizer(byte_level(tokens, merges=[], special_ids=[0]), eos_id=0, special_ids=[0])
