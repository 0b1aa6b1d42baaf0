"""Hugging Face model folders of the Llama family: config.json, safetensors (one file or shards), tokenizer.json."""

import math
import pathlib
import re
from typing import Any

from jaxsae.errors import HostError
from jaxsae.hosts.host import Host
from jaxsae.hosts.llama import Llama
from jaxsae.hosts.placement import MeshFor, mesh_of, placements
from jaxsae.hosts.tokenizer import from_folder, read_json
from jaxsae.hosts.weights import Stack, digest_of

#: Architectures, and the letters of their attention projections that have a bias by default.
_ARCHITECTURES = {"LlamaForCausalLM": "", "MistralForCausalLM": "", "Qwen2ForCausalLM": "QKV"}
_WHOLE = {"model.embed_tokens.weight": "embed", "model.norm.weight": "ln_final", "lm_head.weight": "unembed"}
_BLOCK = {
    "input_layernorm.weight": "ln1",
    "self_attn.q_proj.weight": "W_Q",
    "self_attn.k_proj.weight": "W_K",
    "self_attn.v_proj.weight": "W_V",
    "self_attn.o_proj.weight": "W_O",
    "self_attn.q_proj.bias": "b_Q",
    "self_attn.k_proj.bias": "b_K",
    "self_attn.v_proj.bias": "b_V",
    "self_attn.o_proj.bias": "b_O",
    "post_attention_layernorm.weight": "ln2",
    "mlp.gate_proj.weight": "W_gate",
    "mlp.up_proj.weight": "W_in",
    "mlp.down_proj.weight": "W_out",
}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load_folder(folder: pathlib.Path, dtype: str = "float32", name: str | None = None, mesh: MeshFor = None) -> Host:
    """The host in a Hugging Face folder.

    Args:
        folder: holds config.json, model.safetensors (or shards and their index) and tokenizer.json.
        dtype: "float32" or "bfloat16"; the weights are converted to it.
        name: what to call it; default the folder's name.
        mesh: the devices that its weights are spread over, or a function model -> mesh; None for the default device.

    Raises:
        HostError: a file is missing or damaged, or the architecture is another one.
    """
    try:
        model = model_of(read_json(folder / "config.json"), folder)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        raise HostError(f"{folder}/config.json describes no model that jaxsae runs ({e})") from e
    tokenizer, mesh = from_folder(folder), mesh_of(mesh, model)
    stack, files = Stack(model, dtype, folder), _weight_files(folder)
    for file in files:
        _read_file(stack, file, model.tied)
    params = stack.finish(None if mesh is None else placements(model, mesh))
    return Host(name or folder.resolve().name, model, params, tokenizer, digest_of(files))


def model_of(config: dict[str, Any], origin: pathlib.Path) -> Llama:
    """The model that a config.json describes.

    Raises:
        HostError: it asks for something that this family, as jaxsae runs it, does not have.
    """
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in _ARCHITECTURES:
        raise HostError(f"{origin} holds a {architecture}; jaxsae runs {', '.join(_ARCHITECTURES)}")
    _refuse_extras(config, origin)

    def need(key: str) -> Any:
        if config.get(key) is None:
            raise HostError(f"{origin}/config.json lacks {key!r}; expected a complete configuration")
        return config[key]

    heads = need("num_attention_heads")
    d_head = config.get("head_dim") or need("hidden_size") // heads
    rope = _rope(config)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    length = need("max_position_embeddings")
    base = float(rope.get("rope_theta", 10000.0))
    return Llama(
        n_layers=need("num_hidden_layers"),
        d_model=need("hidden_size"),
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=d_head,
        d_mlp=need("intermediate_size"),
        vocab_size=need("vocab_size"),
        # Within its window, sliding attention is ordinary causal attention.
        context_length=min(length, window) if window else length,
        rope_base=base,
        rope_layout="half",
        rope_divisors=_rope_divisors(rope, base, d_head, origin),
        norm_eps=need("rms_norm_eps"),
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_bias="QKVO" if config.get("attention_bias") else _ARCHITECTURES[architecture],
    )


def _refuse_extras(config: dict[str, Any], origin: pathlib.Path) -> None:
    unusual = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "mlp_bias": bool(config.get("mlp_bias")),
        "quantization_config": bool(config.get("quantization_config")),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0) != 1.0,
    }
    for key, found in unusual.items():
        if found:
            raise HostError(f"{origin}/config.json sets {key!r} to {config[key]!r}, which jaxsae does not run")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotation settings of the older keys (`rope_theta`, `rope_scaling`) and the newer (`rope_parameters`) in one."""
    older = {"rope_theta": config["rope_theta"]} if config.get("rope_theta") else {}
    return older | (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})


def _rope_divisors(rope: dict[str, Any], base: float, d_head: int, origin: pathlib.Path) -> tuple[float, ...]:
    """Frequency divisors of the scaling named.

    llama3 (Grattafiori et al., arXiv:2407.21783): wavelengths shorter than L / high keep their frequency, longer than
    L / low are slowed by `factor`, and between the two the frequency is interpolated linearly in L / wavelength.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return ()
    if kind == "linear":
        return (float(rope["factor"]),) * (d_head // 2)
    if kind != "llama3":
        raise HostError(f"{origin} scales its rotations by {kind!r}; jaxsae knows 'default', 'linear' and 'llama3'")
    factor, low, high = (float(rope[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    divisors = []
    for i in range(0, d_head, 2):
        turns = rope["original_max_position_embeddings"] * base ** (-i / d_head) / (2 * math.pi)
        keep = min(1.0, max(0.0, (turns - low) / (high - low)))
        divisors.append(1.0 / (keep + (1.0 - keep) / factor))
    return tuple(divisors)


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        raise HostError(f"{folder} has neither {_SINGLE} nor {_INDEX}; expected weights in safetensors format")
    names = sorted(set((read_json(folder / _INDEX).get("weight_map") or {}).values()))
    for name in names:
        if pathlib.PurePath(name).name != name or not (folder / name).is_file():
            raise HostError(f"{folder} lacks the shard {name!r} that its index names; fetch the folder again")
    return [folder / name for name in names]


def _read_file(stack: Stack, path: pathlib.Path, tied: bool) -> None:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                place = _place(path, key)
                if place is not None and not (tied and place[0] == "unembed"):
                    stack.place(*place, file.get_slice(key).get_shape())[:] = file.get_tensor(key)
    except (safetensors.SafetensorError, TypeError) as e:
        raise HostError(f"{path} is damaged, cut short or of a dtype unknown here ({e}); fetch it again") from e


def _place(path: pathlib.Path, key: str) -> tuple[str, int | None] | None:
    """Leaf of the parameters and block number; None for what carries no weight."""
    if key in _WHOLE:
        return _WHOLE[key], None
    if key.endswith("rotary_emb.inv_freq"):
        return None
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", key)
    if found is None or found[2] not in _BLOCK:
        raise HostError(f"{path} holds a tensor {key!r} that this family of models does not have")
    return _BLOCK[found[2]], int(found[1])
