"""The same results on any mesh: same initial weights, same batches, 20 steps, one compilation."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxsae import parallel, recipes
from jaxsae.errors import ConfigError
from jaxsae.objective import Constant
from jaxsae.recipes import Programs, topk
from jaxsae.testing.conformance import assert_close, batches
from jaxsae.testing.members import D_IN, ROWS, enrolled, published
from jaxsae.testing.meshes import BOUND, COMPILED, STEPS, check_meshes_agree, device_mesh, train_on

MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]
# d_sae 256, k 2: three latents of four die, so AuxK works on every mesh, and some devices own few entries
FEW = topk(D_IN, 256, 2, lr=1e-2, k_aux=6, dead_after_tokens=ROWS)
METHODS, MEMBERS = published(), enrolled()
NAMED = {
    "topk, few entries": FEW,
    **{name: METHODS[name] for name in ("batch_topk", "jumprelu", "matryoshka")},
    # a list so short that the dense way is taken again and again
    "batch_topk, short list": recipes.batch_topk(D_IN, 32, 4, lr=1e-2, candidates=5, k_aux=6, dead_after_tokens=ROWS),
}
#: One member of each slot here; the others are marked slow.
ONE_OF_EACH = (
    "view.scored",
    "norm.standardise",
    "encoder.gated",
    "encode.pursuit",
    "selector.column",
    "rule.afa",
    "dictionary.tied",
    "readout.bias",
    "levels.by_rank",
    "term.orthogonality",
    "reducer.tilted",
    "schedule.linear",
    "tracker.density",
    "transform.resample",
)
#: With batches of seed 0 one pre-activation lies on the edge of the window of a threshold's gradient, to the last bit.
SEEDS = {"term.target_l0": 1}
CASES = [(name, shape) for name in NAMED for shape in (MESHES if "short" not in name else [(2, 4)])]


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_all_meshes_agree(name, shape, key):
    check_meshes_agree(NAMED[name], key, [shape])


def test_the_short_list_was_too_short_at_times(key):
    """Otherwise the case above shows nothing."""
    data = batches(4)
    state = recipes.init(NAMED["batch_topk, short list"], key, data[0])
    exact = []
    for batch in data:
        state, metrics = recipes.step(NAMED["batch_topk, short list"], state, batch)
        exact.append(float(metrics["exact"]))
    assert 0.0 in exact


@pytest.mark.parametrize("tag", [t if t in ONE_OF_EACH else pytest.param(t, marks=pytest.mark.slow) for t in MEMBERS])
def test_every_slot_member_agrees(tag, key):
    check_meshes_agree(MEMBERS[tag], key, seed=SEEDS.get(tag, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_published_method_agrees(name, key):
    check_meshes_agree(METHODS[name], key)


@pytest.mark.parametrize("recipe", [NAMED["batch_topk"], METHODS["feature_choice"]], ids=lambda r: r.name)
def test_eight_devices_compile_as_much_as_one(recipe):
    """And no step after the first moves anything between host and devices: `train_on` forbids it."""
    counts = []
    for shape in [(1, 1), (8, 1)] * 2:  # at first, small programs that place arrays are compiled too
        before = len(COMPILED)
        train_on(recipe, device_mesh(shape), batches(3))
        counts.append(len(COMPILED) - before)
    assert counts[3] <= counts[2]


@pytest.mark.parametrize(
    ("shape", "d_sae", "rows", "zero", "message"),
    [
        ((1, 8), 100, 64, False, "d_sae = 100 cannot be spread over latent = 8 devices; .*nearest are 96 or 104"),
        ((8, 1), 104, 60, False, "a batch of 60 rows cannot be spread over data = 8 devices; .*nearest are 56 or 64"),
        ((8, 1), 100, 64, True, "with zero, the moments of d_sae = 100 latents are spread over 8 devices"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(shape, d_sae, rows, zero, message):
    batch = {"x": np.ones((rows, D_IN), np.float32)}
    with pytest.raises(ConfigError, match=message):
        Programs(topk(D_IN, d_sae, k=4), device_mesh(shape), batch, zero=zero)


def test_a_batch_that_the_mesh_does_not_divide_is_not_lowered():
    batch = lambda rows: {"x": jax.ShapeDtypeStruct((rows, D_IN), np.float32)}  # noqa: E731
    programs = Programs(topk(D_IN, 104, k=4), device_mesh((8, 1)), batch(64))
    with pytest.raises(ConfigError, match="a batch of 60 rows cannot be spread over data = 8"):
        programs.lower(batch(60))


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
    recipe, data = FEW, batches(1)
    plain = Programs(recipe, None, data[0]).init(jax.random.key(0), data[0])
    programs = Programs(recipe, device_mesh((1, 8)), data[0])
    state = programs.init(jax.random.key(0), data[0])
    for name in ("W_enc", "W_dec"):
        np.testing.assert_array_equal(state.params[name], plain.params[name])
        assert {s.data.size for s in state.params[name].addressable_shards} == {256 * D_IN // 8}
    text = programs._init.lower(jax.random.key(0), data[0]).compile().as_text()
    assert f"f32[256,{D_IN}]" not in text


def test_zero_spreads_moments_and_changes_nothing():
    _, state, _ = train_on(FEW, device_mesh((4, 2)), batches(STEPS), zero=True)
    _, expected, _ = train_on(FEW, None, batches(STEPS))
    assert_close((state.params, state.opt), (expected.params, expected.opt), BOUND)
    moments = [a for a in jax.tree.leaves(state.opt) if a.size == 256 * D_IN]
    assert moments
    assert {s.data.size for a in moments for s in a.addressable_shards} == {256 * D_IN // 8}


def test_more_devices_do_not_send_numbers_to_the_host():
    programs = train_on(FEW, device_mesh((2, 4)), batches(2))[0]
    text = programs.lower(batches(1)[0]).compile().as_text()
    assert not [w for w in ("infeed", "outfeed", "send(", "recv(", "callback") if w in text]


def test_step_on_a_mesh_frees_the_old_state():
    recipe, data = FEW, batches(1)
    programs = Programs(dataclasses.replace(recipe, lr_schedule=Constant()), device_mesh((2, 4)), data[0])
    state = programs.init(jax.random.key(0), data[0])
    programs.step(state, jax.tree.map(lambda x: jax.device_put(x, programs.rows), data[0]))
    assert state.params["W_enc"].is_deleted()
