"""Dictionaries: what keeps their atoms in shape, and what becomes of them at export."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.sae import Normalised, PreSelect, Rank, Relu, Tied, TiedAffine, Unit
from jaxsae.testing import conformance
from jaxsae.testing.conformance import batches, run

D, S, K = 12, 32, 4


BASE = recipes.topk(D, S, K, lr=1e-2, aux_loss_coefficient=0, normalize_activations=False)


def tied(selector, unit_norm=True):
    trackers = BASE.trackers if isinstance(selector, Rank) else BASE.trackers[:1]
    encoder = PreSelect(TiedAffine(D, S), selector)
    return replace(BASE, encoder=encoder, dictionary=Tied(S, D, unit_norm), trackers=trackers)


@pytest.fixture(scope="module")
def trained():
    recipe = tied(Relu())
    return recipe, run(recipe, batches(4), jax.random.key(0))[0]


def test_a_tied_gradient_is_the_sum_of_both_ways(trained):
    recipe, state = trained
    x = batches(1)[0]["x"]

    def by_hand(W, M):
        z = jax.nn.relu(x @ W + state.params["b_enc"][None])
        err = x - z @ M.T - state.params["b_dec"][None]
        return jnp.sum(err**2) / jnp.sum((x - x.mean(0, keepdims=True)) ** 2)

    W = state.params["W_enc"]
    into, out = jax.grad(by_hand, argnums=(0, 1))(W, W)
    found = jax.jit(recipe.grads)(state, {"x": x})[0]["W_enc"]
    conformance.assert_close(found, into + out, 1e-5)


def test_tied_columns_keep_norm_one_and_move_along_the_sphere(trained):
    recipe, state = trained
    np.testing.assert_allclose(jnp.linalg.norm(state.params["W_enc"], axis=0), np.ones(S), rtol=1e-5)
    g = {"W_enc": jax.random.normal(jax.random.key(1), (D, S))}
    along = jnp.sum(recipe.dictionary.tangent(state.params, g)["W_enc"] * state.params["W_enc"], axis=0)
    np.testing.assert_allclose(along, np.zeros(S), atol=1e-5)
    free = Tied(S, D, unit_norm=False)
    assert free.tangent(state.params, g) is g
    assert free.project(state.params) is state.params


def test_a_tied_coder_is_exported_with_a_matrix_for_each_way(trained):
    recipe, state = trained
    sae, x = recipe.export(state), batches(1)[0]["x"]
    z = jax.nn.relu(x @ state.params["W_enc"] + state.params["b_enc"][None])
    np.testing.assert_allclose(sae.encode(x).dense(), z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae(x), z @ state.params["W_enc"].T + state.params["b_dec"][None], rtol=1e-4, atol=1e-4)
    assert sae.W_enc.shape == (D, S)
    assert sae.W_dec.shape == (S, D)


def test_a_tied_recipe_takes_the_fused_pass_and_it_changes_nothing():
    recipe = tied(Rank(K))
    assert recipe.encoder.can_fuse(recipe.want)
    conformance.check_fused_equals_dense(recipe, jax.random.key(0))


def test_a_tied_encoder_refuses_another_dictionary():
    recipe = replace(tied(Relu()), dictionary=Unit(S, D))
    with pytest.raises(ConfigError, match="needs the dictionary Tied, which owns W_enc; found Unit"):
        recipe.init(jax.random.key(0), batches(1)[0])


def test_the_length_of_a_normalised_atom_means_nothing():
    recipe = replace(BASE, dictionary=Normalised(S, D))
    state, _ = run(recipe, batches(3), jax.random.key(0))
    longer = state.replace(params={**state.params, "W_dec": 3.0 * state.params["W_dec"]})
    x = batches(1)[0]
    np.testing.assert_allclose(recipe.export(state)(x["x"]), recipe.export(longer)(x["x"]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(recipe.export(longer).W_dec, axis=1), np.ones(S), rtol=1e-5)
    g = jax.jit(recipe.grads)(state, x)[0]["W_dec"]
    along = jnp.sum(g * state.params["W_dec"], axis=1)
    np.testing.assert_allclose(along, np.zeros(S), atol=1e-5 * float(jnp.abs(g).max()) * D)
