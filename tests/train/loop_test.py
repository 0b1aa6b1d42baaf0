"""The loop: compiled once, never waiting for numbers between logs, resuming bit for bit, ending well."""

import dataclasses
import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import CheckpointError, ConfigError, DataError
from jaxsae.io.checkpoint import Checkpoints
from jaxsae.io.digest import digests
from jaxsae.objective import Linear
from jaxsae.train import logs
from jaxsae.train.config import CheckpointPolicy, EvaluatePolicy, LogPolicy
from jaxsae.train.logs import read_records
from jaxsae.train.loop import fit
from jaxsae.train.run_dir import RunDir
from jaxsae.train.stop import Diverged, Interrupted

D, B = 16, 64
ROWS = np.random.default_rng(0).standard_normal((1024, 4), np.float32) @ np.random.default_rng(1).standard_normal(
    (4, D), np.float32
)
#: Short-lived latents, AuxK, a schedule, a running mean: everything a state can hold.
RECIPE = recipes.topk(
    d_in=D, d_sae=64, k=4, lr=1e-3, lr_warm_up_steps=7, dead_after_tokens=300, k_aux=8, average_decay=0.9
)
PLAIN = recipes.relu_l1(d_in=D, d_sae=32)


class Rows:
    """A source whose batch `at` does something first."""

    d_in, batch_size = D, B

    def __init__(self, at: int = -1, then=None, seed: int = 0):
        self.at, self.then, self.seed = at, then, seed

    def batch(self, step: int) -> dict[str, np.ndarray]:
        x = ROWS[np.random.default_rng((self.seed, step)).integers(0, len(ROWS), B)]
        if step == self.at:
            x = self.then(x) if self.then is not None else x
        return {"x": x}


def options(log: int = 10, save: int = 10, evaluate: int = 20, **policy):
    return {
        "log": LogPolicy(every_steps=log, progress=False),
        "checkpoint": CheckpointPolicy(every_steps=save, **policy),
        "evaluate": EvaluatePolicy(every_steps=evaluate, batches=2),
        "key": jax.random.key(3),
    }


def run(path, steps: int, source=None, recipe=RECIPE, config=None, **kwargs):
    with RunDir(path).open() as run_dir:
        return fit(
            recipe,
            source or Rows(),
            steps,
            run_dir=run_dir,
            heldout=Rows(seed=9),
            config=config,
            **(options() | kwargs),
        )


def without_time(path):
    return [{k: v for k, v in r.items() if k != "time"} for r in read_records(path) if r["kind"] != "event"]


