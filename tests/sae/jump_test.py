"""Straight-through steps: kernels integrate to 1, gradients by hand, and the mistakes others made."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError, ConfigWarning
from jaxsae.sae import Threshold, make_sae, unit_atoms
from jaxsae.sae.jump import KERNELS, density, jump, step
from jaxsae.testing.conformance import batches, run

D, S = 12, 32


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_an_even_density(kernel):
    width = 5e-4
    u = (np.arange(-800_000, 800_000) + 0.5) * width  # midpoints: no edge of a window falls on one
    values = np.asarray(KERNELS[kernel](jnp.asarray(u, jnp.float32)), np.float64)
    reach = 1e-3 if kernel == "cauchy" else 1e-4  # a Cauchy density has 1/(2 pi 400) of its mass on either side outside
    np.testing.assert_allclose(values.sum() * width, 1.0, atol=reach)
    np.testing.assert_allclose(values, values[::-1], atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_threshold_gradient_estimates_the_density_there(kernel):
    """d/dtheta E[1(pre > theta)] = -p(theta), and of E[pre 1(pre > theta)] = -theta p(theta), for normal pre."""
    pre, theta = jax.random.normal(jax.random.key(0), (200_000,)), 0.7
    p = np.exp(-(theta**2) / 2) / np.sqrt(2 * np.pi)
    eps = 0.05 if kernel == "cauchy" else 0.2  # its tails reach far: the bias falls with eps, not with its square
    slope = jax.grad(lambda t, f: jnp.mean(f(pre, t, eps, kernel)))
    np.testing.assert_allclose(slope(theta, step), -p, rtol=0.05)
    np.testing.assert_allclose(slope(theta, jump), -theta * p, rtol=0.05)


@pytest.mark.parametrize("to_pre", [False, True])
def test_gradients_by_hand(to_pre):
    pre, theta, eps = jnp.array([[0.9, 1.05, 3.0, -1.0]]), jnp.array([1.0, 1.0, 1.0, 1.0]), 0.5
    near = np.array([1.0, 1.0, 0.0, 0.0])
    g = lambda f: jax.grad(lambda a, t: jnp.sum(f(a, t[None], eps, "rectangle", to_pre)), argnums=(0, 1))(pre, theta)  # noqa: E731
    d_pre, d_theta = g(step)
    np.testing.assert_allclose(d_theta, -2 * near)
    np.testing.assert_allclose(d_pre[0], 2 * near * to_pre)
    d_pre, d_theta = g(jump)
    np.testing.assert_allclose(d_theta, -2 * near)
    np.testing.assert_allclose(d_pre[0], np.array([0, 1, 1, 0]) + 2 * near * to_pre)


def test_a_step_of_gated_codes_would_see_half_of_the_window():
    """The mistake: step(jump(pre)).  Its gradient is half as large, since no gated code lies just below."""
    pre = jax.random.normal(jax.random.key(0), (100_000,))
    right = jax.grad(lambda t: jnp.mean(step(pre, t, 0.2)))(0.7)
    wrong = jax.grad(lambda t: jnp.mean(step(jax.lax.stop_gradient(jump(pre, t, 0.2)), t, 0.2)))(0.7)
    assert 0.4 < wrong / right < 0.6


def test_the_rectifier_masks_the_gradient_where_a_threshold_is_negative():
    pre, theta = jnp.array([-0.5, 0.5]), jnp.array([-1.0, -1.0])
    np.testing.assert_array_equal(jump(pre, theta, 4.0), [0.0, 0.5])
    d_pre, d_theta = jax.grad(lambda a, t: jnp.sum(jump(a, t, 4.0)), argnums=(0, 1))(pre, theta)
    np.testing.assert_array_equal(d_pre, [0.0, 1.0])
    np.testing.assert_array_equal(d_theta, [0.0, 0.0])
    assert float(density(pre, theta, 4.0, "rectangle")[0]) == 0.25


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_thresholds_move_by_small_steps_and_stay_f32(log, bfloat16):
    """At the paper's rate a bf16 threshold, or a bf16 log of one, would round every step away."""
    recipe = recipes.jumprelu(D, S, log_threshold=log, start_threshold=0.5, bandwidth=1.0, bfloat16=bfloat16)
    data = batches(3)
    state, _ = run(recipe, data, jax.random.key(0))
    name = "log_threshold" if log else "threshold"
    theta = state.params[name]
    start = recipes.init(recipe, jax.random.key(0), data[0]).params[name]
    assert theta.dtype == jnp.float32
    moved = np.abs(np.asarray(theta) - np.asarray(start))
    assert np.mean(moved > 0) > 0.9
    assert np.all(moved < 3e-4)
    np.testing.assert_array_equal(jnp.asarray(theta, jnp.bfloat16), jnp.asarray(start, jnp.bfloat16))


