"""Rank-family recipes against literal transcriptions: plain jnp on dense arrays, plain autodiff, one gradient each.

Gradients are taken in the middle of a made-up run, where biases, atoms and dead latents are no longer special.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.objective import Mse, Orthogonality
from jaxsae.sae import Ctx, Free, Out
from jaxsae.testing.conformance import assert_close, batches

D, S, K, ROWS = 12, 32, 4, 48
DEAD = {"dead_after_tokens": 2 * ROWS, "lr": 1e-2}


def trained(recipe, steps=4):
    data = batches(steps + 1, d=D)
    state = recipes.init(recipe, jax.random.key(0), data[0])
    for batch in data[:-1]:
        state, _ = recipes.step(recipe, state, batch)
    return state, data[-1]


def seasoned(recipe, step=4):
    """A state in the middle of a run, without the run: every leaf moved off its start, half of the latents dead."""
    data = batches(2, d=D)
    state, rng = recipe.init(jax.random.key(0), data[0]), np.random.default_rng(1)
    shaken = {n: a if n in recipe.fixed else a + 0.3 * rng.standard_normal(a.shape) for n, a in state.params.items()}
    params = recipe.dictionary.project({n: jnp.asarray(a, jnp.float32) for n, a in shaken.items()})
    since = jnp.asarray(rng.random(S) < 0.5, jnp.int32) * 10 * DEAD["dead_after_tokens"]
    track = {**state.track, "fired": {"since": since}}
    if "l0_controller" in track:
        track["l0_controller"] = {"scale": jnp.float32(1.3)}
    return state.replace(params=params, track=track, step=jnp.int32(step)), data[1]


def both(recipe, loss, step=4):
    """(gradients of the recipe, gradients of the transcription, which latents are dead, what the step saw)."""
    state, batch = seasoned(recipe, step)
    train, fixed = recipe.split(state.params)
    dead = np.asarray(state.track["fired"]["since"]) >= int(state.hyper["dead_after_tokens"])
    ours, seen = jax.jit(recipe.grads)(state, batch)
    plain = jax.grad(lambda p: loss({**p, **fixed}, batch["x"], jnp.asarray(dead), recipe.ctx(state)))(train)
    return ours, plain, dead, seen


def standardised(x):
    return (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5)


def pre_of(p, x):
    return (x - p["b_dec"][None]) @ p["W_enc"] + p["b_enc"][None]


def best(a, k):
    """1 at the k largest entries of each row, ties to the lower index."""
    order = jnp.argsort(jnp.argsort(-jax.lax.stop_gradient(a), axis=1, stable=True), axis=1)
    return order < k


def variance(x):
    return jnp.sum((x - x.mean(0, keepdims=True)) ** 2)


def auxk(p, pre, e, dead, k_aux, signed=False):
    """Sum over rows and entries of (e - e_hat)^2, the residual detached, no bias."""
    e = jax.lax.stop_gradient(e)
    score = jnp.where(dead[None], jnp.abs(pre) if signed else pre, -jnp.inf)
    chosen = best(score, k_aux) & dead[None]
    z = jnp.where(chosen, pre if signed else jax.nn.relu(pre), 0.0)
    return jnp.sum((e - z @ p["W_dec"]) ** 2) * jnp.any(dead), e


def test_multi_topk_is_the_loss_at_k_plus_an_eighth_at_4k():
    def loss(p, x, dead, ctx):
        x = standardised(x)
        pre = pre_of(p, x)
        e = {n: x - jnp.where(best(pre, n), jax.nn.relu(pre), 0.0) @ p["W_dec"] - p["b_dec"][None] for n in (K, 4 * K)}
        aux, fixed = auxk(p, pre, e[K], dead, 6)
        main = (jnp.sum(e[K] ** 2) + jnp.sum(e[4 * K] ** 2) / 8) / variance(x)
        return main + aux / variance(fixed) / 32

    ours, plain, dead, _ = both(recipes.multi_topk(D, S, K, k_aux=6, **DEAD), loss)
    assert dead.any()
    assert_close(ours, plain, 2e-5)


@pytest.mark.parametrize("every", [1, 3])
def test_hierarchical_topk_averages_over_all_budgets(every):
    counts = list(range(8, 0, -every))

    def loss(p, x, dead, ctx):
        x = standardised(x)
        pre = pre_of(p, x)
        e = {n: x - jnp.where(best(pre, n), jax.nn.relu(pre), 0.0) @ p["W_dec"] - p["b_dec"][None] for n in counts}
        aux, fixed = auxk(p, pre, e[8], dead, 6)
        return sum(jnp.sum(e[n] ** 2) for n in counts) / len(counts) / variance(x) + aux / variance(fixed) / 32

    recipe = recipes.hierarchical_topk(D, S, 8, every=every, k_aux=6, **DEAD)
    ours, plain, _, seen = both(recipe, loss)
    assert float(seen[2]["l0"]) == 8
    assert_close(ours, plain, 2e-5)


def test_abs_topk_keeps_signs_and_ranks_dead_latents_by_magnitude():
    def loss(p, x, dead, ctx):
        x = standardised(x)
        pre = pre_of(p, x)
        e = x - jnp.where(best(jnp.abs(pre), K), pre, 0.0) @ p["W_dec"] - p["b_dec"][None]
        aux, fixed = auxk(p, pre, e, dead, 6, signed=True)
        return jnp.sum(e**2) / variance(x) + aux / variance(fixed) / 32

    recipe = recipes.abs_topk(D, S, K, k_aux=6, **DEAD)
    ours, plain, _, _ = both(recipe, loss)
    assert_close(ours, plain, 2e-5)
    state, batch = trained(recipe)
    codes = recipe.export(state).encode(batch["x"]).dense()
    assert np.any(np.asarray(codes) < 0)
    np.testing.assert_array_equal((np.asarray(codes) != 0).sum(1), K)


def batch_codes(pre, k):
    """The k B largest entries of the whole matrix, relu."""
    a = jax.nn.relu(pre)
    flat = jax.lax.stop_gradient(a).reshape(-1)
    keep = jnp.argsort(jnp.argsort(-flat, stable=True)) < int(k * len(pre))
    return jnp.where(keep.reshape(a.shape), a, 0.0)


@pytest.mark.parametrize("candidates", [None, 4, S])
def test_batch_topk_is_one_selection_whatever_the_capacity(candidates):
    """With 4 candidates most batches fail the certificate and are recomputed; the gradient is the same."""

    def loss(p, x, dead, ctx):
        x = standardised(x)
        pre = pre_of(p, x)
        e = x - batch_codes(pre, K) @ p["W_dec"] - p["b_dec"][None]
        aux, _ = auxk(p, pre, e, dead, 6)
        return (jnp.sum(e**2) + aux / 32) / len(x)

    recipe = recipes.batch_topk(D, S, K, k_aux=6, candidates=candidates, **DEAD)
    ours, plain, dead, seen = both(recipe, loss)
    assert dead.any()
    assert bool(seen[0]) == (candidates != 4)
    assert float(seen[2]["l0"]) == K
    assert_close(ours, plain, 2e-5)


def test_batch_topk_does_not_depend_on_the_layout_of_the_batch():
    """Rows in another order, and padded rows full of large values in between: the same rows get the same codes."""
    recipe = recipes.batch_topk(D, S, K, k_aux=6, **DEAD)
    state, batch = trained(recipe)
    x, order = np.asarray(batch["x"]), np.random.default_rng(0).permutation(ROWS)
    mixed = np.full((ROWS + 16, D), 1e3, np.float32) * np.random.default_rng(1).standard_normal((ROWS + 16, D))
    place = np.sort(np.random.default_rng(2).permutation(ROWS + 16)[:ROWS])
    mixed[place] = x[order]
    mask = np.zeros(ROWS + 16)
    mask[place] = 1

    def run(batch):
        ctx = recipe.ctx(state)
        return recipe.forward(state.params, batch, ctx).sel.codes.dense()

    np.testing.assert_allclose(
        np.asarray(run({"x": jnp.asarray(mixed), "mask": jnp.asarray(mask)}))[place], np.asarray(run(batch))[order],
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_threshold_average_does_not_start_from_zero():
    """After one batch the exported threshold is that batch's smallest kept value, not a hundredth of it."""
    recipe = recipes.batch_topk(D, S, K, k_aux=6, lr=0.0)
    state, _ = trained(recipe, steps=1)
    x = standardised(batches(2, d=D)[0]["x"])
    z = np.asarray(batch_codes(pre_of(state.params, x), K))
    np.testing.assert_allclose(recipe.export(state).params["threshold"], np.full(S, z[z > 0].min()), rtol=1e-5)