# -------------------------------------------------------------------------------------------------------------- speed
class Watch:
    """What happens during which step: compilations, and arrays turned into numbers on the host."""

    def __init__(self, monkeypatch):
        self.step, self.flushing, self.compiled, self.fetched = 0, False, [], []
        real_step, real_flush = recipes.Programs.step, logs.Log.flush

        def step(*args):
            self.step += 1
            return real_step(*args)

        def flush(*args, **kwargs):
            self.flushing = True
            try:
                return real_flush(*args, **kwargs)
            finally:
                self.flushing = False

        monkeypatch.setattr(recipes.Programs, "step", step)
        monkeypatch.setattr(logs.Log, "flush", flush)
        jax.monitoring.register_event_duration_secs_listener(self.on_event)
        array = type(jax.numpy.ones(1))
        for name in ("__array__", "__float__", "__int__", "__bool__", "item", "tolist"):
            monkeypatch.setattr(array, name, self.counted(name, getattr(array, name)))
        monkeypatch.setattr(array, "_value", property(self.counted("_value", array._value.fget)))
        for name in ("asarray", "array"):  # numpy reads a CPU array's buffer without asking it
            monkeypatch.setattr(np, name, self.counted(name, getattr(np, name), only=array))
        monkeypatch.setattr(jax, "device_get", self.counted("device_get", jax.device_get))

    def on_event(self, name, secs, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            self.compiled.append(self.step)

    def counted(self, name, real, only=object):
        def call(*args, **kwargs):
            if isinstance(args[0], only):
                self.fetched.append((self.step, self.flushing, name))
            return real(*args, **kwargs)

        return call


def test_no_number_reaches_the_host_between_logs(monkeypatch):
    watch = Watch(monkeypatch)
    for fetch in (float, np.asarray, jax.device_get, bool):
        before = len(watch.fetched)
        fetch(jax.numpy.ones(()) * 2)
        assert len(watch.fetched) > before, f"the count is blind to {fetch}"
    fit(RECIPE, Rows(), 60, **options(log=20, save=1000, evaluate=1000))
    during = [f for f in watch.fetched if 0 < f[0] < 60]
    assert {step for step, flushing, _ in during if flushing} == {20, 40}
    assert [f for f in during if not f[1]] == []


def test_nothing_is_compiled_after_the_first_step(monkeypatch):
    jitted = recipes.step
    watch, before = Watch(monkeypatch), jitted._cache_size()
    fit(PLAIN, Rows(), 40, **options(log=10, save=1000))
    assert 1 in watch.compiled, "the listener heard nothing"
    assert {step for step in watch.compiled if 1 < step < 40} == set()
    assert jitted._cache_size() == before + 1


def test_evaluating_and_saving_compile_once(monkeypatch, tmp_path):
    watch = Watch(monkeypatch)
    run(tmp_path, 60, **options(save=20, evaluate=20))
    assert {step for step in watch.compiled if step > 20} == set()


def test_a_step_is_never_more_than_a_few_ahead_of_the_device(monkeypatch):
    ahead, real = [], recipes.step

    def step(*args):
        state, metrics = real(*args)
        ahead.append(metrics["loss"])
        unready = sum(not loss.is_ready() for loss in ahead)
        assert unready <= 6  # STEPS_AHEAD, the step just started, the one being waited for
        return state, metrics

    monkeypatch.setattr(recipes, "step", step)
    fit(RECIPE, Rows(), 40, **options(log=1000, save=1000, evaluate=1000))


# ------------------------------------------------------------------------------------------------------------- logging
def test_records_tell_step_tokens_and_metrics_and_the_loss_falls(tmp_path):
    done = run(tmp_path, 95)
    records = read_records(tmp_path / "log.jsonl")
    train = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in train] == [1, *range(10, 100, 10), 95]
    assert [r["step"] for r in records if r["kind"] == "heldout"] == [20, 40, 60, 80, 95]
    assert all(r["tokens"] == r["step"] * B for r in records)
    assert {"loss", "fvu", "l0", "dead_share", "grad_norm", "normalised_mse", "auxk"} <= set(train[-1])
    assert train[-1]["fvu"] < 0.5 * train[0]["fvu"]
    assert done.metrics == {"train": train[-1], "heldout": records[-1]}


def test_held_out_metrics_are_the_mean_over_batches_of_the_state_at_that_step():
    done = fit(RECIPE, Rows(), 20, heldout=Rows(seed=9), **options())
    each = [recipes.evaluate(RECIPE, done.state, Rows(seed=9).batch(i))["fvu"] for i in range(2)]
    assert done.metrics["heldout"]["fvu"] == pytest.approx(np.mean(each), rel=1e-5)


# -------------------------------------------------------------------------------------------------------------- resume
def test_in_two_sessions_or_in_one_the_state_is_the_same_bit_for_bit(tmp_path):
    once = run(tmp_path / "once", 60)
    run(tmp_path / "twice", 25)
    twice = run(tmp_path / "twice", 60)
    assert digests(twice.state) == digests(once.state)
    assert jax.tree.structure(twice.state) == jax.tree.structure(once.state)
    extra = {25}  # the end of the first session is recorded too
    assert [r for r in without_time(tmp_path / "twice/log.jsonl") if r["step"] not in extra] == without_time(
        tmp_path / "once/log.jsonl"
    )


def test_resuming_compiles_no_second_step(tmp_path):
    run(tmp_path, 20)
    before = recipes.step._cache_size()
    run(tmp_path, 40)
    assert recipes.step._cache_size() == before


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    first = run(tmp_path, 30)
    log = (tmp_path / "log.jsonl").read_text()
    again = run(tmp_path, 30)
    assert digests(again.state) == digests(first.state)
    assert again.metrics == first.metrics
    assert (tmp_path / "log.jsonl").read_text().startswith(log)


def test_records_after_the_checkpoint_are_made_again_not_twice(tmp_path):
    run(tmp_path, 20)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write(json.dumps({"kind": "train", "step": 30, "loss": 1.0}) + "\n" + '{"kind": "tra')
    run(tmp_path, 50)
    steps = [r["step"] for r in read_records(tmp_path / "log.jsonl") if r["kind"] == "train"]
    assert steps == [1, 10, 20, 30, 40, 50]


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(tmp_path):
    once = run(tmp_path / "once", 50)
    run(tmp_path / "hurt", 40, **options(save=15))
    for file in (tmp_path / "hurt/checkpoints/40/rest").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    hurt = run(tmp_path / "hurt", 50, **options(save=15))
    assert digests(hurt.state) == digests(once.state)
    events = [r["event"] for r in read_records(tmp_path / "hurt/log.jsonl") if r["kind"] == "event"]
    assert "checkpoint 40 is damaged" in events[-2]
    assert events[-1] == "continued from the checkpoint of step 30"
    assert (tmp_path / "hurt/checkpoints/damaged-40").is_dir()


