"""What is looked out for during a run: stalls, spikes, traces; a page for others; compiled programs kept."""

import importlib.util
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.data.sources import ArraySource
from jaxsae.errors import ConfigError
from jaxsae.train import Diverged, LogPolicy, RunDir, WatchPolicy, fit, read_records, stalls
from jaxsae.train.compilation_cache import keep_compiled
from jaxsae.train.progress import Progress
from jaxsae.train.spikes import Spikes
from jaxsae.train.stalls import Clock

D, B = 8, 16
ROWS = np.random.default_rng(0).standard_normal((256, D), np.float32)
RECIPE = recipes.relu_l1(D, 16, lr=1e-3)


class Time:
    """A clock that is set by hand."""

    def __init__(self):
        self.t = 0.0

    def __call__(self):
        return self.t

    def spend(self, seconds):
        self.t += seconds


def interval(clock, now, data, device, host):
    """One step's worth of an interval, and the verdict."""
    for _ in clock.data(slowly(now, data)):
        now.spend(host)
        clock.device(lambda: now.spend(device))
    return clock.judge()


def slowly(now, seconds):
    now.spend(seconds)
    yield "batch"


def test_the_larger_loss_is_told_and_a_busy_device_is_not():
    now = Time()
    clock = Clock(0.25, now)
    assert interval(clock, now, data=50.0, device=0.0, host=0.0) == ""  # compilation
    assert interval(clock, now, data=1.0, device=8.5, host=0.5) == ""
    assert interval(clock, now, data=4.0, device=5.0, host=1.0).startswith(
        "40% of the last 10.0 s was waiting for data"
    )
    assert interval(clock, now, data=0.5, device=1.0, host=3.5).startswith(
        "70% of the last 5.0 s was spent by the host"
    )
    assert interval(clock, now, data=0.5, device=0.1, host=0.1) == ""  # too short to tell
    now.spend(100.0)
    clock.restart()
    assert interval(clock, now, data=0.1, device=2.0, host=0.1) == ""


def test_a_spike_is_far_above_the_median_and_does_not_move_it():
    spikes = Spikes(4.0)
    assert not any(spikes.look(loss) for loss in (100.0, 1.0, 1.1, 0.9, 1.0, 1.0))  # the first record is no yardstick
    for _ in range(30):
        assert "the loss is 6, 6 times the median 1" in spikes.look(6.0)
    assert spikes.look(3.0) == ""
    assert spikes.look(float("nan")) == ""


class Source(ArraySource):
    """Rows that come slowly, or grow."""

    def __init__(self, seconds=0.0, grow_at=10**9):
        super().__init__(ROWS, batch_size=B)
        self.seconds, self.grow_at = seconds, grow_at

    def batch(self, step):
        time.sleep(self.seconds)
        found = super().batch(step)
        return {"x": found["x"] * 100.0} if step >= self.grow_at else found


def run(path, source, steps, watch, every=1):
    with RunDir(path).open() as run_dir:
        log = LogPolicy(every_steps=every, progress=False)
        return fit(RECIPE, source, steps, key=jax.random.key(0), run_dir=run_dir, log=log, watch=watch)


def events(path):
    return [r["event"] for r in read_records(path / "log.jsonl") if r["kind"] == "event"]


def test_a_slow_source_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(stalls, "LEAST_SECONDS", 0.05)
    run(tmp_path, Source(seconds=0.1), 24, WatchPolicy(), every=8)
    assert any("waiting for data" in e for e in events(tmp_path))


def test_spikes_are_noted_or_stop_the_run(tmp_path):
    assert run(tmp_path / "noted", Source(grow_at=10), 14, WatchPolicy()).step == 14
    assert any("times the median" in e for e in events(tmp_path / "noted"))
    with pytest.raises(Diverged, match="on_spike is 'stop'; no checkpoint exists yet"):
        run(tmp_path / "stopped", Source(grow_at=10), 14, WatchPolicy(on_spike="stop"))


TRACED = """
import sys
import jax
import numpy as np
from jaxsae import recipes
from jaxsae.data.sources import ArraySource
from jaxsae.train import RunDir, WatchPolicy, fit

if sys.argv[2:]:
    from jaxsae.plan import open_target
    open_target(sys.argv[2])
rows = ArraySource(np.ones((64, 8), np.float32), batch_size=16)
with RunDir(sys.argv[1]).open() as run_dir:
    watch = WatchPolicy(trace_step=2, trace_steps=2)
    fit(recipes.relu_l1(8, 16), rows, 6, key=jax.random.key(0), run_dir=run_dir, watch=watch)
"""


def traced(path, *topology):
    """Events and traced files of a run in a process of its own, whose profiler no other library has touched."""
    subprocess.run([sys.executable, "-c", TRACED, path, *topology], check=True, capture_output=True, timeout=300)
    return events(path), [p for p in (path / "profile").rglob("*") if p.is_file()]


def test_chosen_steps_are_traced(tmp_path):
    told, files = traced(tmp_path)
    assert files
    assert any("trace of steps 2 to 3" in e for e in told)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_no_trace_where_the_profiler_would_crash(tmp_path):
    told, files = traced(tmp_path, "v5e:2x2")
    assert not files
    assert any("no profiler trace: this process has compiled for a TPU it does not have" in e for e in told)


def test_the_run_directory_explains_itself(tmp_path):
    run(tmp_path, Source(), 2, WatchPolicy())
    text = (tmp_path / "README.md").read_text()
    for word in ("`relu_l1`", "width 8", "16 per step", "log.jsonl", "jaxsae report"):
        assert word in text
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["kind"] == "train"


def test_events_are_shown(capsys):
    bar = Progress(10)
    bar.write({"kind": "event", "step": 1, "tokens": 1, "time": 0.0, "event": "half of the time was lost"})
    assert "half of the time was lost" in capsys.readouterr().err


def test_compiled_programs_are_kept(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        keep_compiled(None)
        assert getattr(jax.config, names[0]) == before[names[0]]
        keep_compiled(str(tmp_path / "cache"), least_seconds=0.0)
        jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.ones((17, 17))).block_until_ready()
        assert list((tmp_path / "cache").iterdir())
        keep_compiled(f"file://{tmp_path}/other")
        assert getattr(jax.config, names[0]) == f"{tmp_path}/other"
        with pytest.raises(ConfigError, match="'compilation_cache': expected a folder, or a URL such as"):
            keep_compiled("gcs://bucket/programs")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        from jax.experimental.compilation_cache import compilation_cache

        compilation_cache.reset_cache()


def test_impossible_values_are_refused():
    for values in ({"stall_share": 0.0}, {"spike_factor": -1.0}, {"trace_step": 0}, {"trace_steps": 0}):
        with pytest.raises(ConfigError, match="config key 'watch"):
            WatchPolicy(**values)
