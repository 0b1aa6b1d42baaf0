"""The same results on any mesh: same initial weights, same batches, 20 steps, one compilation."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxsae import parallel
from jaxsae.objective import Constant
from jaxsae.recipes import Programs, relu_l1, topk
from jaxsae.testing.conformance import assert_close, batches
from jaxsae.testing.members import D_IN, ROWS

MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]
#: After 20 steps every leaf of the state agrees within this share of its largest entry; sums are taken in another
#: order on each mesh, nothing else differs.
BOUND = 2e-5
STEPS = 20
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **__: COMPILED.append(name) if name.endswith("backend_compile_duration") else None
)
RECIPES = {
    # d_sae 256, k 2: three latents of four die, so AuxK works on every mesh, and some devices own few entries
    "topk": topk(D_IN, 256, 2, lr=1e-2, k_aux=6, dead_after_tokens=ROWS),
    "topk, running mean": topk(D_IN, 64, 4, lr=1e-2, k_aux=6, average_decay=0.9),
    "relu_l1": relu_l1(D_IN, 64, lr=1e-2),
}


def train(recipe, mesh, data, zero=False):
    programs = Programs(recipe, mesh, data[0], zero=zero)
    put = (lambda x: x) if mesh is None else (lambda x: jax.device_put(x, programs.rows))
    state = programs.init(jax.random.key(0), jax.tree.map(put, data[0]))
    compiled = 0
    for i, batch in enumerate(data):
        state, metrics = programs.step(state, jax.tree.map(put, batch))
        compiled = len(COMPILED) if i == 0 else compiled
    assert len(COMPILED) == compiled, "a step after the first was compiled again"
    return programs, state, metrics


@pytest.fixture(scope="module")
def alone():
    return {name: train(recipe, None, batches(STEPS)) for name, recipe in RECIPES.items()}


def device_mesh(shape):
    return parallel.make_mesh(*shape, jax.devices()[: shape[0] * shape[1]])


#: The dense recipe has no op of ours that knows of meshes: one mesh shows it.
CASES = [("topk", shape) for shape in MESHES] + [(name, (2, 4)) for name in RECIPES if name != "topk"]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_all_meshes_agree(name, shape, alone):
    _, expected, metrics_1 = alone[name]
    programs, state, metrics = train(RECIPES[name], device_mesh(shape), batches(STEPS))
    assert_close((state.params, state.track, metrics), (expected.params, expected.track, metrics_1), BOUND)
    placed = jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), state, programs.placed)
    assert all(jax.tree.leaves(placed))


def test_gradients_in_bf16_agree_where_steps_need_not():
    """Adam's first move is the sign of a gradient, and one that is nearly 0 rounds to either sign: so one gradient.

    One bf16 rounding is 4e-3 of a number.
    """
    recipe, data, mesh = topk(D_IN, 64, 4, k_aux=6, average_decay=0.9, bfloat16=True), batches(1), device_mesh((2, 4))
    programs = Programs(recipe, mesh, data[0])
    state = programs.init(jax.random.key(0), jax.device_put(data[0], programs.rows))
    with parallel.use(mesh):
        ours, _ = jax.jit(recipe.grads)(state, jax.device_put(data[0], programs.rows))
    alone_state = Programs(recipe, None, data[0]).init(jax.random.key(0), data[0])
    expected, _ = jax.jit(recipe.grads)(alone_state, data[0])
    assert_close(ours, expected, 2e-2)


def test_initial_weights_are_the_same_bits_and_never_whole():
    recipe, data = RECIPES["topk"], batches(1)
    plain = Programs(recipe, None, data[0]).init(jax.random.key(0), data[0])
    programs = Programs(recipe, device_mesh((1, 8)), data[0])
    state = programs.init(jax.random.key(0), data[0])
    for name in ("W_enc", "W_dec"):
        np.testing.assert_array_equal(state.params[name], plain.params[name])
        assert {s.data.size for s in state.params[name].addressable_shards} == {256 * D_IN // 8}
    text = programs._init.lower(jax.random.key(0), data[0]).compile().as_text()
    assert f"f32[256,{D_IN}]" not in text


def test_zero_spreads_moments_and_changes_nothing(alone):
    recipe = RECIPES["topk"]
    _, state, _ = train(recipe, device_mesh((4, 2)), batches(STEPS), zero=True)
    expected = alone["topk"][1]
    assert_close((state.params, state.opt), (expected.params, expected.opt), BOUND)
    moments = [a for a in jax.tree.leaves(state.opt) if a.size == 256 * D_IN]
    assert moments
    assert {s.data.size for a in moments for s in a.addressable_shards} == {256 * D_IN // 8}


def test_more_devices_do_not_send_numbers_to_the_host():
    programs = train(RECIPES["topk"], device_mesh((2, 4)), batches(2))[0]
    text = programs.lower(batches(1)[0]).compile().as_text()
    assert not [w for w in ("infeed", "outfeed", "send(", "recv(", "callback") if w in text]


def test_step_on_a_mesh_frees_the_old_state():
    recipe, data = RECIPES["topk"], batches(1)
    programs = Programs(dataclasses.replace(recipe, lr_schedule=Constant()), device_mesh((2, 4)), data[0])
    state = programs.init(jax.random.key(0), data[0])
    programs.step(state, jax.tree.map(lambda x: jax.device_put(x, programs.rows), data[0]))
    assert state.params["W_enc"].is_deleted()
