"""Hugging Face folders: what is written is read back, and what cannot be run is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsae import hosts
from jaxsae.errors import HostError
from jaxsae.hosts.hf_folder import load_folder, model_of
from jaxsae.hosts.placement import placements
from jaxsae.parallel import make_mesh
from jaxsae.testing.tiny_host import tiny_host

BLOCK = {
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "W_gate": "mlp.gate_proj",
    "W_in": "mlp.up_proj",
    "W_out": "mlp.down_proj",
}
BLOCK |= {f"W_{c}": f"self_attn.{c.lower()}_proj" for c in "QKVO"} | {
    f"b_{c}": f"self_attn.{c.lower()}_proj" for c in "QKVO"
}


def config_of(model, **settings):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "intermediate_size": model.d_mlp,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.context_length,
        "rope_theta": model.rope_base,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
    }
    return config | settings


def tensors_of(host, dtype=np.float32):
    tensors = {"model.embed_tokens.weight": host.params["embed"], "model.norm.weight": host.params["ln_final"]}
    if not host.model.tied:
        tensors["lm_head.weight"] = host.params["unembed"]
    for leaf, stack in host.params["blocks"].items():
        for i, value in enumerate(stack):
            kind = "bias" if leaf.startswith("b_") else "weight"
            tensors[f"model.layers.{i}.{BLOCK[leaf]}.{kind}"] = value.T
    return {name: np.ascontiguousarray(value, dtype) for name, value in tensors.items()}


def write(folder, host, tensors=None, shards=0, **settings):
    folder.mkdir(exist_ok=True)
    tensors = tensors_of(host) if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps(config_of(host.model, **settings)))
    host.tokenizer._inner.save(str(folder / "tokenizer.json"))
    if not shards:
        save_file(tensors, folder / "model.safetensors")
        return folder
    where = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        save_file({name: value for name, value in tensors.items() if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.fixture(scope="module")
def host():
    return tiny_host(n_layers=2)


@pytest.mark.parametrize("variant", [{}, {"tied": False}, {"attention_bias": "QKVO"}, {"d_head": 12}])
@pytest.mark.parametrize("shards", [0, 3])
def test_a_folder_written_from_a_host_is_that_host(variant, shards, tmp_path):
    host = tiny_host(n_layers=2, **variant)
    settings = {"attention_bias": "attention_bias" in variant, "head_dim": variant.get("d_head")}
    read = hosts.load(write(tmp_path / "tiny-llama", host, shards=shards, **settings))
    assert read.model == host.model
    assert read.name == "tiny-llama"
    jax.tree.map(np.testing.assert_array_equal, read.params, host.params)
    assert read.tokenizer.encode("é") == host.tokenizer.encode("é")


@pytest.mark.parametrize("asked", ["a mesh", "a function of the model"])
def test_weights_are_read_onto_a_mesh(asked, host, tmp_path):
    """Each leaf in its place and in the dtype asked for."""
    mesh = make_mesh(2, 2, jax.devices()[:4])
    folder = write(tmp_path / "tiny", host)
    read = hosts.load(folder, "bfloat16", mesh if asked == "a mesh" else lambda model: mesh)
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), host.params)
    jax.tree.map(np.testing.assert_array_equal, read.params, expected)
    assert jax.tree.map(lambda x: x.sharding, read.params) == placements(host.model, mesh)
    assert read.params["blocks"]["W_out"].addressable_data(0).shape == (2, 32, 32)


@pytest.mark.parametrize("stored", [np.float16, jnp.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_half_precision_files_are_converted(host, tmp_path, stored, dtype):
    read = load_folder(write(tmp_path, host, tensors_of(host, stored)), dtype)
    np.testing.assert_array_equal(read.params["embed"], host.params["embed"].astype(stored).astype(dtype))


def test_the_digest_follows_the_weights_and_nothing_else(host, tmp_path):
    digests = [load_folder(write(tmp_path / n, host, shards=s)).digest for n, s in (("a", 0), ("b", 0), ("c", 2))]
    changed = tensors_of(host)
    changed["model.norm.weight"] = changed["model.norm.weight"] + 1
    assert digests[0] == digests[1]
    assert len({*digests, load_folder(write(tmp_path / "d", host, changed)).digest}) == 3


def test_mistral_and_qwen2_are_read_with_their_own_defaults(host, tmp_path):
    config = config_of(host.model, architectures=["MistralForCausalLM"], sliding_window=100)
    assert model_of(config, tmp_path).context_length == 100  # within its window, sliding attention is causal attention
    assert model_of(config | {"sliding_window": None}, tmp_path).context_length == 512
    config = config_of(host.model, architectures=["Qwen2ForCausalLM"], sliding_window=100, use_sliding_window=False)
    assert model_of(config, tmp_path).context_length == 512
    assert model_of(config, tmp_path).attention_bias == "QKV"


def test_older_and_newer_ways_to_write_rotations_agree(host, tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    older = config_of(host.model, rope_theta=5e5, rope_scaling=scaling)
    newer = config_of(host.model, rope_theta=None, rope_parameters=scaling | {"rope_theta": 5e5})
    assert model_of(older, tmp_path) == model_of(newer, tmp_path)
    divisors = model_of(older, tmp_path).rope_divisors
    assert (divisors[0], divisors[-1]) == (1.0, 8.0)  # the fastest is kept, the slowest slowed in full
    linear = config_of(host.model, rope_scaling={"type": "linear", "factor": 2})
    assert model_of(linear, tmp_path).rope_divisors == (2.0,) * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel; jaxsae runs LlamaForCausalLM"),
        ({"architectures": None}, "none"),
        ({"hidden_act": "gelu"}, "'hidden_act' to 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rms_norm_eps": None}, "'rms_norm_eps'"),
        ({"num_key_value_heads": 3}, "cannot share 3 KV heads"),
        ({"hidden_size": "wide"}, "describes no model"),
        ({"intermediate_size": 65}, "shape [32, 64], expected [32, 65]"),
        ({"num_hidden_layers": 3}, "lacks 9 tensors"),
        ({"num_hidden_layers": 1}, "of block 1 that the model lacks"),
        ({"tie_word_embeddings": False}, "lacks 1 tensors, the first of them unembed"),
        ({"num_hidden_layers": 10**9}, "no room"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(host, tmp_path, settings, message):
    with pytest.raises(HostError) as e:
        load_folder(write(tmp_path, host, **settings))
    assert message in str(e.value)
    assert str(tmp_path) in str(e.value)
    assert "\n" not in str(e.value)


def test_a_tied_models_spare_copy_of_the_head_is_ignored(host, tmp_path):
    spare = tensors_of(host) | {"lm_head.weight": np.ones((257, 32), np.float32)}
    jax.tree.map(np.testing.assert_array_equal, load_folder(write(tmp_path, host, spare)).params, host.params)


def test_missing_strange_and_damaged_files_are_one_sentence(host, tmp_path):
    def refuse(message):
        with pytest.raises(HostError) as e:
            load_folder(tmp_path)
        assert message in str(e.value)
        assert "\n" not in str(e.value)

    refuse("config.json cannot be read")
    write(tmp_path, host, tensors_of(host) | {"model.layers.0.mlp.router.weight": np.ones((2, 2), np.float32)})
    refuse("'model.layers.0.mlp.router.weight'")
    write(tmp_path, host)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refuse("model.safetensors is damaged")
    weights.unlink()
    refuse("neither model.safetensors nor")
    index = tmp_path / "model.safetensors.index.json"
    for name in ("absent.safetensors", "../config.json"):
        index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
        refuse(f"lacks the shard '{name}'")
    index.write_text("[]")
    refuse("expected a JSON object")
    (tmp_path / "tokenizer.json").unlink()
    refuse("no tokenizer.json")
