"""How a process learns that it is one of several, and what several of them would have to agree on."""

import sys

import jax
import pytest

from jaxsae import parallel
from jaxsae.data import HarvestConfig
from jaxsae.data.shares import shares
from jaxsae.errors import ConfigError, PeerLost
from jaxsae.parallel.agree import flat, verdict
from jaxsae.parallel.start import COORDINATOR, COUNT, INDEX, where

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@pytest.fixture(autouse=True)
def _nobody_tells(monkeypatch):
    for name in (COORDINATOR, COUNT, INDEX, *SLURM):
        monkeypatch.delenv(name, raising=False)


def test_one_process_on_one_machine_starts_nothing():
    assert parallel.start() == parallel.Place(0, 1, "one process")
    assert not jax.distributed.is_initialized()


def test_arguments_and_environment_say_the_same(monkeypatch):
    wanted = {"coordinator_address": "h:1", "num_processes": 4, "process_id": 2}
    assert where("h:1", 4, 2) == (parallel.Place(2, 4, "h:1"), wanted)
    monkeypatch.setenv(COORDINATOR, "h:1")
    monkeypatch.setenv(COUNT, "4")
    monkeypatch.setenv(INDEX, "3")
    assert where(index=2) == (parallel.Place(2, 4, "h:1"), wanted)
    assert where()[0].index == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("h:1", 2, None), r"missing: process id \(JAXSAE_PROCESS_ID\)"),
        (("h", 2, 0), "host:port of process 0, found 'h'"),
        (("h:x", 2, 0), "host:port of process 0, found 'h:x'"),
        (("h:70000", 2, 0), "host:port"),
        (("h:1", 0, 0), "process count must be a whole number from 1 on, found 0"),
        (("h:1", "two", 0), "process count .* found 'two'"),
        (("h:1", 2, -1), "process id must be a whole number from 0 on"),
        (("h:1", 2, 2), "from 0 to 1 for 2 processes, found 2"),
    ],
)
def test_impossible_places(given, words):
    with pytest.raises(ConfigError, match=words):
        where(*given)


@pytest.mark.parametrize("name", ["JAXSAE_START_SECONDS", "JAXSAE_HEARTBEAT_SECONDS"])
@pytest.mark.parametrize("value", ["abc", "0", "1.5"])
def test_limits_in_the_environment_are_whole_seconds(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} must be a whole number from 1 on, found '{value}'"):
        parallel.start("127.0.0.1:1", 2, 0)


@pytest.mark.parametrize("tasks", [1, 8])
def test_a_slurm_step_of_one_task_is_one_process(monkeypatch, tasks):
    for name, value in zip(SLURM, ("9", "node[3-4]", str(tasks), "0", "0"), strict=True):
        monkeypatch.setenv(name, value)
    found = where()[0]
    assert (found.count, found.told_by) == ((8, "Slurm") if tasks == 8 else (1, "one process"))


def test_a_cloud_tpu_slice_is_recognised_where_there_are_chips(monkeypatch):
    """Its own detection goes over the network, so it is only asked there."""
    from jax._src import clusters

    start = sys.modules["jaxsae.parallel.start"]  # the function of that name hides the module
    for name, value in (("is_env_present", True), ("get_process_count", 4), ("get_process_id", 3)):
        monkeypatch.setattr(clusters.GceTpuCluster, name, classmethod(lambda cls, value=value: value))
    for chips, count in ((False, 1), (True, 4)):
        monkeypatch.setattr(start, "_has_tpu", lambda chips=chips: chips)
        assert where()[0].count == count
    assert where()[0] == parallel.Place(3, 4, "a Cloud TPU slice")


def test_differences_are_named_with_both_values_and_the_process():
    facts = flat({"version": {"jax": "1"}, "config": {"k": [1, 2]}})
    assert verdict([facts, dict(facts)]) == "same"
    text = verdict([facts, {**facts, "config.k[1]": 3}, {**facts, "version.jax": "2", "new": 1}])
    assert "config.k[1] is 2 on process 0 and 3 on process 1" in text
    assert "version.jax is '1' on process 0 and '2' on process 2" in text
    assert "new is None on process 0 and 1 on process 2" in text


def test_alone_everything_is_the_obvious_nothing():
    parallel.barrier("x")
    assert parallel.exchange("x", "a") == ["a"]
    assert parallel.on_first("x", lambda: 5) == 5
    assert parallel.total(7) == 7
    assert not parallel.lost(ValueError("Gloo all-reduce failed"))
    assert PeerLost("gone").status == 75
    vote = parallel.StopVote(parallel.make_mesh(2, 4))
    assert [vote(None), vote(15)] == [None, 15]


def test_parts_are_shared_out_each_once(tmp_path):
    config = HarvestConfig(tokens=128 * 10)
    for count in (1, 2, 3):
        found = [c for i in range(count) for c in shares(config, tmp_path / "new", 50, i, count)]
        assert sorted(c.part for c in found) == list(range(count))
        assert {c.parts for c in found} == {count}
        assert sum(c.window_limit for c in found) == 10


@pytest.mark.parametrize(
    ("changes", "documents", "words"),
    [({"part": 1, "parts": 2}, 50, "leave it out"), ({}, 2, "2 documents"), ({"tokens": 256}, 50, "2 windows")],
)
def test_impossible_shares(tmp_path, changes, documents, words):
    with pytest.raises(ConfigError, match=words):
        shares(HarvestConfig(**changes), tmp_path / "new", documents, 0, 3)
