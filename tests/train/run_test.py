"""A run from its configuration: a real cache in, a run directory out, whatever happens in between."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import config as tagged
from jaxsae import io
from jaxsae.cli.train import Train, print_table
from jaxsae.data.manifest import Manifest
from jaxsae.data.writer import Block, CacheWriter
from jaxsae.errors import CheckpointError, ConfigError, DataError
from jaxsae.hosts import HostMesh
from jaxsae.io.digest import digests
from jaxsae.parallel import MeshConfig, make_mesh
from jaxsae.recipes import jumprelu_tanh_quad, relu_l1, topk
from jaxsae.report import open_subject
from jaxsae.sae import make_sae
from jaxsae.testing.conformance import assert_close
from jaxsae.train import CheckpointPolicy, EvaluatePolicy, LogPolicy, TrainConfig, export, read_records, train
from jaxsae.train.room import ROOM, too_large

D = 16
SITE = "blocks.1.hook_resid_post"


def write_cache(path, rows: int = 2000, heldout: int = 300, d: int = D, seed: int = 0, sites=(SITE,)) -> str:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((4, d), np.float32)
    manifest = Manifest(sites=tuple((s, d) for s in sites), dtype="float32", seed=seed, host={"name": "toy"})
    writer = CacheWriter(path, manifest)

    def block(n):
        acts = {s: rng.standard_normal((n, 4), np.float32) @ mixing for s in sites}
        return Block(acts, np.zeros(n, np.int32), np.arange(n, dtype=np.int32))

    writer.commit({"train": block(rows)} | ({"heldout": block(heldout)} if heldout else {}))
    writer.finish()
    return str(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "acts")


def make(cache, output, tokens: int = 64 * 40, **kwargs) -> TrainConfig:
    defaults = {
        "recipe": topk.Config(d_sae=64, k=4, lr=1e-3, aux_loss_coefficient=0.0),
        "train_batch_size_tokens": 64,
        "checkpoint": CheckpointPolicy(every_steps=10),
        "log": LogPolicy(every_steps=10, progress=False),
        "evaluate": EvaluatePolicy(every_steps=20, batches=3),
    }
    return TrainConfig(cache=cache, output=str(output), training_tokens=tokens, **(defaults | kwargs))


def test_a_dictionary_too_large_for_the_machine_stays_in_the_checkpoint_and_is_read_onto_a_mesh(
    cache, tmp_path, monkeypatch, capsys
):
    whole = train(make(cache, tmp_path / "whole"))
    monkeypatch.setattr("jaxsae.parallel.machine_bytes", lambda: 4096)
    config = make(cache, tmp_path / "run", mesh=MeshConfig(data=2, latent=4))
    result = train(config)
    assert not result.run_dir.sae.exists()
    assert result.sae.W_dec.addressable_data(0).shape == (16, D)
    left_out = json.loads(result.run_dir.summary.read_text())["left_out"]
    assert re.fullmatch(
        r"a dictionary of \S+ GiB, which takes \S+ GiB to write on a machine of .* mesh=mesh\) reads it", left_out
    )
    print_table(result.summary)
    assert "newest checkpoint" in capsys.readouterr().out
    read = export(tmp_path / "run", mesh=make_mesh(2, 4))
    assert read.W_dec.addressable_data(0).shape == (16, D)
    assert_close(read.params, whole.sae.params, 2e-5)
    assert export(tmp_path / "run", mesh=make_mesh(8, 1)).W_dec.addressable_data(0).shape == (64, D)
    subject = open_subject(tmp_path / "run", host=None, mesh=HostMesh(latent=8))
    assert subject.sae.W_dec.addressable_data(0).shape == (8, D)
    monkeypatch.undo()
    again = train(config)  # on a larger machine the same command writes it
    assert digests(io.load(again.run_dir.sae).params) == digests(read.params)


@pytest.mark.parametrize(("remote", "copies"), [(False, 1), (True, 3)])
def test_writing_takes_the_dictionary_and_behind_a_url_its_file_twice_more(remote, copies):
    eye = jnp.eye(16)
    sae = make_sae({"W_enc": eye, "b_enc": jnp.zeros(16), "W_dec": eye, "b_dec": jnp.zeros(16)})
    need = copies * 4 * (2 * 16 * 16 + 2 * 16)
    assert not too_large(sae, remote, memory=round(need / ROOM) + 1)
    assert too_large(sae, remote, memory=round(need / ROOM) - 1)


def test_an_earlier_dictionary_is_not_taken_for_one_that_was_left_out(cache, tmp_path, monkeypatch):
    first = train(make(cache, tmp_path / "run", tokens=64 * 20))
    earlier = digests(io.load(first.run_dir.sae).params)
    monkeypatch.setattr("jaxsae.parallel.machine_bytes", lambda: 4096)
    longer = train(make(cache, tmp_path / "run"))
    assert digests(open_subject(tmp_path / "run", host=None).sae.params) == digests(longer.sae.params) != earlier
    assert not longer.run_dir.sae.exists()
    assert digests(io.load(tmp_path / "run" / "sae.earlier").params) == earlier


def test_a_run_leaves_config_log_checkpoints_dictionary_and_summary(cache, tmp_path):
    config = make(cache, tmp_path / "run", tokens=64 * 40 + 63)
    result = train(config)
    run = result.run_dir
    assert tagged.from_dict(tagged.read_file(run.config)) == config
    assert run.config.read_text().startswith("type: train\n")
    assert {r["kind"] for r in read_records(run.log)} == {"train", "heldout"}
    assert sorted(p.name for p in run.checkpoints.iterdir() if p.name.isdigit()) == ["30", "40"]
    summary = json.loads(run.summary.read_text())
    assert (summary["steps"], summary["tokens_trained"], summary["d_in"]) == (40, 40 * 64, D)
    assert summary["heldout"]["fvu"] == result.metrics["heldout"]["fvu"] < 0.5
    loaded = io.load(run.sae)
    assert (loaded.meta.host, loaded.meta.site, loaded.meta.recipe) == ("toy", SITE, "topk")
    assert digests(loaded.params) == digests(result.sae.params)


def test_any_checkpoint_exports_to_any_format(cache, tmp_path):
    result = train(make(cache, tmp_path / "run"))
    assert digests(export(tmp_path / "run").params) == digests(result.sae.params)
    earlier = export(tmp_path / "run", step=30)
    alone = train(make(cache, tmp_path / "short", tokens=64 * 30))
    assert digests(earlier.params) == digests(alone.sae.params)
    io.save(earlier, tmp_path / "theirs", format="sae_lens")
    x = np.random.default_rng(1).standard_normal((5, D), np.float32)
    np.testing.assert_allclose(io.load(tmp_path / "theirs")(x), earlier(x), rtol=2e-5, atol=2e-5)
    with pytest.raises(CheckpointError, match=r"has no checkpoint of step 7; it has \[30, 40\]"):
        export(tmp_path / "run", step=7)
    with pytest.raises(CheckpointError, match="there are no checkpoints in"):
        export(tmp_path / "nowhere")
    kept = tmp_path / "run/checkpoints"
    (kept / "40/meta/metadata").write_text("{")  # all that tells which method it is of
    assert digests(export(tmp_path / "run").params) == digests(earlier.params)
    (kept / "30/meta/metadata").write_text("{")
    with pytest.raises(CheckpointError, match=r"that can be read, found those of steps \[30, 40\], all damaged"):
        export(tmp_path / "run")


def test_repeating_a_complete_run_changes_nothing(cache, tmp_path):
    first = train(make(cache, tmp_path))
    shutil.rmtree(first.run_dir.sae)
    again = train(make(cache, tmp_path))
    assert digests(again.state) == digests(first.state)
    assert again.summary["train"] == first.summary["train"]
    assert io.load(again.run_dir.sae).d_sae == 64
    first.run_dir.log.unlink()  # by whoever tidies up
    bare = train(make(cache, tmp_path))
    assert digests(bare.sae.params) == digests(first.sae.params)
    assert (bare.summary["tokens_trained"], "train" in bare.summary) == (40 * 64, False)


@pytest.mark.parametrize("sweep", [(), ("lr=1e-3,1e-4",)])
@pytest.mark.parametrize("left", [None, b"\xff\xfe\x00", b'{"kind": "train", "step": 20, "lo'])
def test_a_complete_run_whose_log_is_lost_is_exported_again(cache, tmp_path, sweep, left):
    first = train(make(cache, tmp_path, tokens=64 * 20, sweep=sweep))
    shutil.rmtree(first.run_dir.sae)
    if left is None:
        first.run_dir.log.unlink()
    else:
        first.run_dir.log.write_bytes(left)
    again = train(make(cache, tmp_path, tokens=64 * 20, sweep=sweep))
    assert io.load(again.run_dir.sae).d_sae == 64
    assert again.summary["tokens_trained"] == 64 * 20


def test_without_held_out_rows_it_trains_unwatched(tmp_path):
    result = train(make(write_cache(tmp_path / "acts", heldout=0), tmp_path / "run"))
    assert "heldout" not in result.metrics


def test_few_held_out_rows_are_not_counted_twice(tmp_path):
    rows = 100  # one batch of 64 and no second one
    result = train(make(write_cache(tmp_path / "acts", heldout=rows), tmp_path / "run"))
    one = train(make(str(tmp_path / "acts"), tmp_path / "one", evaluate=EvaluatePolicy(every_steps=20, batches=1)))
    assert result.metrics["heldout"]["fvu"] == one.metrics["heldout"]["fvu"]


def test_the_seed_decides_weights_and_order(cache, tmp_path):
    runs = [train(make(cache, tmp_path / str(i), seed=s)) for i, s in enumerate((0, 0, 1))]
    a, b, c = (digests(r.state.params)["W_dec"] for r in runs)
    assert a == b != c


# ------------------------------------------------------------------------------------------------------ interrupted
PROGRAM = """
    import json, os, signal, sys
    from jaxsae import config
    from jaxsae.data.sources import CacheSource
    from jaxsae.io.digest import digests
    from jaxsae.train import Interrupted, train
    import jaxsae.recipes

    at, name, *files = sys.argv[1:]
    read = CacheSource.batch

    def batch(self, step):
        if step == int(at) and self.split.name == "train":
            os.kill(os.getpid(), getattr(signal, name))
        return read(self, step)

    CacheSource.batch = batch
    try:
        for file in files:
            print(json.dumps(digests(train(config.from_dict(config.read_file(file))).state)))
    except Interrupted as e:
        print(e)
        sys.exit(e.status)
