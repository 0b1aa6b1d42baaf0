"""Fleets on meshes: members spread over `run` are what they are on one device."""

import re

import jax
import numpy as np
import pytest

from jaxsae import parallel, recipes
from jaxsae.data.sources import ArraySource
from jaxsae.errors import ConfigError
from jaxsae.recipes import Programs
from jaxsae.testing.conformance import assert_close, batches
from jaxsae.testing.members import D_IN, ROWS
from jaxsae.testing.meshes import BOUND, COMPILED
from jaxsae.train import CheckpointPolicy, LogPolicy, RunDir, fit
from jaxsae.train.fleet import HEALTH, Fleet, Member

STEPS = 6
TOPK = recipes.topk(D_IN, 64, 6, lr=1e-3, k_aux=6, dead_after_tokens=2 * ROWS)
BATCH = recipes.batch_topk(D_IN, 64, 6, lr=1e-3, k_aux=6, dead_after_tokens=2 * ROWS)
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 1e30)  # the last one diverges
# With k = 2 BatchTopK leaves rows with one latent, whose gradient at a tied start is 0 but for rounding.
MEMBERS, FULL = (
    tuple(Member(seed, (("k", k), ("lr", lr))) for seed, k in pairs for lr in LEARNING_RATES)
    for pairs in (((0, 2), (3, 6)), ((0, 5), (3, 6)))
)


def mesh_of(run, data=1, latent=1):
    return parallel.make_mesh(data, latent, jax.devices()[: run * data * latent], run)


def train(fleet, mesh, zero=False):
    data = batches(STEPS)
    programs = Programs(fleet, mesh, data[0], zero=zero)
    put = (lambda b: b) if mesh is None else (lambda b: jax.device_put(b, programs.rows))
    states = programs.init(jax.random.key(0), put(data[0]))
    compiled = 0
    for i, batch in enumerate(data):
        states, metrics = programs.step(states, put(batch))
        compiled = len(COMPILED) if i == 0 else compiled
    assert len(COMPILED) == compiled, "a step after the first was compiled again"
    return programs, states, metrics


def assert_same(found, expected):
    """States, metrics, and who was stopped when."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert_close(ours, theirs, BOUND)


def told(states, metrics):
    """Of runs that go on: a stopped one keeps where it was, and its metrics mean nothing."""
    on = np.asarray(states.track[HEALTH]["alive"])
    return jax.tree.map(lambda a: np.asarray(a)[on], (states.params, states.track, metrics))


@pytest.mark.parametrize(
    ("recipe", "together", "shape"),
    [
        (TOPK, "scan", (8, 1, 1)),
        (BATCH, "vmap", (4, 1, 1)),
        (TOPK, "vmap", (1, 2, 4)),
        (BATCH, "scan", (1, 2, 4)),
        pytest.param(TOPK, "scan", (1, 1, 8), marks=pytest.mark.slow),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_members_are_what_they_are_on_one_device(recipe, together, shape):
    fleet = Fleet(recipe, FULL if recipe is BATCH else MEMBERS, together)
    _, expected, metrics = train(fleet, None)
    _, states, found = train(fleet, mesh_of(*shape))
    assert_same(told(states, found), told(expected, metrics))
    assert states.track[HEALTH]["alive"].tolist() == [True, True, True, False] * 2
    np.testing.assert_array_equal(states.track[HEALTH]["stopped"], expected.track[HEALTH]["stopped"])


def test_members_lie_apart_and_nothing_of_theirs_travels():
    """Only metrics are brought together, one number of each member."""
    programs, states, _ = train(Fleet(TOPK, MEMBERS), mesh_of(8))
    assert {s.data.shape for s in states.params["W_enc"].addressable_shards} == {(1, D_IN, 64)}
    text = programs.lower(batches(1)[0]).compile().as_text()
    moved = re.findall(
        r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)\(", text
    )
    assert set(moved) <= {"8", "1"}, moved


def test_zero_spreads_the_moments_of_members_too():
    _, states, _ = train(Fleet(TOPK, MEMBERS), mesh_of(1, 2, 4), zero=True)
    moments = [a for a in jax.tree.leaves(states.opt) if a.ndim == 3]
    assert {s.data.size for a in moments for s in a.addressable_shards} == {8 * D_IN * 64 // 8}


def test_meshes_that_do_not_suit_are_refused():
    for shape, words in [((3, 1, 1), "8 members cannot be spread evenly"), ((2, 1, 2), "not over both")]:
        with pytest.raises(ConfigError, match=words):
            Programs(Fleet(TOPK, MEMBERS), mesh_of(*shape), batches(1)[0])


@pytest.mark.slow
def test_a_fleet_goes_on_on_another_mesh(tmp_path):
    fleet, rows = Fleet(TOPK, MEMBERS), np.concatenate([b["x"] for b in batches(8)])
    options = {"log": LogPolicy(progress=False), "checkpoint": CheckpointPolicy(every_steps=4)}

    def run(path, steps, mesh):
        with RunDir(path).open() as run_dir:
            source = ArraySource(rows, batch_size=ROWS)
            return fit(fleet, source, steps, key=jax.random.key(1), mesh=mesh, run_dir=run_dir, **options).state

    expected = run(tmp_path / "alone", 8, None)
    run(tmp_path / "moved", 4, mesh_of(8))
    found = run(tmp_path / "moved", 8, mesh_of(1, 2, 4))
    assert_close((found.params, found.track), (expected.params, expected.track), BOUND)
