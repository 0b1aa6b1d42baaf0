"""L1, gated, JumpReLU and p-norm recipes: loss and gradient against literal transcriptions of their papers, autodiff.

Straight-through gradients have no autodiff of their own: the transcription states them by the textbook trick, a value
plus a surrogate minus its stopped self.
"""

import jax
import jax.numpy as jnp
import pytest

from jaxsae import recipes
from jaxsae.testing.conformance import assert_close, batches

D, S = 12, 32
SG = jax.lax.stop_gradient


def normed(x, rule):
    norm = jnp.linalg.norm(x, axis=1)
    return x * (jnp.sqrt(x.shape[1]) / norm.mean() if rule == "mean_norm" else 1 / jnp.sqrt((norm**2).mean()))


def squared(x, z, p):
    return jnp.sum((x - z @ p["W_dec"] - p["b_dec"][None]) ** 2, axis=1)


def norms(p):
    return jnp.linalg.norm(p["W_dec"], axis=1)[None]


def window(pre, theta, eps):
    return (jnp.abs(pre - theta) < eps / 2).astype(jnp.float32) / eps


def jumped(pre, theta, eps, to_pre=False):
    """pre H(pre - theta), written with its surrogate slope."""
    on = (pre > theta).astype(jnp.float32)
    slope = SG(theta * window(pre, theta, eps))
    surrogate = -slope * theta + (slope * pre if to_pre else 0.0)
    return pre * SG(on) + surrogate - SG(surrogate)


def count(pre, theta, eps):
    surrogate = -SG(window(pre, theta, eps)) * theta
    return jnp.sum((pre > theta).astype(jnp.float32) + surrogate - SG(surrogate), axis=1)


def affine(p, x, centred=False):
    return (x - p["b_dec"][None] if centred else x) @ p["W_enc"] + p["b_enc"][None]


def tied_l1(p, x):
    z = jax.nn.relu(x @ p["W_enc"] + p["b_enc"][None])
    return jnp.mean(jnp.sum((x - z @ p["W_enc"].T) ** 2, axis=1) + 0.3 * jnp.sum(z, axis=1))


def bricken(p, x):
    z = jax.nn.relu(affine(p, x, centred=True))
    return jnp.mean(squared(x, z, p) + 0.3 * jnp.sum(z, axis=1))


def gate(p, x):
    x = normed(x, "mean_norm")
    q = (x - p["b_dec"][None]) @ p["W_enc"]
    g, m = q + p["b_gate"][None], q * jnp.exp(p["r_mag"])[None] + p["b_mag"][None]
    through = jax.nn.relu(g) @ SG(p["W_dec"]) + SG(p["b_dec"])[None]
    aux = jnp.sum((x - through) ** 2, axis=1)
    return squared(x, SG((g > 0).astype(jnp.float32)) * jax.nn.relu(m), p) + aux, jax.nn.relu(g)


def gated(p, x):
    rest, g = gate(p, x)
    return jnp.mean(rest + 0.3 * jnp.sum(g, axis=1))


def jumprelu(p, x):
    x, theta = normed(x, "mean_square"), jnp.exp(p["log_threshold"])[None]
    pre = affine(p, x)
    return jnp.mean(squared(x, jumped(pre, theta, 0.2), p) + 0.3 * count(pre, theta, 0.2))


def jumprelu_target_l0(p, x):
    x, theta = normed(x, "mean_square"), p["threshold"][None]
    pre = affine(p, x)
    return jnp.mean(squared(x, jumped(pre, theta, 0.2), p)) + 0.3 * (jnp.mean(count(pre, theta, 0.2)) / 5 - 1) ** 2


def jumprelu_anthropic(p, x):
    x, theta = normed(x, "mean_norm"), jnp.exp(p["log_threshold"])[None]
    pre = affine(p, x)
    z = jumped(pre, theta, 2.0, to_pre=True)
    penalty = 0.3 * jnp.sum(jnp.tanh(4 * z * norms(p)), axis=1)
    push = 0.02 * jnp.sum(jax.nn.relu(theta - pre) * norms(p), axis=1)
    return jnp.mean(squared(x, z, p) + penalty + push)


