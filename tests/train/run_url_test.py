"""A run directory behind a URL: the same run as on a disk, in a store that can neither append nor lock."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from jaxsae import config as tagged
from jaxsae import io
from jaxsae.cli.eval import Eval
from jaxsae.cli.report import Report
from jaxsae.data.store import Folder
from jaxsae.errors import CheckpointError, ConfigError, DataError
from jaxsae.evals.features import FeaturesConfig
from jaxsae.io.digest import digests
from jaxsae.recipes import topk
from jaxsae.report import open_subject
from jaxsae.train import RunDir, WatchPolicy, export, read_records, train
from jaxsae.train import run as run_module

_spec = importlib.util.spec_from_file_location("on_disk", pathlib.Path(__file__).with_name("run_test.py"))
_disk = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_disk)
make, write_cache, session, cache = _disk.make, _disk.write_cache, _disk.session, _disk.cache
URL = "gs://bucket/runs/a"


def records(text: str, tmp_path) -> list[dict]:
    (tmp_path / "read.jsonl").write_text(text)
    return read_records(tmp_path / "read.jsonl")


def numbers(found: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "time"} for r in found if r["kind"] != "event"]


@pytest.mark.parametrize("place", ["gs://bucket/runs", "memory://runs"])
def test_it_leaves_what_a_run_on_a_disk_leaves(cache, tmp_path, gcs, place):
    url = f"{place}/{tmp_path.name}"
    result, local = train(make(cache, url)), train(make(cache, tmp_path / "run"))
    folder = Folder(url)
    names = folder.names()
    parts = {"README.md", "config.yaml", "log.jsonl", "train.json", "sae", "checkpoints"}
    assert {n.split("/")[0] for n in names} == parts | {".session"}
    assert [n for n in names if n.startswith("checkpoints/done")] == [f"checkpoints/done/{s}.json" for s in (30, 40)]
    assert digests(result.state) == digests(local.state)
    summary = json.loads(folder.read("train.json"))
    assert summary == result.summary
    assert summary["sae"] == f"{url}/sae"
    assert f"jaxsae report {url}" in folder.read("README.md").decode()
    assert folder.read("sae/sae.safetensors") == (tmp_path / "run/sae/sae.safetensors").read_bytes()
    assert numbers(records(folder.read("log.jsonl").decode(), tmp_path)) == numbers(read_records(local.run_dir.log))
    assert tagged.from_dict(tagged.read_file(result.run_dir.config)) == make(cache, url)


def test_it_is_read_by_its_url(cache, tmp_path, gcs):
    result = train(make(cache, URL))
    loaded = io.load(f"{URL}/sae")
    assert digests(loaded.params) == digests(io.load(URL).params) == digests(result.sae.params)
    assert export(URL, step=30).d_sae == 64
    with pytest.raises(CheckpointError, match=r"'gs://bucket/runs/a' has no checkpoint of step 7; it has \[30, 40\]"):
        export(URL, step=7)
    subject = open_subject(f"{URL}/", host=None)
    assert (subject.name, subject.folder, len(subject.log)) == ("a", URL, 7)
    with pytest.raises(DataError, match="nothing at 'gs://bucket/runs/b'"):
        io.load("gs://bucket/runs/b")
    assert open_subject(result.run_dir, host=None).folder == URL


def test_a_dictionary_left_out_is_read_from_the_checkpoint_behind_the_url(cache, gcs, monkeypatch):
    monkeypatch.setattr("jaxsae.parallel.machine_bytes", lambda: 4096)
    result = train(make(cache, URL))
    assert not any("/sae/" in name for name in gcs.names("bucket"))
    assert digests(open_subject(URL, host=None).sae.params) == digests(result.sae.params)


def test_eval_and_report_write_beside_the_run(cache, gcs):
    train(make(cache, URL))
    found = Eval(path=URL, host="none").run()
    assert json.loads(gcs.text("bucket", "runs/a/eval.json"))["fvu"] == found["fvu"]
    assert open_subject(URL, host=None).evaluation is not None
    Report(path=URL, host="none", features=FeaturesConfig(latents=3)).run()
    assert gcs.text("bucket", "runs/a/report.html").startswith("<!")
    assert json.loads(gcs.text("bucket", "runs/a/report.json"))["fvu"] == found["fvu"]
    Eval(path=URL, host="none", output="gs://bucket/elsewhere.json").run()
    assert "elsewhere.json" in gcs.names("bucket")


def test_the_cache_may_lie_there_too(gcs, tmp_path):
    cache = write_cache("gs://bucket/acts")
    assert train(make(cache, URL)).summary["steps"] == 40


def test_killed_then_stopped_then_rerun_it_ends_bit_for_bit_as_if_left_alone(cache, tmp_path, gcs):
    everything = topk.Config(d_sae=64, k=4, lr_warm_up_steps=7, dead_after_tokens=300, k_aux=8, average_decay=0.9)
    cut, whole = (make(cache, place, tokens=64 * 60, recipe=everything) for place in (URL, tmp_path / "whole"))
    assert session(tmp_path, cut, at=27).returncode == -signal.SIGKILL
    log = records(gcs.text("bucket", "runs/a/log.jsonl"), tmp_path)
    done = [int(re.search(r"done/(\d+)", n)[1]) for n in gcs.names("bucket") if "/done/" in n]
    assert max(done) in (10, 20)
    assert {10, max(done)} <= {r["step"] for r in log}, "a checkpoint that counts has its log"
    assert "runs/a/config.yaml" in gcs.names("bucket")
    stopped = session(tmp_path, cut, at=44, name="SIGTERM")
    assert stopped.returncode == 143, stopped.stderr
    assert "the state is saved in 'gs://bucket/runs/a/checkpoints', run the same command again" in stopped.stdout
    stop = records(gcs.text("bucket", "runs/a/log.jsonl"), tmp_path)[-1]["step"]
    assert f"runs/a/checkpoints/done/{stop}.json" in gcs.names("bucket")
    ended = session(tmp_path, cut, whole)
    assert ended.returncode == 0, ended.stderr
    again, once = ended.stdout.splitlines()
    assert json.loads(again) == json.loads(once)
    found = records(gcs.text("bucket", "runs/a/log.jsonl"), tmp_path)
    assert [r["event"] for r in found if r["kind"] == "event"][-1].startswith("continued from the checkpoint of step")
    wanted = numbers(read_records(tmp_path / "whole/log.jsonl"))
    assert [r for r in numbers(found) if r["step"] % 10 == 0 or r["step"] != stop] == wanted
    assert (
        gcs.objects["bucket", "runs/a/sae/sae.safetensors"][1] == (tmp_path / "whole/sae/sae.safetensors").read_bytes()
    )


def test_a_log_travels_once_per_checkpoint_and_what_did_not_change_does_not(cache, gcs):
    train(make(cache, URL))
    sent = [n.removeprefix("runs/a/") for n in gcs.uploads]
    assert sent.count("log.jsonl") <= 4 + 2  # the checkpoints, the beginning and the end
    assert sent.count("config.yaml") == sent.count("README.md") == sent.count("train.json") == 1


def test_another_configuration_is_refused_and_nothing_is_touched(cache, gcs):
    train(make(cache, URL))
    before = {k: v for k, v in gcs.objects.items() if not k[1].endswith(".session")}
    with pytest.raises(ConfigError, match=r"the run in 'gs://bucket/runs/a' was begun with seed = 0, found 1"):
        train(make(cache, URL, seed=1))
    assert {k: v for k, v in gcs.objects.items() if not k[1].endswith(".session")} == before
    for name in [n for n in gcs.names("bucket") if "/checkpoints/" in n]:
        del gcs.objects["bucket", name]
    with pytest.raises(ConfigError, match=r"'gs://bucket/runs/a' holds a finished dictionary but no checkpoints"):
        train(make(cache, URL))


# ------------------------------------------------------------------------------------------------------------ bad ends
def test_the_newest_session_owns_the_run_and_an_older_one_overwrites_nothing(cache, gcs):
    with RunDir(URL).open() as older:
        (older.path / "train.json").write_text("older")
        older.push()()
        with RunDir(URL).open() as newer:
            (newer.path / "train.json").write_text("newer")
        (older.path / "train.json").write_text("older again")
        with pytest.raises(CheckpointError, match=r"another process has begun to train into 'gs://bucket/runs/a'"):
            older.push()
        older_files = {"train.json": "newer"}
        assert {n: gcs.text("bucket", f"runs/a/{n}") for n in older_files} == older_files
        older._mirror._session = newer._mirror._session  # let it end in peace


def test_a_session_taken_over_ends_before_its_next_checkpoint(cache, gcs, monkeypatch):
    real = run_module.CacheSource.batch

    def batch(self, step):
        if step == 25 and self.split.name == "train":
            Folder(URL).write(".session", b"another")
        return real(self, step)

    monkeypatch.setattr(run_module.CacheSource, "batch", batch)
    with pytest.raises(CheckpointError, match="another process has begun to train into 'gs://bucket/runs/a'"):
        train(make(cache, URL))
    assert "runs/a/checkpoints/done/40.json" not in gcs.names("bucket")
    assert not any("/sae/" in n for n in gcs.names("bucket"))


def test_a_log_that_cannot_be_uploaded_is_told_and_no_checkpoint_counts_without_it(cache, gcs, tmp_path, caplog):
    train(make(cache, URL, tokens=64 * 20))
    before = dict(gcs.objects)
    gcs.refuse = lambda method, name: method == "POST" and name.endswith("log.jsonl")
    with pytest.raises(
        CheckpointError, match=r"gs://bucket/runs/a/log.jsonl cannot be written: PERMISSION_DENIED"
    ) as e:
        train(make(cache, URL, tokens=64 * 60))
    assert "'gs://bucket/runs/a/checkpoints'" in str(e.value)
    (kept,) = re.findall(r"what is new lies in '([^']+)'", caplog.text)[-1:]
    assert read_records(f"{kept}/log.jsonl")[-1]["step"] >= 30
    assert {
        k: v for k, v in gcs.objects.items() if k in before and not k[1].endswith((".session", ".md", ".yaml"))
    } == {k: v for k, v in before.items() if not k[1].endswith((".session", ".md", ".yaml"))}, "what was there stays"
    assert not any(n.endswith("done/30.json") for n in gcs.names("bucket"))
    gcs.refuse = lambda method, name: False
    again, whole = train(make(cache, URL, tokens=64 * 60)), train(make(cache, tmp_path / "whole", tokens=64 * 60))
    assert digests(again.state) == digests(whole.state)


def test_a_dictionary_that_cannot_be_uploaded_is_exported_by_the_next_call(cache, gcs):
    gcs.refuse = lambda method, name: method == "POST" and "/sae/" in name
    with pytest.raises(CheckpointError, match=r"/sae/\S+ cannot be written.*what is new lies in"):
        train(make(cache, URL))
    gcs.refuse = lambda method, name: False
    train(make(cache, URL))
    assert io.load(f"{URL}/sae").d_sae == 64


@pytest.mark.parametrize("url", ["foo://bucket/run", "https://127.0.0.1:9/run"])
def test_a_url_that_cannot_be_written_is_refused_at_once(cache, url):
    with pytest.raises(ConfigError, match=rf"the run directory '{url}' cannot be used \(.*choose another output"):
        train(make(cache, url))


def test_a_bucket_without_permission_is_refused_at_once(cache, gcs):
    gcs.refuse = lambda method, name: method == "POST"
    with pytest.raises(ConfigError, match=r"'gs://bucket/runs/a' cannot be used \(.*PERMISSION_DENIED"):
        train(make(cache, URL))
    assert gcs.objects == {}


# --------------------------------------------------------------------------------------------------------------- parts
def test_a_sweep_leaves_each_run_and_goes_on_with_its_logs(cache, gcs, tmp_path):
    sweep = {"sweep": ("k=2,4",)}
    train(make(cache, URL, tokens=64 * 20, **sweep))
    result = train(make(cache, URL, **sweep))
    assert [r["sae"] for r in result.summary["runs"]] == [f"{URL}/members/0{i}/sae" for i in (0, 1)]
    for i, k in enumerate((2, 4)):
        assert io.load(f"{URL}/members/0{i}/sae").k == k
        found = records(gcs.text("bucket", f"runs/a/members/0{i}/log.jsonl"), tmp_path)
        assert [r["step"] for r in found if r["kind"] == "train"] == [1, 10, 20, 30, 40]


def test_a_profiler_trace_is_uploaded(cache, gcs):
    program = (
        "import sys\n"
        "from jaxsae import config\n"
        "from jaxsae.train import train\n"
        "train(config.from_dict(config.read_file(sys.argv[1])))\n"
    )
    config = dataclasses.replace(make(cache, URL, tokens=64 * 20), watch=WatchPolicy(trace_step=5, trace_steps=2))
    file = pathlib.Path(cache).parent / "traced.yaml"
    file.write_text(tagged.dump_yaml(config))
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program, str(file)], env=env, check=True, timeout=200)
    assert any(n.startswith("runs/a/profile/") and n.endswith(".xplane.pb") for n in gcs.names("bucket"))


def test_a_file_url_is_the_folder(cache, tmp_path):
    result = train(make(cache, f"file://{tmp_path}/run"))
    assert result.run_dir.log == tmp_path / "run/log.jsonl"
    assert (tmp_path / "run/checkpoints/40").is_dir()
    np.testing.assert_array_equal(io.load(f"file://{tmp_path}/run/sae").W_dec, result.sae.W_dec)
