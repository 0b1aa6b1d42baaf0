"""Sources: a batch is a pure function of (seed, step), and an epoch is every row once."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.data import (
    ArraySource,
    Block,
    CacheSource,
    CacheWriter,
    Manifest,
    Source,
    Superposition,
    TestbedSource,
    local_rows,
    open_cache,
    rows_on_this_process,
)
from jaxsae.errors import ConfigError, DataError

ROWS = 64 * 7 + 23


def make_cache(path, parts=(ROWS,), dtype="float32", sites=("a",)):
    """Row r of part p holds its own number in every column, and minus that at further sites."""
    manifest = Manifest(tuple((s, 8) for s in sites), dtype=dtype, parts=len(parts), shard_rows=128)
    first = 0
    for part, rows in enumerate(parts):
        number = np.arange(first, first + rows)
        x = np.repeat(number[:, None], 8, 1).astype(np.float32)
        writer = CacheWriter(path, manifest, part)
        writer.commit({"train": Block({s: x if s == "a" else -x for s in sites}, number, number)})
        writer.finish()
        first += rows
    return open_cache(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("one") / "c")


def sources(cache):
    x = np.arange(ROWS, dtype=np.float32)[:, None].repeat(8, 1)
    return {
        "cache": lambda batch_size, **kw: CacheSource(cache, batch_size, **kw),
        "array": lambda batch_size, **kw: ArraySource(x, batch_size, **kw),
        "testbed": lambda batch_size, **kw: TestbedSource(Superposition(8, 20, 3), batch_size, **kw),
    }


KINDS = ("cache", "array", "testbed")


@pytest.mark.parametrize("kind", KINDS)
def test_pure_in_the_step_in_any_order(cache, kind):
    make = sources(cache)[kind]
    forward = [make(100, seed=5).batch(0)] + [make(100, seed=5).batch(i) for i in range(1, 12)]
    source = make(100, seed=5)
    assert isinstance(source, Source)
    assert source.d_in == 8
    for step in [11, 3, 3, 0, 7, 11, 1]:
        np.testing.assert_array_equal(source.batch(step)["x"], forward[step]["x"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_matters(cache, kind):
    make = sources(cache)[kind]
    assert (make(64, seed=0).batch(0)["x"] != make(64, seed=1).batch(0)["x"]).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(cache, kind, count):
    make = sources(cache)[kind]
    shares = [make(96, process_index=i, process_count=count) for i in range(count)]
    for step in (0, 4, 5, 9):
        whole = make(96).batch(step)["x"]
        np.testing.assert_array_equal(np.concatenate([s.batch(step)["x"] for s in shares]), whole)


@pytest.mark.parametrize("kind", ["cache", "array"])
@pytest.mark.parametrize("batch_size", [64, 100, 1, 471, 1000])
def test_every_row_once_per_epoch(cache, kind, batch_size):
    source = sources(cache)[kind](batch_size)
    steps = -(-3 * ROWS // batch_size)
    seen = np.concatenate([source.batch(i)["x"][:, 0] for i in range(steps)]).astype(int)
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(seen[epoch * ROWS : (epoch + 1) * ROWS]), np.arange(ROWS))
    assert (seen[:ROWS] != seen[ROWS : 2 * ROWS]).any()


def test_every_row_once_with_several_parts(tmp_path):
    source = CacheSource(make_cache(tmp_path / "c", parts=(130, 40, 200)), 37)
    assert source.rows_per_epoch == 370
    seen = np.concatenate([source.batch(i)["x"][:, 0] for i in range(10)]).astype(int)
    np.testing.assert_array_equal(np.sort(seen), np.arange(370))


def test_a_batch_is_made_of_random_chunks(cache):
    x = CacheSource(cache, 256).batch(0)["x"][:, 0].astype(int)
    origin = cache.split("train").read(0, ROWS)[:, 0].astype(int)
    chunk_of = np.empty(ROWS, int)
    chunk_of[origin] = np.arange(ROWS) // 64
    chunks = chunk_of[x].reshape(4, 64)
    assert (chunks == chunks[:, :1]).all()
    assert len(set(chunks[:, 0])) == 4
    assert chunks[:, 0].tolist() != sorted(chunks[:, 0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_several_sites(tmp_path, dtype):
    cache = make_cache(tmp_path / "c", sites=("a", "b"), dtype=dtype)
    both = CacheSource(cache, 64).batch(3)["sites"]
    assert both.shape == (64, 2, 8)
    assert both.dtype == cache.split("train").row_dtype
    np.testing.assert_array_equal(both[:, 0], -both[:, 1])
    np.testing.assert_array_equal(both[:, 1], CacheSource(cache, 64, sites="b").batch(3)["x"])
    np.testing.assert_array_equal(both[:, ::-1], CacheSource(cache, 64, sites=("b", "a")).batch(3)["sites"])


def test_one_site_as_a_list_is_stacked(cache):
    assert CacheSource(cache, 64, sites=["a"]).batch(0)["sites"].shape == (64, 1, 8)


def test_batches_that_are_held_are_not_written_to(cache):
    source = CacheSource(cache, 64)
    held = [source.batch(i)["x"] for i in range(20)]
    for i, x in enumerate(held):
        np.testing.assert_array_equal(x, CacheSource(cache, 64).batch(i)["x"])


def test_array_source_keeps_dtype_names_and_order():
    x = np.arange(10, dtype=np.float16)[:, None].repeat(3, 1)
    source = ArraySource({"x": x, "target": -x}, 4, shuffle=False)
    batch = source.batch(2)
    assert batch["x"].dtype == np.float16
    np.testing.assert_array_equal(batch["x"][:, 0], [8, 9, 0, 1])
    np.testing.assert_array_equal(batch["target"], -batch["x"])
    assert ArraySource(np.ones((6, 2, 3), np.float32), 2).batch(0)["sites"].shape == (2, 2, 3)


def test_array_source_refuses_rows_that_are_not_finite():
    x = np.ones((9000, 3), np.float32)
    x[[0, 5000], 1] = np.nan
    with pytest.raises(DataError, match="2 of 9000 rows of 'x' hold NaN"):
        ArraySource(x, 4)


def test_array_source_refuses_unequal_lengths():
    with pytest.raises(DataError, match=r"one common number of rows above 0, found \[2, 3\]"):
        ArraySource({"x": np.ones((2, 3)), "y": np.ones((3, 3))}, 1)


def test_sites_of_unequal_width_are_refused(tmp_path):
    writer = CacheWriter(tmp_path / "c", Manifest((("a", 2), ("b", 3))))
    writer.commit({"train": Block({"a": np.ones((4, 2)), "b": np.ones((4, 3))}, np.zeros(4), np.zeros(4))})
    cache = open_cache(tmp_path / "c")
    with pytest.raises(DataError, match="unequal width"):
        CacheSource(cache, 2)
    assert CacheSource(cache, 2, sites="b").d_in == 3


def test_a_split_without_rows_is_refused(cache):
    with pytest.raises(DataError, match="no heldout rows"):
        CacheSource(cache, 2, split="heldout")


@pytest.mark.parametrize("args", [(10, 0, 3), (8, 2, 2), (0, 0, 1)])
def test_shares_must_be_equal(args):
    with pytest.raises(ConfigError, match="cannot be shared"):
        local_rows(*args)


@pytest.mark.parametrize(("shape", "spec"), [((8, 1), P("data")), ((1, 8), P("data")), ((2, 4), P("data", None))])
def test_rows_a_process_supplies_follow_from_the_sharding(shape, spec):
    mesh = jax.make_mesh(shape, ("data", "latent"), axis_types=(AxisType.Auto,) * 2)
    assert rows_on_this_process(NamedSharding(mesh, spec), 32) == (0, 32)  # one process holds all of it


def test_rows_of_some_devices_only():
    class TwoOfFour:
        def addressable_devices_indices_map(self, shape):
            return {d: (slice(8 * d, 8 * d + 8), slice(None)) for d in (2, 3)}

    assert rows_on_this_process(TwoOfFour(), 32) == (16, 32)