def test_threshold_form_of_batch_topk_keeps_the_mean_l0():
    recipe = recipes.batch_topk(D, S, K, k_aux=6, lr=0.0)
    data = batches(40, d=D)
    state = recipes.init(recipe, jax.random.key(0), data[0])
    for batch in data[:30]:
        state, _ = recipes.step(recipe, state, batch)
    l0 = np.mean([float(recipes.evaluate(recipe, state, batch)["l0"]) for batch in data[30:]])
    assert abs(l0 / K - 1) < 0.05


@pytest.mark.parametrize("bias_level", [True, False])
def test_matryoshka_selects_once_and_averages_over_prefixes(bias_level):
    def loss(p, x, dead, ctx):
        pre = pre_of(p, x)
        z = batch_codes(pre, K)
        lengths = ([0] if bias_level else []) + [2, 4, 8, 16, 32]
        errors = [x - z[:, :n] @ p["W_dec"][:n] - p["b_dec"][None] for n in lengths]
        aux, _ = auxk(p, pre, errors[-1], dead, 6)
        return (sum(jnp.sum(e**2) for e in errors) / len(errors) + aux / 32) / len(x)

    recipe = recipes.matryoshka(D, S, K, bias_level=bias_level, k_aux=6, **DEAD)
    ours, plain, _, seen = both(recipe, loss)
    assert float(seen[2]["l0"]) == K
    assert_close(ours, plain, 2e-5)


