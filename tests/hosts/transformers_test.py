"""The decoder against the `transformers` implementation: random tiny models, saved as folders and read back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import hosts
from jaxsae.testing.tiny_host import byte_tokenizer

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

SIZES = {
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 1000.0,
    "initializer_range": 0.15,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = {
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama untied": ("Llama", {"tie_word_embeddings": False}),
    "llama biased, wide heads": ("Llama", {"attention_bias": True, "head_dim": 16}),
    "llama scaled": ("Llama", {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
}


@pytest.fixture
def torch():
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


def peer(torch, family, settings, shard_size):
    """A random model with every weight set, in a folder."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**(SIZES | settings))
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:  # transformers starts these at 1 and 0, which would hide mistakes
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
def test_logits_and_streams_equal_those_of_transformers(torch, tmp_path, case, shard_size):
    family, settings = CASES[case]
    model = peer(torch, family, settings, shard_size)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    byte_tokenizer()._inner.save(str(tmp_path / "tokenizer.json"))
    host = hosts.load(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 257, (2, 50))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), output_hidden_states=True)
    posts = [f"blocks.{i}.hook_resid_post" for i in range(host.model.n_layers - 1)]
    ours = jax.jit(lambda p, t: host.model.run(p, t, taps=["blocks.0.hook_resid_pre", *posts]))(
        host.params, jnp.asarray(tokens)
    )
    np.testing.assert_allclose(ours.logits, theirs.logits.numpy(), rtol=1e-4, atol=2e-4)
    for site, hidden in zip(["blocks.0.hook_resid_pre", *posts], theirs.hidden_states, strict=False):
        np.testing.assert_allclose(ours.taps[site], hidden.numpy(), rtol=1e-4, atol=1e-4, err_msg=site)
    assert host.model.n_params == sum(parameter.numel() for parameter in model.parameters())


def test_inner_sites_equal_what_hooks_in_transformers_see(torch, tmp_path):
    model = peer(torch, "Llama", {}, "5GB")
    model.save_pretrained(tmp_path)
    byte_tokenizer()._inner.save(str(tmp_path / "tokenizer.json"))
    host, seen = hosts.load(tmp_path), {}
    block = model.model.layers[1]
    block.self_attn.o_proj.register_forward_hook(lambda m, i, o: seen.update({"attn.hook_z": i[0], "hook_attn_out": o}))
    block.mlp.register_forward_hook(lambda m, i, o: seen.update({"ln2.hook_normalized": i[0], "hook_mlp_out": o}))
    block.post_attention_layernorm.register_forward_hook(lambda m, i, o: seen.update({"hook_resid_mid": i[0]}))
    tokens = np.random.default_rng(1).integers(0, 257, (2, 20))
    with torch.no_grad():
        model(torch.tensor(tokens))
    sites = [f"blocks.1.{name}" for name in seen]
    ours = host.model.run(host.params, jnp.asarray(tokens), taps=sites, logits=False)
    for name, value in seen.items():
        np.testing.assert_allclose(ours.taps[f"blocks.1.{name}"], value.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


def test_gradients_through_an_edit_equal_those_of_transformers(torch, tmp_path):
    model = peer(torch, "Llama", {"tie_word_embeddings": False}, "5GB")
    model.save_pretrained(tmp_path)
    byte_tokenizer()._inner.save(str(tmp_path / "tokenizer.json"))
    host = hosts.load(tmp_path)
    tokens = np.random.default_rng(2).integers(0, 257, (2, 12))
    shift = np.random.default_rng(3).normal(size=(2, 12, 48)).astype(np.float32)

    theirs = torch.tensor(shift, requires_grad=True)
    model.model.layers[0].register_forward_hook(
        lambda m, i, o: (o[0] + theirs, *o[1:]) if isinstance(o, tuple) else o + theirs
    )
    model(torch.tensor(tokens), labels=torch.tensor(tokens)).loss.backward()

    def loss(shift):
        edits = {"blocks.0.hook_resid_post": lambda x: x + shift}
        run = host.model.run(host.params, jnp.asarray(tokens), edits=edits)
        return hosts.cross_entropy(run.logits, jnp.asarray(tokens)).mean()

    np.testing.assert_allclose(jax.grad(loss)(shift), theirs.grad.numpy(), rtol=1e-3, atol=1e-6)
