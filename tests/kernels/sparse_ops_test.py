"""Fused encode and sparse decode against the plain reference: values, indices and every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsae import kernels
from jaxsae.errors import ConfigError
from jaxsae.kernels.encode_topk import xla as encode_xla
from jaxsae.kernels.sparse_decode import xla

B, D, S = 16, 12, 640


def inputs(seed=0, dtype=jnp.float32, ties=False):
    k = jax.random.split(jax.random.key(seed), 6)
    make = lambda key, shape: jax.random.normal(key, shape)  # noqa: E731
    x, W, b, b_pre = make(k[0], (B, D)), make(k[1], (D, S)), make(k[2], (S,)), make(k[3], (D,))
    if ties:
        x, W, b, b_pre = (jnp.round(a) for a in (x, W, b, b_pre))
    return x.astype(dtype), W.astype(dtype), b, b_pre, jax.random.bernoulli(k[4], 0.3, (S,)), make(k[5], (S, D)) / D


def objective(implementation, k, k_aux, signed, scale, dead):
    """A loss that reads both lists through a decode, so that every gradient is exercised."""

    def f(x, W, b, b_pre, W_dec):
        encoded = kernels.encode_topk(x, W, b, b_pre, scale, dead, k, k_aux, signed, implementation=implementation)
        values, index, aux_values, aux = encoded
        y = kernels.sparse_decode(values, index, W_dec, implementation=implementation)
        z = kernels.sparse_decode(aux_values, aux, W_dec, live=jnp.any(dead), implementation=implementation)
        return jnp.mean((x.astype(jnp.float32) - y) ** 2) + jnp.mean((1.0 - z) ** 2)

    return f


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("k", "k_aux"), [(4, 0), (4, 3), (4, 40), (40, 3)])
def test_gradients_equal_autodiff_of_the_reference(k, k_aux, signed):
    x, W, b, b_pre, dead, W_dec = inputs()
    scale = jnp.linspace(0.5, 2.0, S)
    ours, plain = (
        jax.jit(jax.value_and_grad(objective(i, k, k_aux, signed, scale, dead), argnums=(0, 1, 2, 3, 4)))(
            x, W, b, b_pre, W_dec
        )
        for i in ("xla", "reference")
    )
    for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * float(jnp.abs(e).max()))


def test_selection_equals_the_reference_on_ties():
    x, W, b, b_pre, dead, _ = inputs(ties=True)
    ours, plain = (
        kernels.encode_topk(x, W, b, b_pre, jnp.ones(S), dead, 4, 3, implementation=i) for i in ("xla", "reference")
    )
    for a, e in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(a, e)


def test_bf16_products_are_summed_in_f32():
    x, W, b, b_pre, dead, _ = inputs(dtype=jnp.bfloat16)
    values, index, *_ = kernels.encode_topk(x, W, b, b_pre, jnp.ones(S), dead, 4)
    centred = np.asarray(x - b_pre.astype(jnp.bfloat16)[None], np.float64)
    pre = centred @ np.asarray(W, np.float64) + np.asarray(b, np.float64)[None]
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, np.take_along_axis(pre, np.asarray(index), 1), rtol=1e-5, atol=1e-4)


def test_with_nothing_dead_the_second_list_is_absent_and_costs_no_gradient():
    x, W, b, b_pre, _, W_dec = inputs()
    dead = jnp.zeros(S, bool)
    aux_values = kernels.encode_topk(x, W, b, b_pre, jnp.ones(S), dead, 4, 8)[2]
    assert not np.any(aux_values)
    with_aux = jax.grad(objective("xla", 4, 8, False, jnp.ones(S), dead), argnums=(1, 4))(x, W, b, b_pre, W_dec)
    without = jax.grad(objective("xla", 4, 0, False, jnp.ones(S), dead), argnums=(1, 4))(x, W, b, b_pre, W_dec)
    for a, e in zip(with_aux, without, strict=True):
        np.testing.assert_array_equal(a, e)


def test_a_sweep_keeps_the_branch():
    """Under vmap the dead-latent pass stays one conditional in the compiled program."""
    x, W, b, b_pre, dead, _ = inputs()
    f = jax.vmap(lambda d: kernels.encode_topk(x, W, b, b_pre, jnp.ones(S), d, 4, 8))
    text = jax.jit(f).lower(jnp.stack([dead, dead])).compile().as_text()
    assert "conditional" in text


@pytest.mark.parametrize("width", [3, 200])  # below and above the switch to a dense product
def test_decode_equals_dense_codes_with_repeated_indices(width):
    rng = np.random.default_rng(0)
    values, index = rng.standard_normal((B, width)), rng.integers(0, S, (B, width))
    index[:, 1] = index[:, 0]
    W = rng.standard_normal((S, D))
    dense = np.zeros((B, S))
    np.add.at(dense, (np.arange(B)[:, None], index), values)
    y = kernels.sparse_decode(jnp.asarray(values, jnp.float32), jnp.asarray(index), jnp.asarray(W, jnp.float32))
    np.testing.assert_allclose(y, dense @ W, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("k", "rounded"), [(7, False), (64, True)])
def test_a_bf16_dictionary_rounds_codes_and_gradients_of_long_lists_once(k, rounded):
    rng = np.random.default_rng(0)
    values, g = rng.standard_normal((32, k)).astype(np.float32), rng.standard_normal((32, 40)).astype(np.float32)
    index, W = rng.permuted(np.tile(np.arange(512), (32, 1)), axis=1)[:, :k], rng.standard_normal((512, 40))
    W = W.astype(jnp.bfloat16)
    once = lambda a: a.astype(jnp.bfloat16).astype(np.float64) if rounded else a.astype(np.float64)  # noqa: E731
    atoms = W.astype(np.float64)[index]
    run = lambda v: kernels.sparse_decode(v, jnp.asarray(index), jnp.asarray(W), implementation="xla")  # noqa: E731
    y, back = jax.vjp(run, jnp.asarray(values))
    np.testing.assert_allclose(y, np.einsum("bk,bke->be", once(values), atoms), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(back(jnp.asarray(g))[0], np.einsum("be,bke->bk", once(g), atoms), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("values", "indices", "W", "found"),
    [
        ((4, 3), (4, 2), (9, 5), r"found \[4, 3\], \[4, 2\] and \[9, 5\]"),
        ((4, 3), (5, 3), (9, 5), r"found \[4, 3\], \[5, 3\] and \[9, 5\]"),
        ((4,), (4,), (9, 5), r"found \[4\], \[4\] and \[9, 5\]"),
        ((4, 3), (4, 3), (9,), r"found \[4, 3\], \[4, 3\] and \[9\]"),
    ],
)
def test_refuses_codes_that_do_not_belong_together(values, indices, W, found):
    expected = r"sparse_decode: expected values \[B, K\], indices \[B, K\] and W \[S, E\], "
    with pytest.raises(ConfigError, match=expected + found):
        kernels.sparse_decode(jnp.ones(values), jnp.ones(indices, jnp.int32), jnp.ones(W))


def test_refuses_more_dead_candidates_than_latents():
    x, W, b, b_pre, dead, _ = inputs()
    with pytest.raises(ConfigError, match="dead latents"):
        kernels.encode_topk(x, W, b, b_pre, jnp.ones(S), dead, 4, S + 1)


def test_long_lists_in_parts_of_the_rows(monkeypatch):
    """The dense form of a long list is never larger than allowed, and the parts add up to the same."""
    rng = np.random.default_rng(0)
    values, index = jnp.asarray(rng.standard_normal((B, 200)), jnp.float32), jnp.asarray(rng.integers(0, S, (B, 200)))
    W, rows = (
        jnp.asarray(rng.standard_normal((S, D)), jnp.float32),
        jnp.asarray(rng.standard_normal((B, D)), jnp.float32),
    )
    start = jnp.ones((S, D), jnp.bfloat16), jnp.ones(S)

    def results():
        sums, counts = xla.outer_sum(values, index, rows, S, start)
        assert (sums.dtype, counts.dtype) == (jnp.bfloat16, jnp.float32)
        return xla.forward(values, index, W), xla.dots(rows, index, W), xla.outer_sum(values, index, rows, S)[0], counts

    whole = results()
    monkeypatch.setattr(xla, "DENSE_BYTES", 4 * S * 5)
    assert xla.parts_of(B, S) == 4
    for found, expected in zip(results(), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("n_dead", [1, 3, 30, 80, 81, 300, S])
def test_the_dead_are_ranked_alike_whether_few_or_many(n_dead):
    """Among their own columns up to 80 of 640 latents, among all above; fewer dead than asked for count as absent."""
    k = jax.random.split(jax.random.key(9), 3)
    pre = jnp.round(jax.random.normal(k[0], (B, S)) * 3) + 0.5  # with ties, and no zero of either sign
    score = pre * jnp.linspace(0.5, 2.0, S)[None]
    dead = jnp.zeros(S, bool).at[jax.random.permutation(k[1], S)[:n_dead]].set(True)
    values, index, found = jax.jit(encode_xla.best_dead, static_argnums=3)(pre, score, dead, 20)
    order = np.argsort(np.where(np.asarray(dead)[None], -np.asarray(score), np.inf), axis=1, kind="stable")[:, :20]
    there = np.asarray(dead)[order]
    np.testing.assert_array_equal(found, there)
    np.testing.assert_array_equal(index, np.where(there, order, 0))
    np.testing.assert_array_equal(values, np.where(there, np.take_along_axis(np.asarray(pre), order, 1), 0.0))


@pytest.mark.parametrize(("rows", "k"), [(0, 1), (0, 32), (B, 0)], ids=["no rows, short", "no rows, long", "no lists"])
def test_without_entries_there_is_no_gradient(rows, k):
    """Of a batch without rows, or of lists without entries; long lists go through dense products, short ones do not."""
    values, indices, W = jnp.zeros((rows, k)), jnp.zeros((rows, k), jnp.int32), jnp.ones((S, D))

    def loss(values, W):
        second = values, indices, jnp.array(True)
        sse, _, dead = kernels.decode_residual_sddmm(values, indices, W, jnp.ones((rows, D)), second)
        return kernels.sparse_decode(values, indices, W).sum() + sse.sum() + dead.sum()

    d_values, dW = jax.jit(jax.grad(loss, argnums=(0, 1)))(values, W)
    assert d_values.shape == (rows, k)
    assert not np.any(dW)


@pytest.mark.parametrize("op", ["sparse_decode", "path"])
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_the_gradient_of_a_bf16_dictionary_is_summed_in_f32(implementation, op):
    """A thousand equal terms for one atom: a bf16 sum of them stops growing at 256 of its terms."""
    values, index, W = jnp.full((1024, 1), 1.0), jnp.zeros((1024, 1), jnp.int32), jnp.zeros((200, 3), jnp.bfloat16)

    def loss(W):
        if op == "sparse_decode":
            return kernels.sparse_decode(values, index, W, implementation=implementation).sum()
        last = jnp.ones(1024, jnp.int32)
        return -kernels.path(values, index, W, jnp.zeros((1024, 3)), last, implementation=implementation)[1].sum()

    np.testing.assert_array_equal(jax.grad(loss)(W)[0].astype(jnp.float32), np.full(3, 1024.0))


@pytest.mark.parametrize(("rows", "k"), [(4, 2), (4, 32), (1024, 2)], ids=["short", "long", "sorted by latent"])
def test_numpy_arrays_are_taken_as_they_are(rows, k):
    """Codes that were read from a file, say: each way to sum them looks rows up by what is traced."""
    rng = np.random.default_rng(0)
    values, index = rng.standard_normal((rows, k), np.float32), rng.integers(0, S, (rows, k), np.int32)
    W, e0 = rng.standard_normal((S, D), np.float32), rng.standard_normal((rows, D), np.float32)

    def loss(values, index, W, e0):
        sse = kernels.decode_residual_sddmm(values, index, W, e0)[0].sum()
        points, _ = kernels.path(values, index, W, e0, np.full(rows, k, np.int32))
        total, _ = kernels.sparse_grad(values, index, e0, S)
        return sse + kernels.sparse_decode(values, index, W).sum() + points.sum(), total

    args = values, index, W, e0
    with_grad = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
    found, expected = with_grad(*args), with_grad(*map(jnp.asarray, args))
    assert all(np.array_equal(a, e) for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    np.testing.assert_array_equal(loss(*args)[0], expected[0][0])


@settings(max_examples=25, deadline=None)
@given(
    units=st.integers(1, 12),
    whole=st.integers(1, 5),
    size=st.sampled_from([1, 7, 2**20, 2**27, 2**29, 2**31 - 2]),
    seed=st.integers(0, 10**6),
)
def test_entries_by_latent_in_as_few_groups_as_an_int32_can_tell(units, whole, size, seed):
    """Each group is sorted and keeps the order of equal latents, and so does the order as a whole."""
    entries = units * whole
    indices = np.random.default_rng(seed).integers(0, min(size, 9) + 1, entries).astype(np.int32)
    order = np.asarray(xla.by_latent(jnp.asarray(indices), size, whole))
    np.testing.assert_array_equal(np.sort(order), np.arange(entries))
    for latent in np.unique(indices):
        assert np.all(np.diff(order[indices[order] == latent]) > 0)
    groups = [n for n in range(1, units + 1) if units % n == 0 and (size + 1) * (entries // n) <= 2**31]
    for part in indices[order].reshape(groups[0] if groups else 1, -1):
        assert np.all(np.diff(part) >= 0)
