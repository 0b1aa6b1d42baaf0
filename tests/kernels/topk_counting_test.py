"""Top-k by counting: the steps between, and the rows for which the first bound is not enough."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsae import parallel
from jaxsae.errors import ConfigError
from jaxsae.kernels import encode_topk, topk
from jaxsae.kernels.topk import xla
from jaxsae.kernels.topk import xla_counting as counting


@settings(max_examples=30, deadline=None)
@given(
    size=st.sampled_from([1, 31, 32, 33, 200, 256]),
    n=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_first_columns_are_those_that_numpy_finds(size, n, share, seed):
    mask = np.random.default_rng(seed).random((4, size)) < share
    columns, count = counting.first_columns(jnp.asarray(mask), n)
    np.testing.assert_array_equal(count, mask.sum(1))
    for row, found in zip(mask, np.asarray(columns), strict=True):
        expected = np.nonzero(row)[0][:n]
        np.testing.assert_array_equal(found[: len(expected)], expected)
        assert np.all((found >= 0) & (found < size))


def test_kth_largest_with_ties_and_extremes():
    keys = np.random.default_rng(0).integers(-5, 6, (6, 50)).astype(np.int32)
    keys[0, :3], keys[1, :3] = np.iinfo(np.int32).max, np.iinfo(np.int32).min
    for k in (1, 7, 50):
        np.testing.assert_array_equal(counting.kth_largest(jnp.asarray(keys), k), np.sort(keys, axis=1)[:, -k])


ROWS = {
    "the best in two groups": lambda r: np.where(np.arange(2048) < 64, 100.0, 0.0) + r.standard_normal(2048),
    "the best in two groups, and tied": lambda r: np.where(np.arange(2048) < 64, 100.0, 0.0),
    "one of many equal maxima": lambda r: np.where(np.arange(2048) % 32 == 7, 5.0, r.standard_normal(2048)),
    "ordinary": lambda r: r.standard_normal(2048),
}


@pytest.mark.parametrize(
    "rows", [[n] * 3 for n in ROWS] + [list(ROWS) * 20, [*ROWS, *["ordinary"] * 76]], ids=[*ROWS, "mixed", "few of 80"]
)
def test_rows_the_first_bound_cannot_tell_apart(rows):
    """A few rows are repaired, many are ranked whole; each step sees to its own."""
    rng = np.random.default_rng(0)
    x = np.stack([ROWS[name](rng) for name in rows]).astype(np.float32)
    values, index = jax.jit(counting.topk, static_argnums=1)(jnp.asarray(x), 16)
    order = np.argsort(-x, axis=1, kind="stable")[:, :16]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, 1))


def test_runs_of_a_sweep_agree_with_single_runs():
    x = jnp.asarray(np.round(np.random.default_rng(0).standard_normal((3, 5, 2048)) * 2), jnp.float32)
    for a, b in zip(jax.vmap(lambda x: counting.topk(x, 8))(x), jax.lax.top_k(x, 8), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("k", [64, counting.LONGEST, counting.LONGEST + 1])  # counted, counted, not counted
def test_memory_stays_that_of_the_candidates(k):
    """Naming columns takes memory that grows with k squared, so long lists go another way."""
    x = jax.ShapeDtypeStruct((64, 16384), jnp.float32)
    stats = jax.jit(topk, static_argnums=1).lower(x, k).compile().memory_analysis()
    assert stats.temp_size_in_bytes < 16 * 64 * k * xla.GROUP * 4


@pytest.mark.parametrize(
    ("size", "k", "dtype", "why"),
    [
        (16384, 257, jnp.float32, "ranks at most 256 entries, not 257"),
        (2049, 4, jnp.float32, "needs rows whose length 32 divides, not 2049"),
        (2048, 80, jnp.float32, "needs rows of at least 2560 entries for k 80, not 2048"),
        (2048, 4, jnp.int32, "takes float32, bfloat16 and float16, not int32"),
    ],
)
def test_what_counting_cannot_serve_is_refused_by_name_and_goes_another_way_without(size, k, dtype, why):
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (3, size)), dtype)
    with pytest.raises(ConfigError, match=f"topk: 'xla_counting' {why}; possible: xla, reference"):
        topk(x, k, implementation="xla_counting")
    order = np.argsort(-np.asarray(x, np.int64), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(topk(x, k)[1], order)
    if dtype == jnp.float32:
        z, W = jnp.zeros(size), jnp.ones((4, size))
        with pytest.raises(ConfigError, match=f"encode_topk: 'xla_counting' {why}; possible: xla, reference"):
            encode_topk(jnp.ones((3, 4)), W, z, jnp.zeros(4), None, z > 0, k, implementation="xla_counting")


def test_on_a_mesh_the_part_of_a_device_decides():
    """2048 latents on eight devices are 256 each, fewer than a list of 16 needs."""
    x = jnp.zeros((8, 2048))
    topk(x, 16, implementation="xla_counting")
    with parallel.use(parallel.make_mesh(1, 8)):
        assert topk(x, 16)[1].tolist() == [list(range(16))] * 8
        with pytest.raises(ConfigError, match="needs rows of at least 512 entries for k 16, not 256"):
            topk(x, 16, implementation="xla_counting")


def test_longer_lists_are_still_exact():
    x = jnp.asarray(np.round(np.random.default_rng(0).standard_normal((3, 16384)) * 50), jnp.float32)
    for k in (100, 256, 300):
        for a, b in zip(topk(x, k), jax.lax.top_k(x, k), strict=True):
            np.testing.assert_array_equal(a, b)