"""


def session(folder: pathlib.Path, *configs: TrainConfig, at: int = -1, name: str = "SIGKILL"):
    """A process of its own that trains these one after the other; the signal comes when batch `at` is read."""
    files = [folder / f"{i}.yaml" for i in range(len(configs))]
    for file, config in zip(files, configs, strict=True):
        file.write_text(tagged.dump_yaml(config))
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(folder / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env = os.environ | compiled | {"JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(at), name, *map(str, files)]
    return subprocess.run(program, env=env, capture_output=True, text=True, timeout=300)


def test_killed_then_stopped_then_rerun_it_ends_bit_for_bit_as_if_left_alone(cache, tmp_path):
    everything = topk.Config(d_sae=64, k=4, lr_warm_up_steps=7, dead_after_tokens=300, k_aux=8, average_decay=0.9)
    cut, whole = (make(cache, tmp_path / name, tokens=64 * 60, recipe=everything) for name in ("cut", "whole"))
    assert session(tmp_path, cut, at=27).returncode == -signal.SIGKILL
    stopped = session(tmp_path, cut, at=44, name="SIGTERM")
    assert stopped.returncode == 143, stopped.stderr
    assert "run the same command again to continue" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "cut/sae").exists()
    stop = read_records(tmp_path / "cut/log.jsonl")[-1]["step"]
    assert (tmp_path / f"cut/checkpoints/{stop}").is_dir()
    done = session(tmp_path, cut, whole)
    assert done.returncode == 0, done.stderr
    again, once = done.stdout.splitlines()
    assert json.loads(again) == json.loads(once)
    events = [r["event"] for r in read_records(tmp_path / "cut/log.jsonl") if r["kind"] == "event"]
    assert len(events) == 2
    assert events[-1].startswith("continued from the checkpoint of step")

    def numbers(name):
        records = read_records(tmp_path / name / "log.jsonl")
        return [{k: v for k, v in r.items() if k != "time"} for r in records if r["kind"] != "event"]

    assert [r for r in numbers("cut") if r["step"] % 10 == 0 or r["step"] != stop] == numbers("whole")
    assert (tmp_path / "cut/sae/sae.safetensors").read_bytes() == (tmp_path / "whole/sae/sae.safetensors").read_bytes()


# -------------------------------------------------------------------------------------------------------- bad input
def test_a_width_that_does_not_match_the_cache_names_both(cache, tmp_path):
    with pytest.raises(ConfigError, match=r"d_in = 32.*width 16"):
        train(make(cache, tmp_path / "run", recipe=topk.Config(d_in=32, d_sae=64, k=4)))
    assert not (tmp_path / "run").exists()


def test_wrong_paths_sites_and_sizes_are_one_sentence(cache, tmp_path):
    with pytest.raises(DataError, match=r"nowhere"):
        train(make(str(tmp_path / "nowhere"), tmp_path / "run"))
    with pytest.raises(DataError, match=r"did you mean 'blocks\.1\.hook_resid_post'"):
        train(make(cache, tmp_path / "run", hook_name="blocks.1.hook_resid_pst"))
    with pytest.raises(ConfigError, match=r"training_tokens.*less than one batch"):
        make(cache, tmp_path / "run", tokens=63)
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match="config key 'seed' must be a whole number from 0"):
            make(cache, tmp_path / "run", seed=seed)
    with pytest.raises(ConfigError, match=r"log\.every_steps"):
        LogPolicy(every_steps=0)
    with pytest.raises(ConfigError, match=r"evaluate\.batches' must be 0 or more, found -1"):
        EvaluatePolicy(batches=-1)
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match=f"'seed' must be a whole number from 0 to 4294967295, found {seed}"):
            make(cache, tmp_path / "run", seed=seed)
    with pytest.raises(ConfigError, match=r"k must lie between 1 and d_sae"):
        train(make(cache, tmp_path / "run", recipe=topk.Config(d_sae=64, k=65)))
    with pytest.raises(ConfigError, match=r"dead_after_tokens = 4294967296 is beyond 32 bits"):
        train(make(cache, tmp_path / "run", recipe=topk.Config(d_sae=64, k=4, dead_after_tokens=2**32)))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="run directory"):
        train(make(cache, tmp_path / "file"))
    assert not (tmp_path / "run").exists()


def test_another_configuration_is_refused_and_nothing_is_touched(cache, tmp_path):
    config = make(cache, tmp_path)
    train(config)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for change, message in (
        ({"recipe": dataclasses.replace(config.recipe, k=5)}, r"recipe\.k = 4, found 5"),
        ({"recipe": relu_l1.Config(d_sae=64)}, r"recipe\.type = 'recipe\.topk'"),
        ({"seed": 1}, "seed = 0, found 1"),
        ({"train_batch_size_tokens": 32}, "train_batch_size_tokens = 64, found 32"),
        ({"training_tokens": 640}, "already done 40 steps"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(dataclasses.replace(config, **change))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_moved_cache_is_fine_and_another_one_is_not(cache, tmp_path):
    train(make(cache, tmp_path / "run"))
    moved = shutil.copytree(cache, tmp_path / "moved")
    assert train(make(str(moved), tmp_path / "run")).summary["steps"] == 40
    other = write_cache(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"manifest\.seed = 0, found 1"):
        train(make(other, tmp_path / "run"))


def test_a_finished_dictionary_without_checkpoints_is_not_overwritten(cache, tmp_path):
    train(make(cache, tmp_path))
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match="choose another output"):
        train(make(cache, tmp_path))


# ---------------------------------------------------------------------------------------------------------- command
def test_the_command_prints_a_short_table_and_returns_the_summary(cache, tmp_path, capsys):
    config = make(cache, tmp_path / "run")
    summary = Train(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)}).run()
    shown = capsys.readouterr().out
    assert "FVU" in shown
    assert "2,560 tokens" in shown
    assert summary == json.loads((tmp_path / "run/train.json").read_text())
    assert tagged.read_file(tmp_path / "run/config.yaml")["type"] == "train"


def test_moments_in_bf16_are_kept_and_go_on(cache, tmp_path):
    half = {"tokens": 64 * 20, "moments": "bfloat16"}
    state = train(make(cache, tmp_path / "half", **half)).state
    kept = {a.dtype for a in jax.tree.leaves(state.opt) if a.ndim == 2}
    assert kept == {jnp.dtype(jnp.bfloat16)}
    assert train(make(cache, tmp_path / "half", **(half | {"tokens": 64 * 40}))).state.step == 40
    with pytest.raises(ConfigError, match="moments"):
        train(make(cache, tmp_path / "half", tokens=64 * 60))


def test_moments_an_optimiser_cannot_keep_in_bf16_are_refused(cache, tmp_path):
    config = make(cache, tmp_path / "x", recipe=jumprelu_tanh_quad.Config(d_sae=64), moments="bfloat16")
    with pytest.raises(ConfigError, match="'moments' must be float32 for recipe 'jumprelu_tanh_quad', found bfloat16"):
        train(config)
