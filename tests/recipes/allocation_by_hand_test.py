"""Gradients of the allocation methods against literal transcriptions: plain jnp, dense codes, plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.testing.conformance import assert_close, batches

D, S, K, B = 12, 32, 4, 48
TRAINED = ("W_enc", "b_enc", "W_dec", "b_dec")


def standardised(x):
    return (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5)


def pre_of(p, x):
    return (x - p["b_dec"][None]) @ p["W_enc"] + p["b_enc"][None]


def unexplained(p, x, z):
    err = x - z @ p["W_dec"] - p["b_dec"][None]
    return jnp.sum(err**2) / jnp.sum((x - x.mean(0, keepdims=True)) ** 2)


def by_column(p, x):
    """m = 4 * 48 / 32 = 6 best rows of each latent."""
    pre = pre_of(p, x)
    place = jnp.argsort(jnp.argsort(-jax.lax.stop_gradient(pre), axis=0), axis=0)
    return unexplained(p, x, jnp.where(place < K * B // S, jax.nn.relu(pre), 0.0))


def by_batch(p, x):
    """The 192 best entries of the whole matrix."""
    pre = pre_of(p, x)
    cut = jnp.sort(jax.lax.stop_gradient(pre).ravel())[-K * B]
    return unexplained(p, x, jnp.where(pre >= cut, jax.nn.relu(pre), 0.0))


def by_group(p, x):
    """The best of each of 4 blocks of 8 latents."""
    pre = pre_of(p, x).reshape(B, K, S // K)
    best = jnp.argmax(jax.lax.stop_gradient(pre), axis=2)[..., None]
    z = jnp.where(jnp.arange(S // K)[None, None] == best, jax.nn.relu(pre), 0.0)
    return unexplained(p, x, z.reshape(B, S))


def by_norm(p, x):
    """Prefix whose length is nearest to ||x - b_dec||, plus (1/16) mean (||z|| - ||x||)^2; atoms have norm 1."""
    acts = jax.nn.relu(pre_of(p, x))
    fixed, centred = jax.lax.stop_gradient((acts, x - p["b_dec"][None]))
    order = jnp.argsort(-fixed, axis=1)
    reach = jnp.sqrt(jnp.cumsum(jnp.sort(fixed, axis=1)[:, ::-1] ** 2, axis=1)).at[:, -1].set(jnp.inf)
    count = 1 + jnp.argmin(jnp.abs(reach - jnp.linalg.norm(centred, axis=1, keepdims=True)), axis=1)
    keep = jnp.argsort(order, axis=1) < count[:, None]
    z = jnp.where(keep, acts, 0.0)
    # Codes count with the norms of their atoms, which are 1 but have a gradient.
    lengths = jnp.sqrt(jnp.sum((z * jnp.linalg.norm(p["W_dec"], axis=1)[None]) ** 2, axis=1))
    return unexplained(p, x, z) + jnp.mean((lengths - jnp.linalg.norm(x, axis=1)) ** 2) / 16


CASES = {
    "feature_choice": (recipes.feature_choice, by_column, {"k": K}),
    "mutual_choice": (recipes.mutual_choice, by_batch, {"k": K}),
    "group_max": (recipes.group_max, by_group, {"k": K}),
    "top_afa": (recipes.top_afa, by_norm, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_the_transcription(name):
    make, loss, options = CASES[name]
    recipe, data = make(D, S, lr=1e-2, aux_loss_coefficient=0.0, **options), batches(4, d=D)
    state = recipes.init(recipe, jax.random.key(0), data[0])
    for batch in data[:3]:
        state, _ = recipes.step(recipe, state, batch)
    grads, _ = recipe.grads(state, data[3])
    value = recipe.loss(*recipe.split(state.params), state, data[3])[0]
    p = {n: state.params[n] for n in TRAINED}
    expected, by_hand = jax.value_and_grad(loss)(p, standardised(data[3]["x"]))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_close({n: grads[n] for n in TRAINED}, by_hand, 2e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipes.group_max(D, S, k=5), "32 latents cannot be cut into 5 equal groups"),
        (lambda: recipes.feature_choice(D, S, k=33), "k must lie between 1 and d_sae = 32, found 33"),
        (lambda: recipes.mutual_choice(D, S, k=0), "k must lie between 1 and d_sae = 32, found 0"),
        (lambda: recipes.adaptive_k(D, S, k=4, low=2.0, high=1.0), "low <= high"),
    ],
)
def test_impossible_recipes_are_refused_when_built(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
