"""Selections over a whole batch, or down its columns, keep bit for bit the same codes on any number of devices."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxsae import parallel
from jaxsae.recipes import Programs, batch_topk, feature_choice
from jaxsae.testing.meshes import device_mesh

D, S, B = 12, 32, 48
SHAPES = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (8, 1), (1, 8), (2, 4), (4, 2)]
RECIPES = {
    "batch": batch_topk(D, S, 3.0, normalize_activations=False, candidates=4, aux_loss_coefficient=0.0),
    "column": feature_choice(D, S, 3, normalize_activations=False),
}
ROWS = {"x": np.random.default_rng(0).integers(-3, 4, (B, D)).astype(np.float32)}


def whole_numbers(params):
    """Weights for which every pre-activation is exact in f32, whatever the order of its sum, and ties abound."""
    rng = np.random.default_rng(1)
    return {name: rng.integers(-2, 3, a.shape).astype(np.float32) for name, a in params.items()}


def codes(recipe, mesh):
    """Dense codes by the fused and by the dense way."""
    programs = Programs(recipe, mesh, ROWS)
    state = programs.init(jax.random.key(0), ROWS)
    state = replace(state, params={**state.params, **whole_numbers(state.params)})
    if mesh is not None:
        state = jax.device_put(state, programs.placed)

    @jax.jit
    def run(state, batch):
        ctx = recipe.ctx(state)
        return [recipe.forward(state.params, batch, ctx, fused).sel.codes.dense() for fused in (True, False)]

    with parallel.use(mesh):
        return [np.asarray(a) for a in run(state, ROWS if mesh is None else jax.device_put(ROWS, programs.rows))]


@pytest.fixture(scope="module")
def alone():
    return {name: codes(recipe, None) for name, recipe in RECIPES.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_same_codes_on_any_mesh(name, shape, alone):
    for ours, expected in zip(codes(RECIPES[name], device_mesh(shape)), alone[name], strict=True):
        assert np.count_nonzero(expected) > B
        np.testing.assert_array_equal(ours, expected)
