"""One pass per leaf is the same step as tangent gradient, clipping, Adam and projection one after another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.optim import Adam, AdamBf16
from jaxsae.optim import move as module
from jaxsae.sae import Free, Normalised

D, S, B = 8, 32, 64


def trained(recipe, steps=3):
    x = jax.random.normal(jax.random.key(1), (steps, B, D))
    state = jax.jit(recipe.init)(jax.random.key(0), {"x": x[0]})
    step = jax.jit(recipe.step)
    for rows in x:
        state, metrics = step(state, {"x": rows})
    return state, metrics


def with_optimizer(optimizer):
    return dataclasses.replace(recipes.topk(D, S, k=4, lr=0.01), optimizer=optimizer)


RECIPES = {
    "unit rows, clipped": recipes.topk(D, S, k=4, lr=0.01),
    "not clipped": with_optimizer(Adam(clip=None)),
    "clipped hard": with_optimizer(Adam(clip=1e-3)),
    "dense": recipes.relu_l1(D, S, lr=0.01),
    "free": dataclasses.replace(recipes.batch_topk(D, S, k=4, lr=0.01), dictionary=Free(S, D)),
    "normalised": dataclasses.replace(recipes.topk(D, S, k=4, lr=0.01), dictionary=Normalised(S, D)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_steps_agree(monkeypatch, name):
    by_leaf, taken = module._by_leaf, []
    monkeypatch.setattr(module, "_by_leaf", lambda *a: taken.append(a) or by_leaf(*a))
    found, found_metrics = trained(RECIPES[name])
    assert taken, "the path by leaf was not taken"
    taken.clear()
    monkeypatch.setattr(module, "pays", lambda w, unit: False)
    expected, metrics = trained(RECIPES[name])
    assert not taken
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, e in zip(
        jax.tree.leaves((found.params, found.opt)), jax.tree.leaves((expected.params, expected.opt)), strict=True
    ):
        np.testing.assert_allclose(a, e, rtol=2e-4, atol=2e-5)
    assert float(found_metrics["grad_norm"]) == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)


@pytest.mark.parametrize(
    "recipe",
    [
        with_optimizer(AdamBf16()),
        with_optimizer(Adam(mu_dtype="bfloat16")),
        with_optimizer(Adam(lr_factors=(("b_enc", 2.0),))),
        recipes.tied_l1(D, S),
    ],
    ids=["bf16 moments", "bf16 first moment", "learning rates of their own", "unit columns"],
)
def test_other_optimisers_and_constraints_keep_their_way(monkeypatch, recipe):
    monkeypatch.setattr(module, "_by_leaf", None)  # would fail if it were called
    trained(recipe, steps=1)


def test_a_turned_gradient_is_the_same_gradient(monkeypatch):
    monkeypatch.setattr(module, "works_in_place", lambda w, unit: True)
    W, g = (jax.random.normal(jax.random.key(i), (D, S)) for i in range(2))
    state = Adam(clip=None).build().init({"W_enc": W})
    args = {"W_enc": W}, {}, {"W_enc": g}, state, jnp.float32(0.1)
    plain, turned = (module._by_leaf(Adam(clip=None), (), *args, names) for names in ((), ("W_enc",)))
    for a, e in zip(jax.tree.leaves(turned), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6)