def test_every_prefix_of_a_matryoshka_is_a_coder():
    from jaxsae.sae import at_prefix

    recipe = recipes.matryoshka(D, S, K, k_aux=6, **DEAD)
    state, batch = trained(recipe)
    sae = recipe.export(state)
    z = np.asarray(sae.encode(batch["x"]).dense())
    small = at_prefix(sae, 8)
    np.testing.assert_allclose(small.encode(batch["x"]).dense(), z[:, :8], rtol=1e-5, atol=1e-6)
    expected = z[:, :8] @ np.asarray(sae.W_dec)[:8] + np.asarray(sae.params["b_dec"])
    np.testing.assert_allclose(small(batch["x"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("penalty", ["l1", "log"])
def test_matryoshka_random_is_nabeshimas_loss(penalty):
    """Cumulative decodes and cumulative penalties over the drawn prefixes, both averaged; s from the controller."""
    recipe = recipes.matryoshka_random(
        D, S, target_l0=4, prefixes=5, penalty=penalty, l1_coefficient=0.2, lr=1e-3, permute_every=2, training_steps=10
    )

    def loss(p, x, dead, ctx):
        x = x * p["c_in"]
        z = jax.nn.relu(x @ p["W_enc"] + p["b_enc"][None])
        a = z * jnp.linalg.norm(p["W_dec"], axis=1)[None]
        f = a if penalty == "l1" else jnp.log(a + 0.1) - jnp.log(0.1)
        total, bounds = 0.0, [int(n) for n in recipe.levels.lengths(ctx)]
        for n in bounds:
            e = x - z[:, :n] @ p["W_dec"][:n] - p["b_dec"][None]
            s = 0.2 * min(1.0, (int(ctx.step) + 1) / 2) * ctx.track["l0_controller"]["scale"]
            total += jnp.mean(jnp.sum(e**2, 1)) + s * jnp.mean(jnp.sum(f[:, :n], 1))
        return total / len(bounds)

    ours, plain, _, seen = both(recipe, loss)
    assert_close(ours, plain, 2e-5)
    assert float(seen[2]["prefix_penalty_weight"]) == pytest.approx(0.2 * 1.3)


def test_sorting_by_importance_carries_moments_and_counters():
    """A run that sorts at every step is the run that never sorts, with its latents in order of importance."""
    make = lambda every: recipes.matryoshka_random(  # noqa: E731
        D, S, target_l0=4, prefixes=1, l1_coefficient=0.1, lr=1e-3, permute_every=every, training_steps=10
    )
    (plain, _), (sorting, _) = trained(make(0), 5), trained(make(1), 5)
    order = np.argsort(-np.asarray(plain.track["importance"]["sum"]), kind="stable")
    assert_close(sorting.params["W_dec"], plain.params["W_dec"][order], 2e-5)
    assert_close(sorting.track["importance"]["sum"], plain.track["importance"]["sum"][order], 2e-5)
    np.testing.assert_array_equal(sorting.track["fired"]["since"], plain.track["fired"]["since"][order])


def test_running_scale_is_not_seeded_from_zero():
    recipe = recipes.matryoshka_random(D, S, target_l0=4, prefixes=3, lr=1e-3, training_steps=10)
    state, _ = trained(recipe, 3)
    norms, weight, total = [np.linalg.norm(b["x"], axis=1).mean() for b in batches(4, d=D)[:3]], 0.0, 0.0
    for norm in norms:
        total, weight = 0.99 * total + 0.01 * norm, 0.99 * weight + 0.01
    np.testing.assert_allclose(state.params["c_in"], np.sqrt(D) / (total / weight), rtol=1e-5)


@pytest.mark.parametrize("weighting", ["uniform", "reversed"])
@pytest.mark.parametrize("cap", [None, 0.7])
def test_msae_averages_capped_rank_levels(weighting, cap):
    counts = [4, 8, 16, 32]
    a = [1, 1, 1, 1] if weighting == "uniform" else [4, 3, 2, 1]

    def loss(p, x, dead, ctx):
        z = jax.nn.relu(pre_of(p, x))
        z = z if cap is None else cap * jnp.tanh(z / cap)
        scale = jnp.sum((x - x.mean(0, keepdims=True)) ** 2, axis=1)
        total = 0.0
        for k, w in zip(counts, a, strict=True):
            e = x - jnp.where(best(z, k), z, 0.0) @ p["W_dec"] - p["b_dec"][None]
            total += w * jnp.mean(jnp.sum(e**2, 1) / scale)
        return total / sum(a)

    ours, plain, _, _ = both(recipes.msae(D, S, 4, weighting, cap, lr=1e-2), loss)
    assert_close(ours, plain, 2e-5)


def test_one_msae_serves_every_k():
    from jaxsae.sae import at_k

    recipe = recipes.msae(D, S, 4, soft_cap=0.7, lr=1e-2)
    state, batch = trained(recipe)
    sae = recipe.export(state)
    z = np.asarray(sae.encode(batch["x"]).dense())
    for k in (2, 5):
        kept = np.argsort(np.argsort(-z, axis=1, kind="stable"), axis=1) < k
        np.testing.assert_allclose(at_k(sae, k).encode(batch["x"]).dense(), np.where(kept, z, 0), rtol=1e-5, atol=1e-6)


def test_k_sparse_is_tied_and_linear():
    recipe = recipes.k_sparse(D, S, K, k_start=12, anneal_fraction=0.5, lr=1e-3, training_steps=10)

    def loss(p, x, dead, ctx):
        k = round(float(ctx.hyper["k"]))
        a = x @ p["W_enc"] + p["b_enc"][None]
        e = x - jnp.where(best(a, k), a, 0.0) @ p["W_enc"].T - p["b_dec"][None]
        return jnp.mean(jnp.sum(e**2, axis=1))

    for step, l0 in ((1, 10), (6, 4)):  # k falls from 12 to 4 over 5 steps
        ours, plain, _, seen = both(recipe, loss, step)
        assert float(seen[2]["l0"]) == l0
        assert_close(ours, plain, 2e-5)


def test_alpha_k_at_inference():
    from jaxsae.sae import at_k

    recipe = recipes.k_sparse(D, S, K, lr=1e-3)
    state, batch = trained(recipe)
    l0 = np.asarray(at_k(recipe.export(state), 3 * K).encode(batch["x"]).l0())
    np.testing.assert_array_equal(l0, 3 * K)


@pytest.mark.parametrize("chunk", [S, 10, 16])
def test_ortsae_penalises_the_nearest_atom_of_a_random_chunk(chunk):
    def loss(p, x, dead, ctx):
        x = standardised(x)
        pre = pre_of(p, x)
        e = x - batch_codes(pre, K) @ p["W_dec"] - p["b_dec"][None]
        aux, _ = auxk(p, pre, e, dead, 6)
        u = p["W_dec"] / jnp.linalg.norm(p["W_dec"], axis=1, keepdims=True)
        chunks = -(-S // chunk)
        size = -(-S // chunks)
        order = np.asarray(jax.random.permutation(ctx.rng("orthogonality"), S))
        total = 0.0
        for c in range(chunks):
            d = u[order[c * size : (c + 1) * size]]
            total += jnp.sum(jnp.max(d @ d.T - 10 * jnp.eye(len(d)), axis=1) ** 2)
        return (jnp.sum(e**2) + aux / 32) / len(x) + 0.25 * total / S

    ours, plain, _, _ = both(recipes.ortsae(D, S, K, chunk=chunk, k_aux=6, **DEAD), loss)
    assert_close(ours, plain, 2e-5)


def test_an_atom_alone_in_its_chunk_costs_nothing():
    """10 atoms in chunks of 3: the last one has no neighbour, and is none of its own."""
    W = np.random.default_rng(0).standard_normal((10, D))
    ctx, nothing = Ctx(jnp.int32(0), jax.random.key(0), {}, {}), [None] * 4
    order = np.asarray(jax.random.permutation(ctx.rng("orthogonality"), 10))
    unit, total = W / np.linalg.norm(W, axis=1, keepdims=True), 0.0
    for members in (order[:3], order[3:6], order[6:9]):
        cosine = unit[members] @ unit[members].T - 10 * np.eye(3)
        total += np.sum(cosine.max(1) ** 2)
    out = Out(None, {"W_dec": jnp.asarray(W, jnp.float32)}, *nothing, Free(10, D))
    np.testing.assert_allclose(Orthogonality(chunk=3)(out, ctx), total / 10, rtol=1e-5)


def test_orthogonality_at_every_fifth_step_weighs_five_times_as_much():
    recipe = recipes.ortsae(D, S, K, every=5, k_aux=6, **DEAD)
    data, seen = batches(6, d=D), []
    state = recipes.init(recipe, jax.random.key(0), data[0])
    for batch in data:
        state, metrics = recipes.step(recipe, state, batch)
        seen.append(float(metrics["orthogonality"]))
    u = np.asarray(recipes.init(recipe, jax.random.key(0), data[0]).params["W_dec"])
    first = 5 * np.mean(np.max(u @ u.T - 10 * np.eye(S), axis=1) ** 2)
    np.testing.assert_allclose(seen[0], first, rtol=1e-5)
    assert seen[1:5] == [0.0] * 4
    assert seen[5] > 0


@pytest.mark.parametrize("softness", [0.0, 0.5])
def test_the_controller_reaches_its_target(softness):
    """A code whose L0 falls with the weight of its penalty: the weight settles where L0 is the target."""
    from jaxsae.sae import L0Controller

    controller = L0Controller(rate=0.02, start=3, softness=softness)
    own = controller.init(100)
    for step in range(600):
        ctx = Ctx(jnp.int32(step), None, {"target_l0": 8.0}, {})
        l0 = 20.0 / own["scale"]
        if step <= 3:
            assert float(own["scale"]) == 1.0
        own = controller.update(own, l0, ctx)
    assert abs(float(l0) / 8 - 1) < 0.03


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipes.multi_topk(D, S, 33), "there are 32 candidates|between 1 and d_sae"),
        (lambda: recipes.hierarchical_topk(D, S, 40), "between 1 and d_sae = 32, found 40|must not exceed 32"),
        (lambda: recipes.msae(D, S, 0), "must increase from at least 1"),
        (lambda: recipes.matryoshka(D, S, K, fractions=(0.5, 0.4)), "sum to 1"),
        (lambda: recipes.matryoshka(D, 8, K), "prefix lengths must increase"),
        (lambda: recipes.batch_topk(D, S, K, candidates=33), "between 1 and d_sae = 32, found 33"),
        (lambda: recipes.batch_topk(D, S, 40), "k = 40"),
        (
            lambda: recipes.matryoshka_random(D, S, target_l0=64),
            "target L0 must lie between 0 and d_sae = 32",
        ),
        (
            lambda: replace(recipes.matryoshka_random(D, S, target_l0=8), encoder=recipes.topk(D, S, K).encoder),
            "target L0 of 8 cannot be met by rows that keep at most 4",
        ),
        (
            lambda: replace(recipes.matryoshka_random(D, S, target_l0=8), terms=(Mse(),)),
            "no term is weighed by it",
        ),
        (lambda: recipes.batch_topk(D, S, K, k_aux=0), "k_aux must be at least 1, found 0"),
        (lambda: recipes.ortsae(D, S, K, chunk=1), "chunk must be at least 2, found 1"),
        (lambda: recipes.ortsae(D, S, K, every=0), "every must be at least 1, found 0"),
    ],
)
def test_impossible_recipes_are_refused_when_built(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_rate_of_msae_falls_by_half_a_cosine():
    schedule = recipes.msae(D, S, 4, training_steps=100).lr_schedule
    expected = [0.5 * (1 + np.cos(np.pi * t / 100)) for t in (0, 25, 50, 100)]
    np.testing.assert_allclose([schedule(jnp.int32(t)) for t in (0, 25, 50, 100)], expected, atol=1e-6)
    assert float(recipes.msae(D, S, 4).lr_schedule(jnp.int32(10**6))) == 1.0
