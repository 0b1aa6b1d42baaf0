"""Stream: what arrives is what the source makes, in order; nothing is overwritten, nothing is left running."""

import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.data import ArraySource, Block, CacheSource, CacheWriter, Manifest, open_cache, put_on, stream
from jaxsae.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "c"
    rows = np.random.default_rng(0).normal(size=(2000, 512)).astype(np.float32)
    writer = CacheWriter(path, Manifest((("a", 512),)))
    writer.commit({"train": Block({"a": rows}, np.arange(2000), np.arange(2000))})
    return CacheSource(open_cache(path), 128, seed=1)


class Numbered:
    """Step i is a batch of i; counts who reads."""

    d_in, batch_size = 4, 2

    def __init__(self, fail_at=-1):
        self.fail_at, self.threads = fail_at, set()

    def batch(self, step):
        self.threads.add(threading.current_thread())
        if step == self.fail_at:
            raise DataError("rows 3 to 5 are damaged")
        return {"x": np.full((2, 4), step, np.float32)}


@pytest.mark.parametrize("start", [0, 13])
@pytest.mark.parametrize(("prefetch", "threads"), [(1, 1), (2, 2), (5, 3)])
def test_steps_in_order_from_any_start(source, start, prefetch, threads):
    with stream(source, start, prefetch, threads=threads) as batches:
        for expected, (step, batch) in zip(range(start, start + 25), batches, strict=False):
            assert step == expected
            assert isinstance(batch["x"], jax.Array)
            np.testing.assert_array_equal(np.asarray(batch["x"]), source.batch(step)["x"])


def test_batches_on_the_device_stay_as_they_were(source):
    """Twenty steps long nobody may write into memory that a device array still uses."""
    with stream(source) as batches:
        held = [next(batches) for _ in range(40)]
    for step, batch in held:
        np.testing.assert_array_equal(np.asarray(batch["x"]), source.batch(step)["x"])


def test_results_under_way_see_their_own_batch(source):
    square = jax.jit(lambda x: (x.astype(np.float32) ** 2).sum())
    with stream(source) as batches:
        found = [(step, square(batch["x"])) for step, batch in (next(batches) for _ in range(40))]
    for step, value in found:
        np.testing.assert_allclose(value, (source.batch(step)["x"].astype(np.float32) ** 2).sum(), rtol=1e-5)


def test_sharded_over_devices(source):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    with stream(source, put=put_on(sharding, 128)) as batches:
        held = [next(batches) for _ in range(10)]
    for step, batch in held:
        assert batch["x"].sharding == sharding
        np.testing.assert_array_equal(np.asarray(batch["x"]), source.batch(step)["x"])


def test_the_default_device_of_the_caller_counts():
    device = jax.devices()[3]
    with jax.default_device(device), stream(Numbered()) as batches:
        assert next(batches)[1]["x"].devices() == {device}


def test_it_works_ahead_but_not_far():
    numbered, seen = Numbered(), []
    with stream(numbered, put=lambda batch: seen.append(batch) or {}, prefetch=3) as batches:
        for _ in range(4):
            next(batches)
    assert 4 <= len(seen) <= 4 + 3 + 1


def test_close_joins_its_threads():
    numbered = Numbered()
    batches = stream(numbered)
    next(batches)
    batches.close()
    batches.close()
    assert numbered.threads
    assert not any(t.is_alive() for t in numbered.threads)
    with pytest.raises(StopIteration):
        next(batches)


def test_an_abandoned_stream_ends_its_threads():
    numbered = Numbered()
    batches = stream(numbered)
    next(batches)
    del batches
    for thread in numbered.threads:
        thread.join(10)
    assert not any(t.is_alive() for t in numbered.threads)


def test_errors_arrive_where_the_batch_would():
    with stream(Numbered(fail_at=4)) as batches:
        assert [next(batches)[0] for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(DataError, match="rows 3 to 5"):
            next(batches)


@pytest.mark.parametrize("kind", [{"prefetch": 0}, {"threads": 0}, {"start": -1}])
def test_impossible_settings(kind):
    with pytest.raises(ConfigError, match="expected prefetch >= 1"):
        stream(Numbered(), **kind)


def test_arrays_stream_too():
    source = ArraySource(np.arange(50, dtype=np.float32)[:, None], 5)
    with stream(source) as batches:
        rows = np.concatenate([np.asarray(next(batches)[1]["x"]) for _ in range(10)])
    np.testing.assert_array_equal(np.sort(rows[:, 0]), np.arange(50))


@pytest.mark.parametrize("ending", ["", "raise SystemExit(0)"])
def test_the_interpreter_ends_quietly(ending):
    code = f"""
import numpy as np
from jaxsae.data import ArraySource, stream
batches = stream(ArraySource(np.ones((64, 4), np.float32), 8))
for _ in range(3): next(batches)
{ending}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
