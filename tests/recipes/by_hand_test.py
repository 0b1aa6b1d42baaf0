"""The two first recipes against literal transcriptions of their papers: plain jnp, autodiff, Adam written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.testing.conformance import assert_close, batches

D, S, K = 12, 32, 4
TRAINED = ("W_enc", "b_enc", "W_dec", "b_dec")


def adam(p, g, m, v, t, lr, eps):
    """Kingma & Ba 2015, algorithm 1."""
    m = {k: 0.9 * m[k] + 0.1 * g[k] for k in p}
    v = {k: 0.999 * v[k] + 0.001 * g[k] ** 2 for k in p}
    hat = {k: (m[k] / (1 - 0.9**t)) / (jnp.sqrt(v[k] / (1 - 0.999**t)) + eps) for k in p}
    return {k: p[k] - lr * hat[k] for k in p}, m, v


def clipped(g):
    norm = jnp.sqrt(sum(jnp.sum(a**2) for a in g.values()))
    return {k: a * jnp.minimum(1.0, 1.0 / norm) for k, a in g.items()}


def descend(state, data, loss, eps, lr, after=lambda p: p, before=lambda p, g: g):
    """Steps by hand from the leaves a recipe starts with."""
    p = {k: state.params[k] for k in TRAINED}
    m, v = ({k: jnp.zeros_like(a) for k, a in p.items()} for _ in range(2))
    for t, batch in enumerate(data, start=1):
        g = clipped(before(p, jax.grad(loss)(p, batch["x"], t - 1)))
        p, m, v = adam(p, g, m, v, t, lr(t - 1), eps)
        p = after(p)
    return p


def steps(recipe, data):
    state = recipes.init(recipe, jax.random.key(0), data[0])
    start = jax.tree.map(jnp.copy, state)
    for batch in data:
        state, _ = recipes.step(recipe, state, batch)
    return start, state


def test_topk_is_gao_et_al():
    """Standardised rows, tied bias, k largest, variance-normalised error, unit atoms; no latent is dead yet."""

    def loss(p, x, step):
        x = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5)
        pre = (x - p["b_dec"][None]) @ p["W_enc"] + p["b_enc"][None]
        cut = jax.lax.stop_gradient(jnp.sort(pre, axis=1)[:, -K][:, None])
        z = jnp.where(pre >= cut, jax.nn.relu(pre), 0.0)
        err = x - z @ p["W_dec"] - p["b_dec"][None]
        return jnp.sum(err**2) / jnp.sum((x - x.mean(0, keepdims=True)) ** 2)

    def before(p, g):
        w = p["W_dec"] / jnp.linalg.norm(p["W_dec"], axis=1, keepdims=True)
        return {**g, "W_dec": g["W_dec"] - jnp.sum(g["W_dec"] * w, 1, keepdims=True) * w}

    def after(p):
        return {**p, "W_dec": p["W_dec"] / jnp.linalg.norm(p["W_dec"], axis=1, keepdims=True)}

    data = batches(5, d=D)
    start, end = steps(recipes.topk(D, S, K, lr=1e-2), data)
    np.testing.assert_allclose(start.params["W_enc"], start.params["W_dec"].T)
    by_hand = descend(start, data, loss, 6.25e-10, lambda _: 1e-2, after, before)
    assert_close({k: end.params[k] for k in TRAINED}, by_hand, 2e-5)


def test_relu_l1_is_the_april_2024_update():
    """E||x|| = sqrt(d), penalty weighted by decoder norm, lambda up over 5 %, rate down over the last 20 %."""
    n = 20

    def loss(p, x, step):
        x = x * scale
        z = jax.nn.relu(x @ p["W_enc"] + p["b_enc"][None])
        err = x - z @ p["W_dec"] - p["b_dec"][None]
        penalty = jnp.sum(z * jnp.linalg.norm(p["W_dec"], axis=1)[None], axis=1)
        return jnp.mean(jnp.sum(err**2, axis=1)) + 0.3 * min(1.0, (step + 1) / 2) * jnp.mean(penalty)

    data = batches(n, d=D)
    recipe = recipes.relu_l1(D, S, l1_coefficient=0.3, lr=1e-3, l1_warm_up_fraction=0.1, training_steps=n)
    start, end = steps(recipe, data)
    scale = np.sqrt(D) / np.linalg.norm(data[0]["x"], axis=1).mean()
    np.testing.assert_allclose(jnp.linalg.norm(start.params["W_dec"], axis=1), np.full(S, 0.1), rtol=1e-5)
    by_hand = descend(start, data, loss, 1e-8, lambda t: 1e-3 * (1 - max(0, t - 16) / 4))
    assert_close({k: end.params[k] for k in TRAINED}, by_hand, 2e-5)


def test_k_may_be_swept_under_one_program():
    data, recipe = batches(3, d=D), recipes.topk(D, S, 8)
    keys, ks = jax.random.split(jax.random.key(0), 3), jnp.array([2, 4, 8])
    states = jax.vmap(lambda key, k: recipe.init(key, data[0], k=k))(keys, ks).replace(step=jnp.int32(0))
    axes = recipe.over_runs()
    _, metrics = jax.jit(jax.vmap(recipe.step, in_axes=(axes, None), out_axes=(axes, 0)))(states, data[0])
    np.testing.assert_array_equal(metrics["l0"], ks)


def test_the_learning_rate_rule_of_the_paper():
    assert dict(recipes.topk(8, 2**16).hyper)["lr"] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipes.topk(D, S, k=33), "k must lie between 1 and d_sae = 32, found 33"),
        (lambda: recipes.topk(D, S, k=0), "k must lie between 1 and d_sae = 32, found 0"),
        (lambda: recipes.topk(D, S, K, lr=-1e-3), "expected lr to be a finite number, 0 or more, found -0.001"),
        (lambda: recipes.topk(D, S, K, lr=float("inf")), "expected lr to be a finite number, 0 or more, found inf"),
        (lambda: recipes.relu_l1(D, S, l1_coefficient=float("nan")), "l1_coefficient to be a finite number"),
        (lambda: recipes.topk(D, S, K, k_aux=0), "k_aux must be at least 1, found 0; leave the term out"),
        (lambda: recipes.top_afa(D, S, k_aux=0), "k_aux must be at least 1, found 0; leave the term out"),
        (lambda: recipes.topk.Config().build(d_in=D), "give d_sae or expansion_factor"),
        (lambda: recipes.topk.Config(d_sae=S).build(), "d_in is unknown"),
        (lambda: recipes.topk.Config(d_in=9, d_sae=S).build(d_in=D), "d_in = 9, but the activations have width 12"),
        (lambda: recipes.topk.Config(d_sae=S, expansion_factor=2).build(d_in=D), "contradicts expansion_factor"),
        (lambda: recipes.init(recipes.topk(D + 1, S, K), jax.random.key(0), batches(1, d=D)[0]), "rows of width 13"),
    ],
)
def test_impossible_recipes_are_refused_when_built(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_unknown_scalar_is_refused_with_a_hint():
    recipe = recipes.topk(D, S, K)
    with pytest.raises(ConfigError, match="no scalar 'lrr'; did you mean 'lr'"):
        recipe.init(jax.random.key(0), batches(1, d=D)[0], lrr=1.0)


def test_expansion_factor_stands_for_d_sae():
    assert recipes.topk.Config(expansion_factor=4, k=2).build(d_in=D).d_sae == 48
