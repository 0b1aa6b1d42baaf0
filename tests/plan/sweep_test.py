"""A plan of a sweep is of the program that trains all of its runs."""

import dataclasses
import json
import re

import pytest

from jaxsae.cli.plan import Plan as Command
from jaxsae.errors import ConfigError
from jaxsae.kernels._dispatch import compiling_for
from jaxsae.parallel import MeshConfig
from jaxsae.plan import open_target, page, plan
from jaxsae.plan.measure import Measured
from jaxsae.plan.roofline import roofline
from jaxsae.plan.topology import CHIPS
from jaxsae.recipes import topk
from jaxsae.train import Fleet, Member, TrainConfig
from jaxsae.train.run import method

D, S, B, RUNS = 32, 1024, 64, 4
ONE = TrainConfig(topk.Config(d_in=D, d_sae=S, k=4), cache="none", train_batch_size_tokens=B)
SWEEP = ("lr=1e-4,3e-4", "seed=0,1")


def planned(sweep=(), mesh=None, **changes):
    config = dataclasses.replace(ONE, sweep=sweep, mesh=mesh or MeshConfig(), **changes)
    return plan(config, open_target("local"), suggest=False)


@pytest.fixture(scope="module")
def one():
    return planned(mesh=MeshConfig(data=2, latent=4))


@pytest.fixture(scope="module")
def all_runs():
    return planned(SWEEP, MeshConfig(data=2, latent=4))


def test_it_keeps_the_state_of_every_run_and_one_batch(one, all_runs):
    for part in ("parameters", "moments"):
        assert all_runs.measured.parts[part] == RUNS * one.measured.parts[part]
    assert all_runs.measured.parts["batch"] == one.measured.parts["batch"]
    assert all_runs.measured.peak > RUNS * (one.measured.kept - one.measured.parts["batch"])


def test_a_device_receives_for_every_run_in_turn(one, all_runs):
    """One loop over the runs holds the collectives: each counts as often as it turns."""
    assert {c.times for c in one.measured.collectives} == {1}
    assert RUNS in {c.times for c in all_runs.measured.collectives}
    assert all_runs.measured.received("loop") == 0
    for where in ("always", "branch"):
        single = one.measured.received(where)
        assert all_runs.measured.received(where) == pytest.approx(RUNS * single, rel=0.05), where


def test_runs_on_devices_of_their_own_receive_next_to_nothing(one):
    found = planned(("seed=0,1,2,3,4,5,6,7",), MeshConfig(run=8))
    assert found.mesh == {"run": 8, "data": 1, "latent": 1}
    alone = planned()
    assert found.measured.parts["parameters"] == alone.measured.parts["parameters"]
    assert found.measured.received() < one.measured.received("always") / 10
    assert "Mesh run 8 x data 1 x latent 1" in page(found)


def test_page_and_data_show_the_number_of_runs(one, all_runs):
    text, data = page(all_runs), json.loads(json.dumps(all_runs.to_json()))
    assert "4 runs together" in text
    assert f"Batch of {B} rows, which all 4 runs of the sweep read" in text
    assert f"| params.W_enc | 4 x {D} x {S:,} | float32 | run, whole, latent |" in text
    assert re.search(r"\| always, 4 times \|", text)
    assert (data["runs"], one.to_json()["runs"]) == (RUNS, 1)
    assert "runs together" not in page(one)
    assert all_runs.exported == one.exported  # one run after another is exported


def test_the_largest_k_of_a_sweep_is_that_of_the_program():
    assert planned(("k=2,16",)).recipe.encoder.selector.cap == 16


@pytest.mark.parametrize("sweep", [("nonsense=3",), ("lr=",), ("lr=1e-4", "lr=1e-3"), ("seed=-1",)])
def test_what_training_refuses_is_refused_in_the_same_words(sweep):
    with pytest.raises(ConfigError) as trained:
        method(dataclasses.replace(ONE, sweep=sweep), D)
    with pytest.raises(ConfigError, match=re.escape(str(trained.value))):
        planned(sweep)


def test_a_mesh_that_cannot_hold_the_runs_is_refused():
    with pytest.raises(ConfigError, match=r"the 4 runs of this sweep cannot be spread over mesh\.run = 8"):
        planned(SWEEP, MeshConfig(run=8))
    with pytest.raises(ConfigError, match="not over both"):
        planned(SWEEP, MeshConfig(run=2, data=2, latent=2))


def test_the_command_refuses_nonsense(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "type: train\nrecipe: {type: recipe.topk, d_in: 64, d_sae: 1024, k: 8}\ncache: none\n"
        'train_batch_size_tokens: 256\nsweep: ["nonsense=3"]\n'
    )
    with pytest.raises(ConfigError, match="'nonsense' cannot be swept"):
        Command(str(file)).run()


def test_least_times_are_of_all_runs_of_a_device():
    """Of tokens, each is read by every run: a step of the sweep takes as long as its runs in turn."""
    measured = Measured(True, 100, {"parameters": 10**9, "moments": 2 * 10**9})

    def seconds(runs, shape):
        parts = roofline(topk(D, S, 4), runs, B, shape, measured, CHIPS["v5e"])
        return {p.name: p.seconds for p in parts}

    single, spread = seconds(1, {"data": 2, "latent": 4}), seconds(8, {"data": 2, "latent": 4})
    apart = seconds(8, {"run": 8})
    for part in ("encoder product", "rows of chosen latents"):
        assert spread[part] == pytest.approx(8 * single[part])
        assert apart[part] == pytest.approx(seconds(1, {})[part])
    assert spread["optimiser"] == single["optimiser"]  # by the bytes of the compiled step, which has all runs


def test_turns_are_taken_as_on_the_platform_that_will_train():
    fleet = Fleet(topk(D, S, 4), (Member(0), Member(1)))
    for kind, platform, in_turn in [("cpu", "cpu", True), ("TPU v5 lite", "tpu", False), ("NVIDIA H100", "gpu", False)]:
        with compiling_for(platform, kind):
            assert fleet._in_turn() is in_turn
            assert dataclasses.replace(fleet, together="scan")._in_turn()