def test_learned_thresholds_are_exported_as_they_are():
    recipe = recipes.jumprelu(D, S, start_threshold=0.3, bandwidth=0.3, lr=1e-2)
    state, _ = run(recipe, batches(4), jax.random.key(0))
    sae = recipe.export(state)
    assert isinstance(sae.encoder.selector, Threshold)
    np.testing.assert_array_equal(sae.threshold, jnp.exp(state.params["log_threshold"]))


def test_folding_norms_rescales_thresholds():
    draw = np.random.default_rng(1).standard_normal
    W = draw((S, D)) * np.linspace(0.2, 3.0, S)[:, None]
    p = {"W_enc": draw((D, S)), "b_enc": draw(S), "W_dec": W, "b_dec": draw(D), "threshold": np.full(S, 1.5)}
    sae = make_sae({n: jnp.asarray(a, jnp.float32) for n, a in p.items()})
    x, folded = jnp.asarray(draw((64, D)), jnp.float32), unit_atoms(sae)
    np.testing.assert_allclose(jnp.linalg.norm(folded.W_dec, axis=1), np.ones(S), rtol=1e-5)
    np.testing.assert_allclose(folded(x), sae(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(folded.encode(x).dense() != 0, sae.encode(x).dense() != 0)
    forgotten = folded.replace(params={**folded.params, "threshold": sae.params["threshold"]})
    assert np.any((forgotten.encode(x).dense() != 0) != (sae.encode(x).dense() != 0))


def test_a_rank_without_norms_does_not_fold():
    eye = jnp.eye(4)
    plain = {"W_enc": eye, "b_enc": jnp.zeros(4), "W_dec": 2 * eye, "b_dec": jnp.zeros(4)}
    with pytest.raises(ConfigError, match="rank by norm"):
        unit_atoms(make_sae(plain, k=2))
    by_norm = make_sae(plain, k=2, by_norm=True)
    x = jnp.array([[3.0, 1.0, 2.0, 0.5]])
    np.testing.assert_allclose(unit_atoms(by_norm)(x), by_norm(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bandwidth": 1e-6}, "0.001 of the starting threshold"),
        ({"bandwidth": 1.0}, "1e\\+03 times the starting threshold 0.001.*theta/bandwidth = 0.001"),
        ({"start_threshold": 0.0, "log_threshold": False}, "start at 0"),
    ],
)
def test_known_dead_zones_are_warned_of_with_the_figure(options, message):
    with pytest.warns(ConfigWarning, match=message):
        recipes.jumprelu(D, S, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipes.jumprelu(D, S, start_threshold=0.0), "logarithm of a threshold needs a positive start"),
        (lambda: recipes.jumprelu(D, S, bandwidth=0.0), "bandwidth must be positive, found 0.0"),
        (lambda: recipes.jumprelu_target_l0(D, S, target_l0=32), "target_l0 must lie between 0 and d_sae = 32"),
        (lambda: replace(recipes.topk(D, S, 4), terms=recipes.jumprelu(D, S).terms), "needs 'l0_coefficient'"),
        (lambda: replace(recipes.p_anneal(D, S), trackers=()), "PNorm needs the tracker 'p_anneal'"),
        (lambda: recipes.p_anneal(D, S, p_end=0.0), "p_end > 0"),
    ],
)
def test_impossible_recipes_are_refused_when_built(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_share_of_pre_activations_in_the_window_is_logged():
    recipe = recipes.jumprelu_tanh_quad(D, S, start_threshold=0.5, bandwidth=0.6)
    batch = {"x": batches(1)[0]["x"], "mask": jnp.arange(len(batches(1)[0]["x"])) % 4 > 0}
    state = recipes.init(recipe, jax.random.key(0), batch)
    _, (_, _, metrics) = jax.jit(recipe.loss)(*recipe.split(state.params), state, batch)
    p = {n: np.asarray(a, np.float64) for n, a in state.params.items()}
    pre = np.asarray(batch["x"], np.float64) * p["c_in"] @ p["W_enc"] + p["b_enc"]
    inside = (np.abs(pre - 0.5) < 0.3)[np.asarray(batch["mask"])]
    assert 0.05 < inside.mean() < 0.95
    np.testing.assert_allclose(metrics["threshold_window_share"], inside.mean(), rtol=1e-4)
