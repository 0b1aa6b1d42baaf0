"""Configurations of SAELens before version 6, rewritten as version 6 would have them."""

import re
from typing import Any

from jaxsae.io.formats._arrays import Arrays
from jaxsae.io.formats._base import Config

#: Keys that version 6 keeps under `metadata`, with the name they had before version 3 where it was another.
METADATA = {
    "model_name": None,
    "hook_name": "hook_point",
    "hook_layer": "hook_point_layer",
    "hook_head_index": "hook_point_head_index",
    "dataset_path": None,
    "context_size": None,
    "prepend_bos": None,
    "neuronpedia_id": None,
    "seqpos_slice": None,
    "model_from_pretrained_kwargs": None,
    "sae_lens_training_version": None,
}
FACTORS = ("finetuning_scaling_factor", "scaling_factor")


def is_current(config: Config) -> bool:
    """Whether the file says that version 6 or later wrote it."""
    said = config.get("sae_lens_version")
    metadata = config.get("metadata")
    if said is None and isinstance(metadata, dict):
        said = metadata.get("sae_lens_version")
    found = re.match(r"(\d+)\.", said) if isinstance(said, str) else None
    return found is not None and len(found[1]) < 6 and int(found[1]) >= 6


def modernised(config: Config, arrays: Arrays) -> Config:
    """The configuration in version 6 terms, with two extra keys for what version 6 dropped.

    `activation` is "relu" or "tanh-relu"; `factor` names the array that scales each latent before decoding, if any.
    """
    if is_current(config):
        return config
    new: dict[str, Any] = {k: v for k, v in config.items() if k not in METADATA}
    new["architecture"] = config.choice("architecture", ("standard", "gated", "jumprelu", "topk"), "standard")
    new.setdefault("dtype", "float32")
    new["metadata"] = {}
    for key, older in METADATA.items():
        value = config.get(key, config.get(older) if older else None)
        if value is not None:
            new["metadata"][key] = value
    norm = config.get("normalize_activations")
    if norm is None or isinstance(norm, bool):
        new["normalize_activations"] = "expected_average_only_in" if norm else "none"
    if "hook_z" in str(new["metadata"].get("hook_name", "")):
        new["reshape_activations"] = "hook_z"
    _activation(config, new)
    if config.flag("finetuning_scaling_factor", False):
        new["factor"] = FACTORS[1] if FACTORS[1] in arrays and FACTORS[0] not in arrays else FACTORS[0]
    return Config(config.file, new)


def _activation(config: Config, new: dict[str, Any]) -> None:
    key = "activation_fn_str" if "activation_fn_str" in config else "activation_fn"
    kinds = ("relu", "topk", "tanh-relu")
    kind = config.choice(key, kinds, "topk" if new["architecture"] == "topk" else "relu")
    new["activation"] = "tanh-relu" if kind == "tanh-relu" else "relu"
    if new["activation"] == "tanh-relu" and new["architecture"] not in ("standard", "gated"):
        config.fail(key, f"relu for the architecture {new['architecture']}", kind)
    if kind == "topk" or new["architecture"] == "topk":
        if new["architecture"] not in ("standard", "topk"):
            config.fail(key, f"relu for the architecture {new['architecture']}", kind)
        new["architecture"] = "topk"
        if "k" not in new:
            new["k"] = config.part("activation_fn_kwargs").integer("k")
