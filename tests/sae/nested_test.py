"""Nested levels against reconstructions built one by one in float64, on every path the code may take."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.sae import ByPrefix, ByRank, Ctx, DenseCodes, Free, Out, RandomPrefixes, Rows, Selection, SparseCodes
from jaxsae.sae.levels import average
from jaxsae.testing.conformance import batches

B, E, S = 6, 5, 48


def codes(kind, k=5, size=S, seed=0):
    """Dense relu codes, or sparse ones with distinct indices, sorted by value as a rank selector gives them."""
    rng = np.random.default_rng(seed)
    values = np.maximum(rng.standard_normal((B, size)), 0)
    if kind == "dense":
        return DenseCodes(jnp.asarray(values, jnp.float32))
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    picked = jnp.asarray(np.take_along_axis(values, order, 1), jnp.float32)
    return SparseCodes(picked, jnp.asarray(order, jnp.int32), size)


def setting(c, ranked=None, seed=1, **hyper):
    rng = np.random.default_rng(seed)
    W, e0 = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((c.d_sae, E), (B, E)))
    rows = Rows(e0, e0, jnp.ones(B))
    nothing = None
    sel = Selection(c, ranked=ranked)
    out = Out(rows, {"W_dec": W}, sel, nothing, nothing, nothing, Free(c.d_sae, E))
    return out, e0, Ctx(jnp.int32(3), jax.random.key(2), hyper, {}, rows=rows)


def sse_of(e0, z, W):
    return (np.asarray(e0, np.float64) - np.asarray(z, np.float64) @ np.asarray(W, np.float64)) ** 2


CODES = {
    "walk": lambda: codes("sparse", 2, size=256),  # a short list
    "blocks": lambda: codes("sparse", 20),  # a long list
    "dense": lambda: codes("dense"),
}


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("bias_level", [False, True])
def test_prefix_levels_are_reconstructions_from_the_first_latents(kind, bias_level):
    c = CODES[kind]()
    lengths = (c.d_sae // 16, c.d_sae // 3, c.d_sae)
    out, e0, ctx = setting(c)
    sse, err = ByPrefix(lengths, bias_level).read(out, e0, ctx)
    z, W = np.asarray(c.dense()), out.p["W_dec"]
    expected = [sse_of(e0, z * (np.arange(c.d_sae) < n), W).sum(1) for n in ((0,) if bias_level else ()) + lengths]
    np.testing.assert_allclose(sse, np.stack(expected, 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(err) ** 2, sse_of(e0, z, W), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("train", [True, False])
def test_random_prefixes_read_the_lengths_they_drew(kind, train):
    c = CODES[kind]()
    out, e0, ctx = setting(c)
    ctx = dataclasses.replace(ctx, train=train)
    levels = RandomPrefixes(c.d_sae, 5)
    sse, err = jax.jit(lambda out, e0: levels.read(out._replace(D=Free(c.d_sae, E)), e0, ctx))(out._replace(D=None), e0)
    z, W = np.asarray(c.dense()), out.p["W_dec"]
    expected = [sse_of(e0, z * (np.arange(c.d_sae) < n), W).sum(1) for n in np.asarray(levels.lengths(ctx))]
    np.testing.assert_allclose(sse, np.stack(expected, 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(err) ** 2, sse_of(e0, z, W), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "k", "ranks"), [(1024, 3, 6), (48, 3, 24)])  # walk; blocks
@pytest.mark.parametrize("of_k", [False, True])
def test_rank_levels_are_reconstructions_from_the_best_entries(size, k, ranks, of_k):
    ranked = codes("sparse", ranks, size)
    kept = SparseCodes(ranked.values[:, :k], ranked.indices[:, :k], size)
    out, e0, ctx = setting(kept, ranked, k=jnp.int32(k))
    levels = ByRank((1, 2), of_k=True, longest=ranks) if of_k else ByRank((1, 2, ranks))
    sse, err = levels.read(out, e0, ctx)
    W, counts = out.p["W_dec"], (k, 2 * k) if of_k else (1, 2, ranks)
    prefix = lambda n: SparseCodes(ranked.values[:, :n], ranked.indices[:, :n], size).dense()  # noqa: E731
    np.testing.assert_allclose(
        sse, np.stack([sse_of(e0, prefix(n), W).sum(1) for n in counts], 1), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(np.asarray(err) ** 2, sse_of(e0, kept.dense(), W), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "counts"), [(1024, (1, 4)), (48, (2, 8, 48))])  # walk; masked products
def test_rank_levels_of_codes_that_no_rank_selector_made(size, counts):
    c = codes("dense", size=size)
    out, e0, ctx = setting(c)
    sse, err = ByRank(counts).read(out, e0, ctx)
    z, W = np.asarray(c.values), out.p["W_dec"]
    place = np.argsort(np.argsort(-z, axis=1, kind="stable"), axis=1)
    np.testing.assert_allclose(
        sse, np.stack([sse_of(e0, z * (place < n), W).sum(1) for n in counts], 1), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(np.asarray(err) ** 2, sse_of(e0, z, W), rtol=1e-4, atol=1e-4)


def test_gradients_of_random_prefixes_equal_masked_decodes():
    c = codes("dense")
    out, e0, ctx = setting(c)
    levels = RandomPrefixes(S, 4)
    lengths, weights = levels.lengths(ctx), jnp.arange(1.0, 5.0)[None]

    def ours(z, W):
        sse, err = levels.read(out._replace(sel=Selection(DenseCodes(z)), p={"W_dec": W}), e0, ctx)
        return jnp.sum(sse * weights) + jnp.sum(jnp.sin(err))

    def plain(z, W):
        z_r = jnp.where(jnp.arange(S)[None, None] < lengths[:, None, None], z[None], 0.0)
        e = e0[None] - z_r @ W
        return jnp.sum(jnp.sum(e**2, -1).T * weights) + jnp.sum(jnp.sin(e[-1]))

    for a, b in zip(*(jax.grad(f, (0, 1))(c.values, out.p["W_dec"]) for f in (ours, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


def test_random_lengths_follow_their_distribution():
    """One draw of two levels: P(n <= d u) = u^power; many levels: distinct, ascending, the last is d_sae."""
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = lambda levels: jax.vmap(lambda k: levels.lengths(Ctx(0, k, {}, {})))(keys)  # noqa: E731
    first = np.asarray(draw(RandomPrefixes(100, 2)))[:, 0]
    for u in (0.04, 0.25, 0.64):
        assert abs(np.mean(first <= 100 * u) - u**0.5) < 0.04
    many = np.asarray(draw(RandomPrefixes(40, 8, shortest=3)))
    assert np.all(np.diff(many, axis=1) > 0)
    assert np.all(many[:, -1] == 40)
    assert many.min() == 3


def test_share_counts_the_levels_that_use_a_latent():
    _, _, ctx = setting(codes("dense"))
    np.testing.assert_allclose(ByPrefix((1, 3, 4), bias_level=True).share(ctx), [0.75, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("summed", [False, True])
def test_weights_of_levels(summed):
    sse = jnp.array([[8.0, 4.0]])
    levels = ByRank((1, 4), weights=(1.0, 1 / 8), summed=summed)
    np.testing.assert_allclose(average(levels, sse), [8.5 if summed else 8.5 / 1.125], rtol=1e-6)
    np.testing.assert_allclose(average(ByRank((1, 4)), sse), [6.0])


def test_new_lengths_need_no_new_program():
    recipe = dataclasses.replace(recipes.topk(12, 32, 4), levels=RandomPrefixes(32, 4))
    traces = []

    def step(state, batch):
        traces.append(1)
        return recipe.step(state, batch)

    data = batches(4)
    state, jitted = recipes.init(recipe, jax.random.key(0), data[0]), jax.jit(step)
    drawn = set()
    for batch in data:
        drawn.add(tuple(np.asarray(recipe.levels.lengths(recipe.ctx(state)))))
        state, _ = jitted(state, batch)
    assert len(traces) == 1
    assert len(drawn) == 4


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (ByPrefix((4, 16)), "last prefix must be d_sae = 32, found 16"),
        (ByPrefix((4, 4, 32)), "prefix lengths must increase"),
        (ByPrefix((0, 32)), "must increase from at least 1"),
        (ByPrefix((4, 64)), "must not exceed 32, found 64"),
        (ByPrefix((4, 32), weights=(1.0,)), "2 levels need as many weights"),
        (ByRank((4, 33)), "must not exceed 32"),
        (ByRank((1, 2), of_k=True), "need `longest`"),
        (ByRank((1, 2), of_k=True, longest=40), "there are 32 candidates, found a ranked list of 40"),
        (RandomPrefixes(16, 4), "made for d_sae = 16"),
        (RandomPrefixes(32, 33), "do not have 33 different prefixes"),
        (RandomPrefixes(32, 4, weights=(1.0,) * 4), "need 4 declared lengths"),
    ],
)
def test_impossible_levels_are_refused_when_the_recipe_is_built(levels, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(recipes.topk(12, 32, 4), levels=levels)


def test_a_scalar_may_be_annealed_in_one_program():
    """k from 8 to 4 over 4 steps; inference uses 4 from the start."""
    from jaxsae.objective import Anneal
    from jaxsae.sae import Affine, PreSelect, Rank

    recipe = recipes.topk(12, 32, 4)
    encoder = PreSelect(Affine(12, 32), Rank(8))
    recipe = dataclasses.replace(recipe, encoder=encoder, annealed=(("k", Anneal(2.0, steps=4)),))
    data, l0 = batches(6), []
    state = recipes.init(recipe, jax.random.key(0), data[0])
    for batch in data:
        assert float(recipes.evaluate(recipe, state, batch)["l0"]) == 4
        state, metrics = recipes.step(recipe, state, batch)
        l0.append(float(metrics["l0"]))
    assert l0 == [8, 7, 6, 5, 4, 4]
    with pytest.raises(ConfigError, match="cannot anneal 'kk'"):
        dataclasses.replace(recipe, annealed=(("kk", Anneal()),))
    with pytest.raises(ConfigError, match="annealed k starts at 12, which does not fit the 8 candidates"):
        dataclasses.replace(recipe, annealed=(("k", Anneal(3.0, steps=4)),))
