"""GGUF files: what is written by the `gguf` package is read back, and damage is refused."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import hosts
from jaxsae.errors import HostError
from jaxsae.hosts.gguf_file import load_gguf
from jaxsae.hosts.placement import placements
from jaxsae.parallel import make_mesh
from jaxsae.testing.tiny_host import byte_tokenizer, tiny_host

T = gguf.MODEL_TENSOR
NAMES = {"embed": T.TOKEN_EMBD, "ln_final": T.OUTPUT_NORM, "unembed": T.OUTPUT, "ln1": T.ATTN_NORM, "ln2": T.FFN_NORM}
NAMES |= {"W_gate": T.FFN_GATE, "W_in": T.FFN_UP, "W_out": T.FFN_DOWN}
for letter, kind in (("Q", T.ATTN_Q), ("K", T.ATTN_K), ("V", T.ATTN_V), ("O", T.ATTN_OUT)):
    NAMES |= {f"W_{letter}": kind, f"b_{letter}": kind}


def tensor_name(leaf, layer=None):
    """The name that the format's own package gives a tensor."""
    return gguf.TENSOR_NAMES[NAMES[leaf]].format(bid=layer) + (".bias" if leaf.startswith("b_") else ".weight")


def interleave(rows, heads):
    """The order in which writers of llama files put the rows of Q and K: component i, then i + half, ..."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write(path, host, kind="F32", split="smollm", architecture="llama", permute=True, drop=(), extra=(), **settings):
    """The weights of `host` (in the layout "half") as a GGUF file; settings replace or, if None, remove keys."""
    m, kind = host.model, gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, architecture)
    values = {
        "block_count": m.n_layers,
        "context_length": m.context_length,
        "embedding_length": m.d_model,
        "feed_forward_length": m.d_mlp,
        "attention.head_count": m.n_heads,
        "attention.head_count_kv": m.n_kv_heads,
    }
    for key, value in (values | settings).items():
        if value is not None:
            (writer.add_string if isinstance(value, str) else writer.add_uint32)(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", m.norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", m.rope_base)
    tokenizer = byte_tokenizer()._inner
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_bos_token_id(7)
    writer.add_token_list([*(tokenizer.id_to_token(i) for i in range(257)), "zz"])
    writer.add_token_types([3] + [1] * 257)
    writer.add_array("tokenizer.ggml.merges", ["z z"])
    writer.add_eos_token_id(5)
    tensors = {tensor_name(leaf): value for leaf, value in host.params.items() if leaf != "blocks"}
    for leaf, stack in host.params["blocks"].items():
        for layer, value in enumerate(np.asarray(stack, np.float32)):
            heads = {"Q": m.n_heads, "K": m.n_kv_heads}.get(leaf[-1]) if permute else None
            value = interleave(value.T, heads) if heads else value.T
            tensors[tensor_name(leaf, layer)] = value
    for name, value in (tensors | dict(extra)).items():
        value = np.ascontiguousarray(value, np.float32)
        if name in drop:
            continue
        if value.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def host():
    return tiny_host(n_layers=2, vocab_size=258)


@pytest.fixture(scope="module")
def good(host, tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", host)


def logits(host):
    tokens = jnp.array([host.tokenizer.encode("the same text")])
    quick = {"xla_backend_optimization_level": 0}
    return jax.jit(host.model.run, compiler_options=quick)(host.params, tokens).logits


def test_a_file_written_from_a_host_is_that_host(host, good):
    """The rows of Q and K come back in another order, and turning neighbours undoes it: the logits say so."""
    read = load_gguf(good)
    assert read.model.rope_layout == "interleaved"
    assert host.model.rope_layout == "half"
    np.testing.assert_allclose(logits(read), logits(host), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(read.params["blocks"]["W_out"], host.params["blocks"]["W_out"])
    assert not np.array_equal(read.params["blocks"]["W_Q"], host.params["blocks"]["W_Q"])
    assert read.name == "tiny"
    assert read.digest == load_gguf(good).digest


def test_the_tokenizer_travels_in_the_file(host, good):
    read = load_gguf(good).tokenizer
    assert read.encode("naïve 12") == host.tokenizer.encode("naïve 12")
    assert (read.eos_id, read.bos_id, read.special_ids) == (
        0,
        None,
        frozenset([0]),
    )  # <|endoftext|>, not the 5 it names


def test_only_the_llama3_family_begins_texts_with_a_token_unless_the_file_says_so(host, tmp_path):
    assert load_gguf(write(tmp_path / "a.gguf", host, split="llama-bpe")).tokenizer.bos_id == 7
    assert load_gguf(write(tmp_path / "b.gguf", host, split="qwen2")).tokenizer.bos_id is None


@pytest.mark.parametrize("variant", [{"tied": False}, {"attention_bias": "QKV"}, {"d_head": 12}])
def test_untied_biased_and_wide_headed_models_are_read(variant, tmp_path):
    host = tiny_host(n_layers=2, vocab_size=258, **variant)
    width = {"attention.key_length": 12} if "d_head" in variant else {}
    np.testing.assert_allclose(
        logits(load_gguf(write(tmp_path / "m.gguf", host, **width))), logits(host), rtol=1e-4, atol=1e-5
    )


def test_qwen2_files_keep_the_order_of_rows(tmp_path):
    host = tiny_host(n_layers=2, vocab_size=258, attention_bias="QKV", tied=False)
    read = load_gguf(write(tmp_path / "m.gguf", host, architecture="qwen2", permute=False))
    assert read.model.rope_layout == "half"
    np.testing.assert_allclose(logits(read), logits(host), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "error"), [("F16", 1e-3), ("BF16", 5e-3), ("Q8_0", 0.01), ("Q4_1", 0.12), ("Q4_0", 0.2)]
)
def test_quantised_weights_are_expanded(host, tmp_path, kind, error):
    read = load_gguf(write(tmp_path / "m.gguf", host, kind=kind))
    for leaf in ("W_V", "W_in", "W_out"):
        exact, rounded = host.params["blocks"][leaf], read.params["blocks"][leaf]
        assert 0 < float(jnp.linalg.norm(exact - rounded) / jnp.linalg.norm(exact)) < error
    np.testing.assert_array_equal(read.params["blocks"]["ln1"], host.params["blocks"]["ln1"])


def test_bfloat16_hosts_hold_the_rounded_float32_weights(host, good):
    read = load_gguf(good, dtype="bfloat16")
    np.testing.assert_array_equal(read.params["blocks"]["W_in"], host.params["blocks"]["W_in"].astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(read.params)} == {jnp.dtype("bfloat16")}


def test_weights_are_read_onto_a_mesh(good):
    mesh = make_mesh(2, 2, jax.devices()[:4])
    read, whole = load_gguf(good, mesh=mesh), load_gguf(good)
    assert jax.tree.map(lambda x: x.sharding, read.params) == placements(read.model, mesh)
    jax.tree.map(np.testing.assert_array_equal, read.params, whole.params)


def test_frequency_factors_and_linear_scaling_divide_the_frequencies(host, tmp_path):
    factors = np.array([1, 2, 4, 8], np.float32)
    read = load_gguf(write(tmp_path / "a.gguf", host, extra={"rope_freqs.weight": factors}))
    assert read.model.rope_divisors == (1.0, 2.0, 4.0, 8.0)
    read = load_gguf(write(tmp_path / "b.gguf", host, **{"rope.scaling.type": "linear", "rope.scaling.factor": 4}))
    assert read.model.rope_divisors == (4.0,) * 4


REFUSED = {
    "another architecture": ({"architecture": "gemma3"}, "'gemma3'"),
    "a missing tensor": (
        {"drop": ["blk.1.ffn_up.weight"]},
        "lacks 1 tensors, the first of them W_in of block 1",
    ),
    "no embedding": ({"drop": ["token_embd.weight"]}, "token_embd.weight"),
    "a tensor too many": ({"extra": {"blk.0.attn_q_norm.weight": np.ones(8)}}, "attn_q_norm"),
    "a block too many": ({"extra": {"blk.7.attn_norm.weight": np.ones(32)}}, "ln1 of block 7 that the model lacks"),
    "a wrong shape": ({"extra": {"blk.1.ffn_up.weight": np.ones((32, 32))}}, "shape [32, 32], expected [64, 32]"),
    "a missing setting": ({"context_length": None}, "llama.context_length"),
    "experts": ({"expert_count": 8}, "mixture of experts"),
    "yarn": ({"rope.scaling.type": "yarn"}, "'yarn'"),
    "partial rotation": ({"rope.dimension_count": 4}, "part of each head"),
    "zero heads": ({"attention.head_count_kv": 0}, "n_kv_heads"),
    "absurd size": ({"block_count": 2**31}, "no room"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_sentence(host, tmp_path, case):
    options, message = REFUSED[case]
    path = write(tmp_path / "m.gguf", host, **options)
    with pytest.raises(HostError) as e:
        load_gguf(path)
    assert message in str(e.value)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)


def test_a_cut_file_is_refused_wherever_it_is_cut(good, tmp_path):
    data = good.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [0, 3, 10, *range(24, len(data), len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(HostError):
            load_gguf(path)


def test_flipped_bits_in_the_header_end_in_a_host_or_in_one_sentence(good, tmp_path):
    """Neither a hang, nor a crash inside a library."""
    data, random = good.read_bytes(), np.random.default_rng(0)
    header = data.index(b"blk.1.ffn_down.weight") + 60
    path = tmp_path / "flipped.gguf"
    refusals = []
    for _ in range(150):
        changed = bytearray(data)
        changed[random.integers(header)] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        try:
            load_gguf(path)
        except HostError as e:
            refusals.append(str(e))
    assert len(refusals) > 20
    assert not any("\n" in message for message in refusals)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04 not a model at all, but long enough to be read")
    with pytest.raises(HostError, match="not a GGUF file"):
        load_gguf(path)
    with pytest.raises(HostError, match="cannot be read"):
        load_gguf(tmp_path / "absent.gguf")


def test_load_takes_the_path_of_a_file(good):
    assert hosts.load(str(good), dtype="bfloat16").identity["dtype"] == "bfloat16"
