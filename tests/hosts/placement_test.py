"""A host on a mesh: the same activations, a part of the weights on each device, and nothing but sums between them."""

import re

import jax
import numpy as np
import pytest

from jaxsae import hosts
from jaxsae.hosts.placement import cut, device_bytes, placements
from jaxsae.parallel import make_mesh, sharding
from jaxsae.testing.meshes import device_mesh
from jaxsae.testing.tiny_host import tiny_host

LAST = "blocks.1.hook_resid_post"
POINTS = ("attn.hook_z", "ln2.hook_normalized", "hook_mlp_out", "hook_resid_post")
SITES = tuple(f"blocks.2.{point}" for point in POINTS)
TOKENS = np.random.default_rng(0).integers(0, 264, (4, 16)).astype(np.int32)
#: Everything divides by 4; the KV heads do not; neither do the heads; nor the vocabulary.
EVEN = {"d_model": 64, "n_heads": 8, "n_kv_heads": 4, "d_head": 8, "d_mlp": 192, "vocab_size": 264}
UNEVEN = {
    "few KV heads": {"n_kv_heads": 2},
    "heads": {"n_heads": 6, "n_kv_heads": 2},
    "vocabulary": {"vocab_size": 265},
}


def runner(host, logits=False):
    return jax.jit(lambda params, tokens: host.model.run(params, tokens, taps=SITES, logits=logits))


def on_mesh(host, shape):
    mesh = device_mesh(shape)
    return hosts.place(host, mesh), jax.device_put(TOKENS, sharding(mesh, "BT"))


def close(a, b):
    """Within float32's rounding of sums of a few hundred terms."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-5), a, b)


@pytest.mark.parametrize(
    ("shape", "changes"),
    [((2, 4), {}), ((1, 8), {}), *(((2, 4), changes) for changes in UNEVEN.values())],
    ids=["2x4", "1x8", *UNEVEN],
)
def test_activations_and_logits_are_those_of_one_device(shape, changes):
    host = tiny_host(**{**EVEN, "tied": bool(changes), "attention_bias": "QKVO", **changes})
    spread, tokens = on_mesh(host, shape)
    close(runner(host, logits=True)(spread.params, tokens), runner(host, logits=True)(host.params, TOKENS))


def test_a_token_outside_the_vocabulary_is_noticed_on_a_mesh_too():
    host, _ = on_mesh(tiny_host(**EVEN), (1, 4))
    x = jax.jit(host.model.embed)(host.params, np.full_like(TOKENS, 264))
    assert np.isnan(x).all()


def test_activations_in_bfloat16_are_as_near_to_float32_as_on_one_device():
    """The error of bfloat16, over 4,096 numbers, is about the same whether or not sums go over devices."""
    host = tiny_host(n_layers=2, dtype="bfloat16", **EVEN)
    spread, tokens = on_mesh(host, (2, 4))
    read = jax.jit(lambda params, tokens: host.model.run(params, tokens, taps=[LAST], logits=False).taps[LAST])
    x = read(jax.tree.map(lambda w: w.astype("float32"), host.params), TOKENS)
    alone, cut_up = read(host.params, TOKENS), read(spread.params, tokens)
    assert cut_up.dtype == alone.dtype == jax.numpy.bfloat16
    error, error_cut_up = (np.linalg.norm(np.asarray(y, np.float32) - np.asarray(x)) for y in (alone, cut_up))
    assert 0 < error_cut_up < 1.5 * error


@pytest.mark.parametrize("devices", [2, 4])
def test_each_device_holds_its_share_of_the_weights(devices):
    host = tiny_host(**EVEN)
    spread, _ = on_mesh(host, (1, devices))
    held = [0] * devices
    for leaf in jax.tree.leaves(spread.params):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(host.params))
    assert held == [device_bytes(host.model, devices, 4)] * devices
    assert total / devices < held[0] < total / devices * 1.03  # gains are whole on each


def test_a_block_needs_two_sums_and_nothing_else_travels():
    """One for the embedding, and two in the body of each stretch of blocks (here blocks 0 and 1, and block 2)."""
    host, tokens = on_mesh(tiny_host(**EVEN), (2, 4))
    text = runner(host).lower(host.params, tokens).compile().as_text()
    found = re.findall(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text)
    assert found == ["all-reduce"] * 5


@pytest.mark.parametrize("variant", [{}, {"tied": False}, {"attention_bias": "QKV"}])
def test_every_leaf_names_all_its_axes(variant):
    model = tiny_host(**EVEN, **variant).model
    sizes = {"L": 3, "D": 64, "H": 64, "G": 32, "M": 192, "V": 264}
    assert jax.tree.map(lambda letters: tuple(map(sizes.get, letters)), model.axes()) == model.shapes()


def test_what_does_not_divide_is_whole_on_each_device():
    model = tiny_host(**{**EVEN, **UNEVEN["few KV heads"]}).model
    assert cut(model, 4) == {"H": True, "G": False, "M": True, "V": True}
    where = placements(model, make_mesh(1, 4, jax.devices()[:4]))["blocks"]
    assert where["W_K"].is_fully_replicated
    assert where["W_Q"].spec[2] == where["W_O"].spec[1] == "latent"


def test_a_host_that_is_on_the_mesh_is_not_moved():
    spread, _ = on_mesh(tiny_host(**EVEN), (2, 4))
    again = hosts.place(spread, device_mesh((2, 4)))
    before, after = (
        [[s.data.unsafe_buffer_pointer() for s in leaf.addressable_shards] for leaf in jax.tree.leaves(h.params)]
        for h in (spread, again)
    )
    assert before == after
