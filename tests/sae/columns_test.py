"""Feature choice: who is kept is worked out by hand, and in numpy column by column."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.sae import Column, Ctx, Density, EmaThreshold, Free, Pre, Rows, Want, fit_zipf, zipf_curve
from jaxsae.testing.conformance import batches

D, S = 12, 32


def ctx_of(rows, mask=None, train=True, density=None, **hyper):
    mask = jnp.ones(rows) if mask is None else mask
    track = {} if density is None else {"density": {"count": density, "rows": jnp.float32(1.0)}}
    return Ctx(jnp.int32(0), jax.random.key(0), hyper, track, rows=Rows(None, None, mask), train=train)


def choose(score, selector, mask=None, **hyper):
    score = jnp.asarray(score, jnp.float32)
    ctx = ctx_of(len(score), mask, **hyper)
    pre = Pre(score, score, score)
    selection = selector.select({}, pre, Free(score.shape[1], 2), ctx, Want())
    return np.asarray(selection.codes.values), np.asarray(selection.kept_min)


def test_each_column_keeps_its_own_best_rows():
    """k = 1 of 2 latents over 4 rows: m = 2 each.  Row 3 gets both, row 0 none: choices are the latents'."""
    score = [[1.0, 0.1], [2.0, 0.2], [0.5, 3.0], [4.0, 5.0]]
    values, kept_min = choose(score, Column(1), k=jnp.float32(1.0))
    np.testing.assert_array_equal(values, [[0, 0], [2, 0], [0, 3], [4, 5]])
    np.testing.assert_array_equal(kept_min, [2, 3])


def test_only_positive_scores_are_kept_and_a_column_may_stay_short():
    values, kept_min = choose([[1.0, -1.0], [-2.0, -3.0]], Column(2), k=jnp.float32(2.0))
    np.testing.assert_array_equal(values, [[1, 0], [0, 0]])
    np.testing.assert_array_equal(kept_min, [1, np.nan])


def test_equal_rows_are_taken_from_the_first():
    values, _ = choose(np.ones((6, 2)), Column(1), k=jnp.float32(1.0))
    np.testing.assert_array_equal(values.sum(1), [2, 2, 2, 0, 0, 0])


def test_padded_rows_are_never_chosen_and_do_not_raise_the_budget():
    """A peer that counts m over padded rows gives the others more than k."""
    score = jnp.concatenate([jax.random.normal(jax.random.key(1), (16, 8)), jnp.full((16, 8), 99.0)])
    mask = jnp.concatenate([jnp.ones(16), jnp.zeros(16)])
    values, _ = choose(score, Column(2), mask, k=jnp.float32(2.0))
    alone, _ = choose(score[:16], Column(2), k=jnp.float32(2.0))
    np.testing.assert_array_equal(values[16:], 0)
    np.testing.assert_array_equal(values[:16], alone)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("k", [2.0, 2.5, 0.3])
def test_against_a_loop_over_columns(k, signed):
    score = np.asarray(jax.random.normal(jax.random.key(2), (40, 16)), np.float32)
    selector = Column(3, signed=signed)
    values, _ = choose(score, selector, k=jnp.float32(k))
    m = np.asarray(selector.rows_per_latent(ctx_of(40, k=jnp.float32(k)), 16))
    assert abs(m.sum() - 40 * k) <= 1
    assert set(m) <= {int(np.floor(40 * k / 16)), int(np.ceil(40 * k / 16))}
    rank = np.abs(score) if signed else score
    for j in range(16):
        rows = np.argsort(-rank[:, j], kind="stable")[: m[j]]
        expected = np.zeros(40, np.float32)
        expected[rows] = score[rows, j] if signed else np.maximum(score[rows, j], 0)
        np.testing.assert_array_equal(values[:, j], expected)


def test_shares_may_differ_per_latent():
    k = jnp.array([4.0, 2.0, 1.0, 1.0])
    m = Column(4).rows_per_latent(ctx_of(16, k=k), 4)
    np.testing.assert_array_equal(m, [16, 8, 4, 4])


def test_zipf_shares_follow_the_rank_of_density():
    """q = 0, s = 1 over 4 latents: 1, 1/2, 1/3, 1/4 of 25/12; k B = 25, so 12, 6, 4, 3, given to ranks 2 0 3 1."""
    density = jnp.array([0.2, 0.9, 0.1, 0.5])
    ctx = ctx_of(25, density=density, k=jnp.float32(1.0), zipf_q=jnp.float32(0.0), zipf_s=jnp.float32(1.0))
    np.testing.assert_allclose(Column(1, zipf=True).rows_per_latent(ctx, 4), [4, 12, 3, 6], atol=1)
    np.testing.assert_allclose(np.asarray(zipf_curve(4, 0.0, 1.0)) * 25, [12, 6, 4, 3], rtol=1e-5)


def test_a_latent_due_less_than_a_row_gets_one_now_and_then():
    """Rounding m down would leave it dead for good: the mean over steps is the fraction itself."""
    k, got = jnp.float32(0.25), []
    for step in range(400):
        ctx = dataclasses.replace(ctx_of(16, k=k), key=jax.random.key(step))
        got.append(Column(1).rows_per_latent(ctx, 8))
    got = np.stack(got)
    assert set(got.sum(1)) <= {4, 5}
    np.testing.assert_allclose(got.mean(0), 0.5, atol=0.1)


