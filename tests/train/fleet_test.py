"""Fleets: every run equals the same run alone, one compilation, divergence stops one run only."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import io, recipes
from jaxsae.cli.train import print_table
from jaxsae.config import from_dict, read_file
from jaxsae.data.manifest import Manifest
from jaxsae.data.sources import ArraySource
from jaxsae.data.writer import Block, CacheWriter
from jaxsae.errors import ConfigError
from jaxsae.io.digest import digests
from jaxsae.report import open_subject
from jaxsae.sae import Meta
from jaxsae.train import (
    CheckpointPolicy,
    Diverged,
    EvaluatePolicy,
    LogPolicy,
    RunDir,
    TrainConfig,
    WatchPolicy,
    export,
    fit,
    read_records,
    train,
)
from jaxsae.train.fleet import HEALTH, Fleet, Member, parse_sweep
from jaxsae.train.lookout import Lookout
from jaxsae.train.loop import Fitted
from jaxsae.train.member_export import export_members

D, B = 16, 64
ROWS = np.random.default_rng(0).standard_normal((1024, 4), np.float32) @ np.random.default_rng(1).standard_normal(
    (4, D), np.float32
)
RECIPE = recipes.topk(D, 48, k=6, lr=1e-3, k_aux=8, dead_after_tokens=200)
MEMBERS = (
    Member(0, (("k", 2), ("lr", 1e-3))),
    Member(1, (("k", 4), ("lr", 3e-3))),
    Member(1, (("k", 6), ("lr", 1e-3))),
)


def batch(step: int) -> dict[str, jax.Array]:
    return {"x": jnp.asarray(ROWS[np.random.default_rng(step).integers(0, len(ROWS), B)])}


def go(recipe, steps: int, **hyper):
    state = recipes.init(recipe, jax.random.key(1), batch(0), (), hyper or None)
    step = jax.jit(recipe.step)
    for i in range(steps):
        state, metrics = step(state, batch(i))
    return state, metrics


@pytest.mark.parametrize("together", ["scan", "vmap"])
def test_every_run_equals_the_same_run_alone(together):
    fleet = Fleet(RECIPE, MEMBERS, together)
    states, metrics = go(fleet, 6)
    alone, last = go(RECIPE, 6, k=4, lr=3e-3)
    ours = fleet.member(states, 1)
    assert int(ours.step) == 6
    for name, value in alone.params.items():
        np.testing.assert_allclose(ours.params[name], value, rtol=0, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(metrics["loss"][1], last["loss"], rtol=1e-4)
    np.testing.assert_array_equal(np.round(metrics["l0"]), [2, 4, 6])


@pytest.mark.parametrize("together", ["scan", "vmap"])
def test_a_diverging_run_stops_where_it_was_finite_and_disturbs_nobody(together):
    members = (Member(1, (("lr", 1e-3),)), Member(1, (("lr", 1e30),)))
    fleet = Fleet(RECIPE, members, together)
    states, metrics = go(fleet, 5)
    health = states.track[HEALTH]
    assert health["alive"].tolist() == [True, False]
    assert 0 <= int(health["stopped"][1]) < 5
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(states.params))
    alone, _ = go(RECIPE, 5, lr=1e-3)
    np.testing.assert_allclose(states.params["W_dec"][0], alone.params["W_dec"], rtol=0, atol=2e-5)
    assert metrics["alive"].tolist() == [True, False]


def test_a_sweep_traces_its_step_once():
    fleet, traces = Fleet(RECIPE, MEMBERS), []

    def step(states, x):
        traces.append(1)
        return fleet.step(states, x)

    step, states = jax.jit(step), jax.jit(fleet.init)(None, batch(0))
    for i in range(3):
        states, _ = step(states, batch(i))
    assert len(traces) == 1


def test_lines_of_a_sweep():
    names = [m.name for m in parse_sweep(["lr=1e-4,3e-4", "seed=0,5"], seed=9, grid=False)]
    assert names == ["lr=0.0001,seed=0", "lr=0.0003,seed=5"]
    assert [m.seed for m in parse_sweep(["k=2,4"], seed=9)] == [9, 9]
    for lines, grid, message in [
        (["lr"], True, "expected a line such as"),
        (["lr=a,b"], True, "expected a line such as"),
        (["lr=1,inf"], True, "expected a line such as"),
        (["lr=1e39"], True, "1e\\+39 is beyond float32"),
        (["lr=1", "lr=2"], True, "stands twice"),
        (["seed=0.5"], True, "whole number"),
        (["seed=0,4294967296"], True, "from 0 to 4294967295, found 4294967296"),
        (["lr=1,2", "seed=0,1,2"], False, "lists of one length"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_sweep(lines, seed=0, grid=grid)


def test_what_cannot_be_swept_is_refused_with_what_can():
    with pytest.raises(ConfigError, match=r"'d_sae' cannot be swept.*possible: .*lr"):
        Fleet(RECIPE, (Member(0, (("d_sae", 64),)),))
    with pytest.raises(ConfigError, match="k = 7 does not fit the 6 candidates"):
        Fleet(RECIPE, (Member(0, (("k", 7),)),))
    with pytest.raises(ConfigError, match=r"'k' of a sweep counts something, so that it has to be whole, found 2\.5"):
        Fleet(RECIPE, (Member(0, (("k", 2.5),)),))
    with pytest.raises(ConfigError, match=r"'k' of a sweep counts something, so that it has to be whole, found inf"):
        Fleet(RECIPE, (Member(0, (("k", float("inf")),)),))
    with pytest.raises(ConfigError, match="expected lr to be a finite number, 0 or more, found nan"):
        Fleet(RECIPE, (Member(0, (("lr", float("nan")),)),))
    with pytest.raises(ConfigError, match="a fleet's member must be a whole number"):
        Member(-1)
    with pytest.raises(ConfigError, match="dead_after_tokens = 10000000000 is beyond 32 bits"):
        Fleet(RECIPE, (Member(0, (("dead_after_tokens", 1e10),)),))
    with pytest.raises(ConfigError, match="same scalars"):
        Fleet(RECIPE, (Member(0, (("k", 4),)), Member(1)))


def test_fractions_are_swept_whatever_number_the_recipe_was_given():
    whole = recipes.relu_l1(d_in=D, d_sae=48, l1_coefficient=5)
    fleet = Fleet(whole, tuple(Member(0, (("l1_coefficient", v),)) for v in (0.25, 0.5)))
    assert fleet.init(None, batch(0)).hyper["l1_coefficient"].tolist() == [0.25, 0.5]
    mean_k = recipes.batch_topk(d_in=D, d_sae=48, k=4)
    assert Fleet(mean_k, (Member(0, (("k", 2.5),)),)).init(None, batch(0)).hyper["k"].tolist() == [2.5]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "acts"
    writer = CacheWriter(path, Manifest(sites=(("site", D),), dtype="float32", host={"name": "toy"}))
    block = lambda rows: Block({"site": rows}, np.zeros(len(rows), np.int32), np.arange(len(rows), dtype=np.int32))  # noqa: E731
    writer.commit({"train": block(ROWS[:768]), "heldout": block(ROWS[768:])})
    writer.finish()
    return str(path)


def config(cache, output, **other) -> TrainConfig:
    return TrainConfig(
        recipe=recipes.topk.Config(d_sae=48, k=4, aux_loss_coefficient=0.0),
        cache=cache,
        output=str(output),
        training_tokens=B * 12,
        train_batch_size_tokens=B,
        checkpoint=CheckpointPolicy(every_steps=4),
        log=LogPolicy(every_steps=4, progress=False),
        evaluate=EvaluatePolicy(every_steps=6, batches=1),
        **other,
    )


def test_a_sweep_of_a_config_leaves_each_run_behind(cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # paths in the table stay whole
    result = train(config(cache, tmp_path / "run", sweep=("lr=1e-3,1e30", "k=2,8")))
    text = (tmp_path / "run" / "train.json").read_text()
    assert "NaN" not in text  # which is no JSON, though Python reads it
    assert "Infinity" not in text
    summary = json.loads(text)
    assert summary["heldout"]["members"]["loss"][2] is None
    assert [r["name"] for r in summary["runs"]][:2] == ["k=2,lr=0.001,seed=0", "k=8,lr=0.001,seed=0"]
    assert ["sae" in r for r in summary["runs"]] == [True, True, False, False]
    assert summary["runs"][2]["stopped"] < 12
    for i, k in [(0, 2), (1, 8)]:
        assert io.load(result.run_dir.member(i).sae).k == k
        records = read_records(result.run_dir.member(i).log)
        assert [r["step"] for r in records if r["kind"] == "train"] == [1, 4, 8, 12]
    assert "not finite" in read_records(result.run_dir.member(3).log)[-1]["event"]
    assert digests(result.sae.params) == digests(io.load(result.run_dir.member(summary["best"]).sae).params)
    result.run_dir.log.unlink()
    assert train(config(cache, tmp_path / "run", sweep=("lr=1e-3,1e30", "k=2,8"))).summary["best"] == 0
    print_table(result.summary)
    table = capsys.readouterr().out
    print_table(
        {**result.summary, "heldout": {"fvu": None}, "runs": [{**summary["runs"][0], "fvu": None}]}
    )  # as a log says
    assert "- held-out" in capsys.readouterr().out
    assert table.count("/sae") == 3  # the chosen one, and one of each sound run
    assert table.count(f"diverged at step {summary['runs'][2]['stopped']}") == 2


def test_a_run_that_an_evaluation_finds_spoiled_does_not_end_the_others(cache, tmp_path):
    """Its parameters blew up in the step before; the next would stop it, but an evaluation and a save come first."""
    wild = config(cache, tmp_path / "run", sweep=("lr=1e-3,1e30,1e38",))
    wild = dataclasses.replace(wild, evaluate=EvaluatePolicy(every_steps=1, batches=1))
    wild = dataclasses.replace(wild, checkpoint=CheckpointPolicy(every_steps=1))
    result = train(wild)
    assert ["sae" in r for r in result.summary["runs"]] == [True, False, False]
    alone = train(config(cache, tmp_path / "alone", sweep=("lr=1e-3",)))
    np.testing.assert_allclose(result.sae.W_dec, alone.sae.W_dec, rtol=0, atol=2e-5)
    heldout = [r for r in read_records(result.run_dir.log) if r["kind"] == "heldout"]
    assert len(heldout) == 12
    assert all(np.isfinite(r["loss"]) for r in heldout)


def test_a_run_spoiled_by_the_last_step_leaves_no_dictionary(tmp_path):
    fleet = Fleet(RECIPE, MEMBERS)
    states, _ = go(fleet, 1)
    losses = {"members": {"loss": [3.0, 2.0, 1.0], "alive": [1.0, 1.0, 1.0]}}

    def left_by(spoiled):
        params = states.params | {"b_dec": states.params["b_dec"].at[spoiled].set(jnp.inf)}
        fitted = Fitted(dataclasses.replace(states, params=params), 1, {"train": losses}, 0.0)
        with RunDir(tmp_path / str(len(spoiled))).open() as run_dir:
            return export_members(fleet, fitted, run_dir, Meta(), {})[0]

    summary = left_by(jnp.array([2]))
    assert [r.get("stopped") for r in summary["runs"]] == [None, None, 1]
    assert summary["best"] == 1
    with pytest.raises(Diverged, match="every run of the sweep has diverged"):
        left_by(jnp.array([0, 1, 2]))


def test_spikes_are_told_run_by_run_and_stop_no_sweep():
    look = Lookout(WatchPolicy(spike_factor=3.0), None)
    calm = {"loss": 2.0, "members": {"loss": [2.0, 2.0, 2.0], "alive": [1.0, 1.0, 0.0]}}
    assert [look.spike({"step": i, **calm}) for i in range(1, 8)] == [""] * 7
    wild = {"loss": 4.0, "members": {"loss": [2.0, 8.0, 9e9], "alive": [1.0, 1.0, 0.0]}}
    assert look.spike({"step": 8, **wild}) == "run 1: the loss is 8, 4 times the median 2 of the last records"
    source = ArraySource(ROWS, batch_size=B)
    with pytest.raises(ConfigError, match="'stop' would end all runs of a sweep"):
        fit(Fleet(RECIPE, MEMBERS), source, 2, key=None, watch=WatchPolicy(on_spike="stop"))


def test_dictionaries_of_a_sweep_too_large_for_the_machine_stay_in_the_checkpoint(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxsae.parallel.machine_bytes", lambda: 4096)
    result = train(config(cache, tmp_path / "run", sweep=("lr=1e-3,1e30", "k=2,8")))
    assert ["left_out" in r for r in result.summary["runs"]] == [True, True, False, False]
    assert not result.run_dir.sae.exists()
    assert not result.run_dir.member(0).sae.exists()
    subject = open_subject(tmp_path / "run", host=None)
    assert digests(subject.sae.params) == digests(result.sae.params)
    print_table(result.summary)


def test_a_sweep_is_written_in_the_configuration_file(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "type: train\ncache: acts\ntraining_tokens: 4096\nrecipe: {type: recipe.topk, d_sae: 64, k: 4}\n"
        "sweep: ['lr=1e-4,3e-4', 'k=4,8']\nsweep_grid: false\nmesh: {run: 2}\n"
    )
    found = from_dict(read_file(file), TrainConfig)
    names = [m.name for m in parse_sweep(found.sweep, found.seed, found.sweep_grid)]
    assert names == ["k=4,lr=0.0001,seed=0", "k=8,lr=0.0003,seed=0"]
    assert found.mesh.run == 2


def test_a_sweep_goes_on_where_it_was(cache, tmp_path):
    whole = train(config(cache, tmp_path / "whole", sweep=("lr=1e-3,3e-3",)))
    short = dataclasses.replace(config(cache, tmp_path / "part", sweep=("lr=1e-3,3e-3",)), training_tokens=B * 5)
    train(short)
    again = train(config(cache, tmp_path / "part", sweep=("lr=1e-3,3e-3",)))
    assert digests(again.state.params) == digests(whole.state.params)
    assert digests(export(tmp_path / "part", member=1).params) == digests(io.load(again.run_dir.member(1).sae).params)
    with pytest.raises(ConfigError, match="a member from 0 to 1"):
        export(tmp_path / "part")
    with pytest.raises(ConfigError, match="begun with sweep"):
        train(config(cache, tmp_path / "part", sweep=("lr=1e-3,5e-3",)))