def jumprelu_tanh_quad(p, x):
    x, theta = normed(x, "mean_norm"), jnp.exp(p["log_threshold"])[None]
    z = jumped(affine(p, x), theta, 4.0)
    f = jnp.mean(jnp.tanh(4 * z * norms(p)), axis=0)
    return jnp.mean(squared(x, z, p)) + 0.3 * jnp.sum(f * (1 + f / 0.01))


def powers(v):
    """sum v^p at the exponent and factor the test sets, entries at 0 left out."""
    return 1.7 * jnp.sum(jnp.where(v > 0, jnp.where(v > 0, v, 1.0) ** 0.6, 0.0), axis=1)


def p_anneal(p, x):
    x = normed(x, "mean_norm")
    z = jax.nn.relu(affine(p, x, centred=True))
    return jnp.mean(squared(x, z, p) + 0.3 * powers(z))


def gated_p_anneal(p, x):
    rest, g = gate(p, x)
    return jnp.mean(rest + 0.3 * powers(g))


JUMP = {"start_threshold": 0.2, "bandwidth": 0.2, "l0_warm_up_steps": 0, "l0_coefficient": 0.3}
CASES = {
    tied_l1: {"l1_coefficient": 0.3},
    bricken: {"l1_coefficient": 0.3, "l1_warm_up_steps": 0},
    gated: {"l1_coefficient": 0.3, "l1_warm_up_steps": 0},
    jumprelu: JUMP,
    jumprelu_target_l0: {**JUMP, "target_l0": 5.0},
    jumprelu_anthropic: {"sparsity_coefficient": 0.3, "pre_act_loss_coefficient": 0.02},
    jumprelu_tanh_quad: {"sparsity_coefficient": 0.3},
    p_anneal: {"sparsity_coefficient": 0.3, "sparsity_warm_up_steps": 0},
    gated_p_anneal: {"sparsity_coefficient": 0.3, "sparsity_warm_up_steps": 0},
}


def disturbed(state):
    """Every leaf away from its start, where several gradients vanish or coincide."""
    keys = jax.random.split(jax.random.key(5), len(state.params))
    add = lambda key, a: a + 0.1 * jax.random.normal(key, a.shape) if a.ndim else a  # noqa: E731
    params = {n: add(k, a) for k, (n, a) in zip(keys, sorted(state.params.items()), strict=True)}
    for name in ("threshold", "log_threshold"):
        if name in params:
            params[name] = state.params[name] + 0.2 * (params[name] - state.params[name])
    if "p_anneal" not in state.track:
        return state.replace(params=params)
    own = {**state.track["p_anneal"], "p": jnp.float32(0.6), "next": jnp.float32(0.5), "factor": jnp.float32(1.7)}
    return state.replace(params=params, track={**state.track, "p_anneal": own})


@pytest.mark.parametrize("by_hand", CASES, ids=lambda f: f.__name__)
def test_loss_and_gradient_are_those_of_the_paper(by_hand):
    batch = batches(1, d=D)[0]
    recipe = getattr(recipes, by_hand.__name__)(D, S, **CASES[by_hand])
    state = disturbed(recipes.init(recipe, jax.random.key(0), batch))
    train, fixed = recipe.split(state.params)
    fixed = {n: jnp.zeros_like(a) if n == "b_dec" else a for n, a in fixed.items()}
    state = state.replace(params={**train, **fixed})
    ours = jax.jit(jax.value_and_grad(recipe.loss, has_aux=True))(train, fixed, state, batch)
    theirs = jax.jit(jax.value_and_grad(by_hand))(train, batch["x"])
    assert_close(ours[0][0], theirs[0], 1e-5)
    assert_close(ours[1], theirs[1], 2e-5)
