"""The complexity probe: k(x) by hand, ridge regression against scikit-learn, phases that hand it over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.sae import Ctx, ProbeRule, Rows, fit_probe
from jaxsae.testing.conformance import batches

D, S = 12, 32


def rule_and_ctx(x, k=80.0):
    rule = ProbeRule(x.shape[1])
    return rule, Ctx(jnp.int32(0), None, {"k": jnp.float32(k)}, {}, rows=Rows(x, x, jnp.ones(len(x))))


def test_k_follows_the_probe_between_a_quarter_and_four_times_k():
    """c = 0, 5, 10 and beyond: 20 + 300 (0.0474, 0.5, 0.9526) = 34, 170, 306, as the paper's 20..320 gives."""
    x = jnp.array([[0.0], [5.0], [10.0], [99.0], [-4.0]])
    rule, ctx = rule_and_ctx(x)
    p = {"probe_w": jnp.ones(1), "probe_b": jnp.float32(0.0)}
    np.testing.assert_array_equal(rule.k(p, x, ctx), [34, 170, 306, 306, 34])


def test_each_row_keeps_its_own_number_of_latents():
    """Counts are per row; a peer's count per batch would give every row the mean."""
    x = jnp.array([[0.0], [10.0]])
    rule, ctx = rule_and_ctx(x, k=2.0)
    p = {"probe_w": jnp.ones(1), "probe_b": jnp.float32(0.0)}
    keep, exact = rule.keep(p, jnp.ones((2, 8)), x, ctx, False)
    np.testing.assert_array_equal(keep.sum(1), [1, 8])  # round(0.86) and round(7.67)
    assert exact is True


def test_the_fit_is_ridge_regression_with_five_folds():
    from sklearn.linear_model import RidgeCV

    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 15)) * rng.uniform(0.2, 2, 15)
    y = np.clip(5 + x @ rng.standard_normal(15) * 0.3 + rng.standard_normal(200), 0, 10)
    penalties = (0.1, 1.0, 10.0, 100.0)
    probe = fit_probe(x, y, penalties)
    peer = RidgeCV(alphas=penalties, cv=5, scoring="neg_mean_squared_error").fit(x, y)
    assert probe.penalty == peer.alpha_
    np.testing.assert_allclose(probe.w, peer.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(probe.b, peer.intercept_, rtol=1e-4)
    np.testing.assert_allclose(probe.error, -peer.best_score_, rtol=1e-3)


@pytest.mark.parametrize(
    ("x", "scores", "message"),
    [(np.ones((4, 2)), np.ones(3), "scores"), (np.ones((9, 2)), np.full(9, 11.0), "lie in 0..10, found 11 to 11")],
)
def test_bad_scores_are_refused(x, scores, message):
    with pytest.raises(ConfigError, match=message):
        fit_probe(x, scores)


def test_the_list_must_hold_the_largest_k():
    import dataclasses

    recipe = recipes.adaptive_k(D, S, k=4)
    short = dataclasses.replace(recipe.encoder, selector=dataclasses.replace(recipe.encoder.selector, cap=8))
    with pytest.raises(ConfigError, match="k\\(x\\) reaches 16, the ranked list holds 8"):
        dataclasses.replace(recipe, encoder=short)


def scored(batch, w):
    return {**batch, "score": jnp.clip(batch["x"] @ w + 4.0, 0.0, 10.0)}


def test_three_phases():
    data = batches(6, d=D)
    w_true = jnp.zeros(D).at[0].set(1.0)
    x = jnp.concatenate([b["x"] for b in data])
    probe = fit_probe(x, jnp.clip(x @ w_true + 4.0, 0.0, 10.0))

    frozen = recipes.adaptive_k(D, S, k=4, lr=1e-2, lr_warm_up_steps=0)
    state = recipes.with_probe(recipes.init(frozen, jax.random.key(0), data[0]), probe.w, probe.b)
    for batch in data:
        state, _ = recipes.step(frozen, state, batch)
    np.testing.assert_array_equal(state.params["probe_w"], probe.w)
    complexity = np.clip(np.asarray(data[0]["x"] @ probe.w + probe.b), 0, 10)
    expected = np.round(4 * (0.25 + 3.75 / (1 + np.exp(-6 * (complexity / 10 - 0.5)))))
    sae = frozen.export(state)
    W_enc, b_enc, b_dec = (np.asarray(a) for a in (sae.W_enc, sae.b_enc, sae.b_dec))
    positive = np.sum((np.asarray(data[0]["x"]) - b_dec) @ W_enc + b_enc > 0, axis=1)
    np.testing.assert_array_equal(sae.encode(data[0]["x"]).l0(), np.minimum(expected, positive))

    joint = recipes.adaptive_k(D, S, k=4, phase="joint", lr=1e-2, lr_warm_up_steps=0)
    state, which = recipes.adopt(joint, state, jax.random.key(1), scored(data[0], w_true))
    assert {"params.probe_w", "params.probe_w_start", "params.W_dec"} <= set(which.kept)
    # A probe that is off is pulled back towards the scores; the anchor stays.
    state = state.replace(params={**state.params, "probe_b": state.params["probe_b"] + 2.0})
    errors = []
    for batch in data * 4:
        state, metrics = recipes.step(joint, state, scored(batch, w_true))
        errors.append(float(metrics["probe_error"]))
    assert errors[-1] < errors[0]
    np.testing.assert_array_equal(state.params["probe_w_start"], probe.w)
    assert "probe_w_start" not in joint.export(state).params


def test_probe_terms_against_plain_autodiff():
    data = scored(batches(1, d=D)[0], jnp.ones(D) * 0.3)
    joint = recipes.adaptive_k(D, S, k=4, phase="joint", probe_coefficient=0.7)
    state = recipes.with_probe(recipes.init(joint, jax.random.key(0), data), jnp.ones(D) * 0.2, jnp.float32(4.0))
    state = state.replace(params={**state.params, "probe_w": jnp.linspace(0.0, 0.5, D), "probe_b": jnp.float32(3.0)})
    grads, _ = joint.grads(state, data)

    def by_hand(w, b):
        c = jnp.clip(data["x"] @ w + b, 0.0, 10.0)
        drift = jnp.sqrt(jnp.sum((w - 0.2) ** 2)) + jnp.abs(b - 4.0)
        return 0.7 * (jnp.mean((c - data["score"]) ** 2) + drift)

    w, b = jax.grad(by_hand, argnums=(0, 1))(state.params["probe_w"], state.params["probe_b"])
    np.testing.assert_allclose(grads["probe_w"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads["probe_b"], b, rtol=1e-4)


def test_scores_must_come_with_the_batch():
    joint = recipes.adaptive_k(D, S, k=4, phase="joint")
    with pytest.raises(ConfigError, match="reads batch\\['score'\\]"):
        recipes.init(joint, jax.random.key(0), batches(1, d=D)[0])
