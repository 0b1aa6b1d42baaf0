"""Ops on a mesh against the same ops on one device: values, ties, gradients, and what travels."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import kernels, parallel
from jaxsae.errors import ConfigError
from jaxsae.kernels._dispatch import compiling_for
from jaxsae.kernels.sharded import sums

B, D, S, K, AUX = 16, 12, 2048, 4, 8
MESHES = [(8, 1), (1, 8), (2, 4)]


def mesh(data, latent):
    return parallel.make_mesh(data, latent, jax.devices()[: data * latent])


def inputs(ties: bool, dead: float = 0.3):
    k = jax.random.split(jax.random.key(0), 6)
    x, W, b, b_pre = (jax.random.normal(k[i], s) for i, s in enumerate([(B, D), (D, S), (S,), (D,)]))
    if ties:
        x, W, b, b_pre = (jnp.round(a) for a in (x, W, b, b_pre))
    return x, W, b, b_pre, jax.random.bernoulli(k[4], dead, (S,)), jax.random.normal(k[5], (S, D)) / D


def encode_and_decode(x, W, b, b_pre, dead, W_dec, signed=False):
    """A loss over both lists, the lists, and every gradient."""

    def f(x, W, b, b_pre, W_dec):
        lists = kernels.encode_topk(x, W, b, b_pre, 0.5 + 1.5 * jnp.arange(S) / S, dead, K, AUX, signed)
        y = kernels.sparse_decode(lists[0], lists[1], W_dec)
        z = kernels.sparse_decode(lists[2], lists[3], W_dec, live=jnp.any(dead))
        return jnp.mean((x - y) ** 2) + jnp.mean((1.0 - z) ** 2), lists

    return jax.value_and_grad(f, argnums=(0, 1, 2, 3, 4), has_aux=True)(x, W, b, b_pre, W_dec)


def check(found, expected):
    (loss, lists), grads = found
    (loss_1, lists_1), grads_1 = expected
    np.testing.assert_array_equal(lists[1], lists_1[1])  # indices
    np.testing.assert_array_equal(lists[3], lists_1[3])
    for a, e in zip(jax.tree.leaves((loss, lists, grads)), jax.tree.leaves((loss_1, lists_1, grads_1)), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * float(jnp.abs(e).max()) + 1e-9)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", MESHES)
def test_lists_and_gradients_equal_one_device(shape, ties):
    args = inputs(ties)
    expected = jax.jit(encode_and_decode)(*args)
    with parallel.use(mesh(*shape)):
        check(jax.jit(encode_and_decode)(*args), expected)


def test_nothing_dead_and_everything_dead():
    for dead in (0.0, 1.0):
        args = inputs(False, dead)
        expected = jax.jit(encode_and_decode)(*args)
        with parallel.use(mesh(1, 8)):
            found = jax.jit(encode_and_decode)(*args)
        if dead:
            check(found, expected)
        else:
            assert not np.any(found[0][1][2])
            np.testing.assert_allclose(found[1][1], expected[1][1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_pairs_in_chunks_of_any_size_give_the_dense_sums(chunk):
    rng = np.random.default_rng(0)
    size, first = 600, 1200
    values = jnp.asarray(rng.standard_normal((B, K)), jnp.float32).at[3].set(0.0)
    index = jnp.asarray(rng.integers(1150, 1300, (B, K)), jnp.int32).at[:, 1].set(1250)
    rows, W = rng.standard_normal((B, D)).astype(np.float32), rng.standard_normal((size, D)).astype(np.float32)
    own = sums.Owned(values, index, first, size, shards=8, chunk=chunk)
    assert own.paired
    dense = np.zeros((B, 4 * size), np.float64)
    np.add.at(dense, (np.arange(B)[:, None], np.asarray(index)), values)
    dense = dense[:, first : first + size]
    np.testing.assert_allclose(jax.jit(own.decode)(W), dense @ W, rtol=1e-5, atol=1e-5)
    total, count = jax.jit(own.outer_sum)(rows)
    np.testing.assert_allclose(total, dense.T @ rows, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(count, dense.sum(0), rtol=1e-5, atol=1e-5)
    mine = (np.asarray(index) >= first) & (np.asarray(index) < first + size)
    dots = np.einsum("be,bke->bk", rows, W[np.where(mine, np.asarray(index) - first, 0)]) * mine
    np.testing.assert_allclose(jax.jit(own.dots)(rows, W), dots, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", MESHES)
def test_entries_read_and_added_where_they_lie(shape):
    rng = np.random.default_rng(0)
    index = jnp.asarray(rng.integers(0, S, (B, K)), jnp.int32)
    v, a, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in [(S,), (B, S), (B, K)])

    def f(v, a, w):
        read, picked, added = kernels.take(v, index), kernels.pick(a, index), kernels.add_at(w, index, S)
        return jnp.sum(read * w) + jnp.sum(picked**2) + jnp.sum(added**2 * v), (read, picked, added)

    expected = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(v, a, w)
    with parallel.use(mesh(*shape)):
        found = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(v, a, w)
    for u, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(u, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", MESHES)
def test_topk_of_sharded_latents_breaks_ties_by_index(shape):
    x = jnp.asarray(np.round(np.random.default_rng(0).standard_normal((B, S)) * 2), jnp.float32)
    order = np.argsort(-np.asarray(x), axis=1, kind="stable")[:, :7]
    with parallel.use(mesh(*shape)):
        values, index = jax.jit(kernels.topk, static_argnums=1)(x, 7)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(values, np.take_along_axis(np.asarray(x), order, 1))


def test_only_candidates_travel():
    """No collective of the compiled step is as large as the pre-activations of one device."""
    m = mesh(1, 8)
    args = inputs(False)
    places = ("BD", "DS", "S", "D", "S", "SE")
    placed = [jax.device_put(a, parallel.sharding(m, s)) for a, s in zip(args, places, strict=True)]
    with parallel.use(m):
        text = jax.jit(encode_and_decode).lower(*placed).compile().as_text()
    moved = re.findall(
        r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)\(", text
    )
    assert moved
    most = max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in moved)
    assert most <= B * max(D, AUX * 8), moved
    assert most < B * S / 8


def decode_named(name):
    return kernels.sparse_decode(jnp.ones((B, K)), jnp.zeros((B, K), jnp.int32), jnp.ones((S, D)), implementation=name)


def residual_named(name):
    args = jnp.ones((B, K)), jnp.zeros((B, K), jnp.int32), jnp.ones((S, D)), jnp.ones((B, D))
    return kernels.decode_residual_sddmm(*args, implementation=name)


CALLS = {"sparse_decode": decode_named, "decode_residual_sddmm": residual_named}


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize(
    ("name", "platform", "message"),
    [
        ("nonsense", "cpu", "no implementation 'nonsense' here"),
        ("pallas_tpu", "cpu", "'pallas_tpu' runs on tpu, this is cpu; possible: xla$"),
        ("pallas_tpu", "tpu", "'pallas_tpu' works on one device, this is a mesh; possible: xla$"),
        ("reference", "cpu", "'reference' works on one device, this is a mesh; possible: xla$"),
    ],
)
def test_a_name_that_does_not_run_on_a_mesh_is_refused(op, around, name, platform, message):
    names = {op: name} if around else {}
    with (
        parallel.use(mesh(2, 4)),
        compiling_for(platform, platform),
        kernels.using(**names),
        pytest.raises(ConfigError, match=f"{op}: {message}"),
    ):
        CALLS[op](None if around else name)


@pytest.mark.parametrize("op", CALLS)
def test_what_runs_on_a_mesh_may_be_named(op):
    with parallel.use(mesh(2, 4)):
        named, unnamed = (jax.jit(CALLS[op], static_argnums=0)(name) for name in ("xla", None))
    for a, b in zip(jax.tree.leaves(named), jax.tree.leaves(unnamed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_lists_of_nothing_decode_to_nothing():
    with parallel.use(mesh(2, 4)):
        y = jax.jit(kernels.sparse_decode)(jnp.ones((B, 0)), jnp.ones((B, 0), jnp.int32), jnp.ones((S, D)))
    np.testing.assert_array_equal(y, np.zeros((B, D)))


def test_a_name_for_the_decoder_does_not_reach_into_the_residual():
    """On a mesh both are the same sum, and each answers to its own name."""
    with parallel.use(mesh(2, 4)), kernels.using(sparse_decode="reference"):
        jax.jit(residual_named, static_argnums=0)(None)


def test_outside_of_jit_an_op_on_a_mesh_is_one_program(caplog):
    """Operation by operation, each compiled for all devices, an eager gradient takes so long that it seems to hang."""
    x, W, b, b_pre, dead, _ = inputs(ties=False)
    with parallel.use(mesh(2, 4)), jax.log_compiles():
        found = kernels.encode_topk(x, W, b, b_pre, None, dead, K, AUX)
    compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
    assert sum("local" in message for message in compiled) == 1
    assert len(compiled) < 10
    for a, e in zip(found, kernels.encode_topk(x, W, b, b_pre, None, dead, K, AUX), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5)