def test_the_choice_is_global_whatever_the_layout_of_the_batch():
    score = jax.random.normal(jax.random.key(3), (32, 8))
    order = jax.random.permutation(jax.random.key(4), 32)
    one, _ = choose(score, Column(2), k=jnp.float32(2.0))
    other, _ = choose(score[order], Column(2), k=jnp.float32(2.0))
    np.testing.assert_array_equal(one[order], other)


def trained(rows, steps=60):
    recipe = recipes.feature_choice(D, S, k=4, lr=1e-3, normalize_activations=False)
    data = batches(steps, rows=rows, d=D)
    state = recipes.init(recipe, jax.random.key(0), data[0], (), {"lr": 0.0})
    for batch in data:
        state, metrics = recipes.step(recipe, state, batch)
    fresh = batches(1, rows=2048, d=D, seed=0)[0]["x"]
    return state, float(metrics["l0"]), recipe.export(state), fresh


def test_the_threshold_form_is_sparser_than_k_and_less_so_with_more_rows():
    """An average of the smallest of m kept values lies too high; the gap shrinks as m grows (m = 3 and m = 24)."""
    l0 = {}
    for rows in (24, 192):
        _, l0[rows, "train"], sae, fresh = trained(rows)
        l0[rows, "frozen"] = float(np.mean(sae.encode(fresh).l0()))
    assert l0[24, "train"] == pytest.approx(4.0, abs=0.35)
    assert 0.75 * 4 < l0[24, "frozen"] < l0[192, "frozen"] < 4.3, l0


def test_needs_a_threshold_per_latent():
    recipe = recipes.feature_choice(D, S, k=4)
    one = tuple(EmaThreshold() if isinstance(t, EmaThreshold) else t for t in recipe.trackers)
    with pytest.raises(ConfigError, match="one threshold per latent"):
        dataclasses.replace(recipe, trackers=one)
    without = tuple(t for t in recipe.trackers if not isinstance(t, Density))
    with pytest.raises(ConfigError, match="needs the tracker 'density'"):
        dataclasses.replace(recipe, trackers=without)


@pytest.mark.parametrize(("q", "s"), [(0.0, 1.0), (3.0, 0.8), (40.0, 1.5)])
def test_the_law_is_found_again_from_noisy_counts(q, s):
    rng = np.random.default_rng(0)
    density = rng.binomial(200_000, 2 * np.asarray(zipf_curve(400, q, s), np.float64)) / 200_000
    fit = fit_zipf(rng.permutation(np.concatenate([density, np.zeros(7)])))
    assert fit.dead == 7
    assert fit.s == pytest.approx(s, rel=0.1)
    assert fit.r2 > 0.98
    curve, found = zipf_curve(400, q, s), zipf_curve(400, fit.q, fit.s)
    np.testing.assert_allclose(found[1:], curve[1:], rtol=0.15)


def test_the_fit_agrees_with_a_general_optimiser():
    from scipy.optimize import minimize

    density = np.sort(np.random.default_rng(1).lognormal(-4, 1, 300))[::-1]
    ranks, y = np.arange(1, 301), np.log(density)
    weight = 1 / ranks / np.sum(1 / ranks)

    def loss(v):
        return np.sum(weight * (y - v[0] + v[1] * np.log(ranks + np.exp(v[2]))) ** 2)

    starts = ([0.0, 1.0, g] for g in (0, 2, 4))
    best = min(minimize(loss, v, method="Nelder-Mead", options={"maxiter": 4000}).fun for v in starts)
    fit = fit_zipf(density)
    spread = np.sum(weight * (y - np.sum(weight * y)) ** 2)
    assert (1 - fit.r2) * spread <= best * 1.001


def test_a_law_needs_latents_that_fire():
    with pytest.raises(ConfigError, match="at least 3 latents"):
        fit_zipf(np.array([0.1, 0.0, 0.2]))


def test_progressive_training_hands_ranks_and_weights_over():
    data = batches(12, d=D)
    first = recipes.mutual_choice(D, S, k=4, lr=1e-2)
    state = recipes.init(first, jax.random.key(0), data[0])
    for batch in data:
        state, _ = recipes.step(first, state, batch)
    density = state.track["density"]["count"] / state.track["density"]["rows"]
    fit = fit_zipf(density)
    second = recipes.feature_choice(D, S, k=4, shares="zipf", zipf_q=fit.q, zipf_s=fit.s, lr=1e-2)
    state, which = recipes.adopt(second, state, jax.random.key(1), data[0])
    assert {"params.W_enc", "params.W_dec", "track.density.count"} <= set(which.kept)
    m = np.asarray(Column(4, zipf=True).rows_per_latent(second.ctx(state).with_rows(Rows(None, None, jnp.ones(48))), S))
    assert np.argmax(m) == np.argmax(density)
    for batch in data:
        state, metrics = recipes.step(second, state, batch)
    assert float(metrics["l0"]) == pytest.approx(4.0, abs=0.5)
