"""Norm matching by hand, against the authors' algorithm written out, and its certificate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.objective import Afa
from jaxsae.sae import AfaRule, Ctx, DatasetNorm, DenseCodes, Free, Out, Rank, Rows, Selection
from jaxsae.testing.conformance import batches

D, S = 12, 32


def keep(score, length, full=False, mask=None):
    score = jnp.asarray(score, jnp.float32)
    x = jnp.asarray(length, jnp.float32)[:, None] * jnp.array([[0.6, 0.8]])
    rows = Rows(x, x, jnp.ones(len(x)) if mask is None else jnp.asarray(mask))
    ctx = Ctx(jnp.int32(0), None, {}, {}, rows=rows)
    kept, exact = AfaRule().keep({}, score, x, ctx, full)
    return np.asarray(kept).tolist(), bool(exact)


def test_the_prefix_nearest_in_length_is_kept():
    """Scores 3, 4 sorted 4, 3: lengths 4, 5.  A row of length 4.4 takes one, of 4.6 two, of 0.1 still one."""
    kept, exact = keep([[4.0, 3.0, 0.5]] * 3, [4.4, 4.6, 0.1])
    assert kept == [[True, False, False], [True, True, False], [True, False, False]]
    assert exact


def test_a_list_that_does_not_reach_the_row_is_not_certified():
    assert keep([[4.0, 3.0]], [6.0])[1] is False
    assert keep([[4.0, 0.0]], [6.0])[1] is True  # nothing positive is left to add
    assert keep([[4.0, 3.0]], [5.0])[1] is True
    assert keep([[4.0, 3.0], [4.0, 3.0]], [5.0, 6.0], mask=[1.0, 0.0])[1] is True  # a padded row misses nothing


def reference(x, p):
    """The authors' forward pass, literally: squares sorted, cumulated, last one huge, roots, argmin of the distance."""
    centred = x - p["b_dec"]
    acts = np.maximum(centred @ p["W_enc"] + p["b_enc"], 0)
    square = (acts * np.linalg.norm(p["W_dec"], axis=1)) ** 2
    order = np.argsort(-square, axis=1, kind="stable")
    reach = np.cumsum(np.take_along_axis(square, order, 1), 1)
    reach[:, -1] = 1e8
    k = np.abs(np.sqrt(reach) - np.linalg.norm(centred, axis=1, keepdims=True)).argmin(1) + 1
    mask = np.zeros_like(acts, bool)
    np.put_along_axis(mask, order, np.arange(acts.shape[1])[None] < k[:, None], 1)
    return acts * mask


@pytest.mark.parametrize("capacity", [6, S])
def test_codes_are_those_of_the_authors(capacity):
    data = batches(4, d=D)
    recipe = recipes.top_afa(D, S, capacity=capacity, normalize_activations=False, lr=1e-2)
    state = recipes.init(recipe, jax.random.key(0), data[0])
    for batch in data:
        state, _ = recipes.step(recipe, state, batch)
    x = np.asarray(data[0]["x"], np.float64)
    codes = recipe.export(state).encode(data[0]["x"]).dense()
    expected = reference(x, {n: np.asarray(a, np.float64) for n, a in state.params.items()})
    np.testing.assert_array_equal(codes != 0, expected != 0)
    np.testing.assert_allclose(codes, expected, rtol=1e-4, atol=1e-5)
    l0 = (expected != 0).sum(1)
    assert l0.max() > l0.min(), "the number of latents should differ from row to row"


def test_a_short_list_changes_no_gradient():
    """Capacity 6 misses on these rows; taking its answer as it is would be wrong by far."""
    data = batches(1, d=D)
    short, long = (recipes.top_afa(D, S, capacity=c, normalize_activations=False) for c in (6, S))
    state = recipes.init(short, jax.random.key(0), data[0])
    g, (exact, *_) = short.grads(state, data[0])
    assert not bool(exact)
    full, _ = long.grads(state, data[0])
    wrong = jax.grad(short.loss, has_aux=True)(*short.split(state.params), state, data[0])[0]
    np.testing.assert_allclose(g["W_dec"], full["W_dec"], rtol=1e-4, atol=1e-6)
    assert float(jnp.max(jnp.abs(wrong["W_dec"] - full["W_dec"]))) > 0.01


def test_the_term_is_the_mean_squared_difference_of_lengths():
    z, x = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[0.0, 2.0], [1.0, 0.0]])
    W = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    out = Out(Rows(x, x, jnp.ones(2)), {"W_dec": W}, Selection(DenseCodes(z)), x, x, x, Free(2, 2))
    # norms of atoms 1 and 2: code of length sqrt(9 + 64)
    np.testing.assert_allclose(Afa()(out, None), [(np.sqrt(73) - 2) ** 2, 1.0], rtol=1e-6)


def test_a_row_that_keeps_nothing_gives_no_nan():
    """The derivative of a norm at 0 is not a number in plain autodiff."""

    def loss(z):
        x = jnp.ones((1, 2))
        out = Out(Rows(x, x, jnp.ones(1)), {"W_dec": jnp.eye(2)}, Selection(DenseCodes(z)), x, x, x, Free(2, 2))
        return Afa()(out, None)[0]

    np.testing.assert_array_equal(jax.grad(loss)(jnp.zeros((1, 2))), 0)
    np.testing.assert_allclose(
        jax.grad(loss)(jnp.array([[3.0, 4.0]]))[0], 2 * (5 - np.sqrt(2)) * np.array([0.6, 0.8]), rtol=1e-5
    )


def test_lengths_in_two_units_are_refused():
    recipe = recipes.top_afa(D, S, normalize_activations=False)
    plain = dataclasses.replace(recipe.encoder, selector=Rank(S, AfaRule()))
    with pytest.raises(ConfigError, match="by_norm=True"):
        dataclasses.replace(recipe, norm=DatasetNorm(), encoder=plain)
    dataclasses.replace(recipe, norm=DatasetNorm())