def test_it_never_begins_anew_over_checkpoints_it_cannot_read(tmp_path):
    run(tmp_path, 20)
    for file in (tmp_path / "checkpoints").rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no sound checkpoint"):
        run(tmp_path, 30)


# ---------------------------------------------------------------------------------------------------- another config
def test_another_configuration_is_refused_by_its_key(tmp_path):
    config = {"recipe": {"k": 4}, "seed": 0, "output": "a", "log": {"every_steps": 10}}
    run(tmp_path, 20, config=config)
    with pytest.raises(ConfigError, match=r"recipe.k = 4, found 5"):
        run(tmp_path, 30, config=config | {"recipe": {"k": 5}})
    with pytest.raises(ConfigError, match=r"key\[1\] = 3, found 4"):
        run(tmp_path, 30, config=config, key=jax.random.key(4))
    with pytest.raises(ConfigError, match="already done 20 steps, found a length of 10"):
        run(tmp_path, 10, config=config)
    run(tmp_path, 30, config=config | {"output": "b", "log": {"every_steps": 5}})


def test_longer_training_is_refused_where_it_would_have_changed_the_past(tmp_path):
    def lasting(steps):
        return dataclasses.replace(RECIPE, lr_schedule=Linear(warm_up_steps=7, decay_steps=5, training_steps=steps))

    run(tmp_path, 20)
    with pytest.raises(ConfigError, match=r"lr_schedule\.\w+ is .*found .*which would have changed the 20 steps"):
        run(tmp_path, 23, recipe=lasting(23))  # its last 5 steps decay: step 19 was one of them
    assert run(tmp_path, 20, recipe=lasting(25)).step == 20


# ------------------------------------------------------------------------------------------------------------ bad ends
def spoil(x):
    x = x.copy()
    x[5:8, 2] = np.nan
    return x


def test_data_that_is_not_finite_is_named_and_the_good_checkpoint_stays(tmp_path):
    with pytest.raises(DataError, match=r"batch 33 .* 3 rows .*last good checkpoint, of step 30"):
        run(tmp_path, 100, Rows(33, spoil))
    with Checkpoints(tmp_path / "checkpoints", create=False) as checkpoints:
        assert checkpoints.steps() == [20, 30]
        assert np.isfinite(checkpoints.params()[0]["W_enc"]).all()
    assert run(tmp_path, 40).step == 40  # with the data mended it goes on


def test_a_checkpoint_due_before_the_next_log_is_not_written_with_bad_parameters(tmp_path):
    with pytest.raises(DataError, match="batch 13"):
        run(tmp_path, 100, Rows(13, spoil), **options(log=50, save=5, latest=9))
    with Checkpoints(tmp_path / "checkpoints", create=False) as checkpoints:
        assert checkpoints.steps() == [5, 10]


def test_divergence_with_good_data_names_the_learning_rate():
    overflowing = Rows(13, lambda x: x * np.float32(1e30))  # finite, but its squares are not
    with pytest.raises(Diverged, match="though the data is finite; lower the learning rate"):
        fit(PLAIN, overflowing, 40, **options())


def test_sigterm_saves_ends_with_143_and_the_rerun_goes_on(tmp_path):
    once = run(tmp_path / "once", 60)

    def terminate(x):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        return x

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"SIGTERM after step \d+ of 60.*same command again") as found:
        run(tmp_path / "cut", 60, Rows(33, terminate), **options(save=1000))
    assert found.value.status == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    with Checkpoints(tmp_path / "cut/checkpoints", create=False) as checkpoints:
        (step,) = checkpoints.steps()
    assert 25 < step <= 34
    assert f"after step {step} of" in str(found.value)
    assert digests(run(tmp_path / "cut", 60).state) == digests(once.state)


def test_two_processes_do_not_train_into_one_folder(tmp_path):
    with RunDir(tmp_path).open(), pytest.raises(CheckpointError, match="another process"):
        run(tmp_path, 10)
