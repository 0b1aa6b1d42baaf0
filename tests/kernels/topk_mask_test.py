"""The mask of the k largest: every implementation against a stable sort in numpy, for fixed, drawn and traced k."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsae.errors import ConfigError
from jaxsae.kernels import topk_mask
from jaxsae.kernels.topk_mask import pallas_tpu, reference, xla

old_jax = pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the kernels need jax >= 0.10")


@functools.cache
def _interpreted():
    from jax.experimental.pallas import tpu as pltpu

    run = functools.partial(pallas_tpu.cut, tile=8, interpret=pltpu.InterpretParams(detect_races=True))
    return jax.jit(run)


CUTS = {
    "reference": reference.cut,
    "xla": xla.cut,
    "pallas_tpu": pytest.param(lambda x, k: _interpreted()(x, k), marks=old_jax, id="pallas_tpu"),
}
ROWS, SIZE = 11, 2100  # neither a multiple of the tile
AWKWARD = {
    "normal": lambda r: r.standard_normal((ROWS, SIZE)),
    "ties": lambda r: np.round(r.standard_normal((ROWS, SIZE)) * 2) + 0.0,
    "all equal": lambda r: np.full((ROWS, SIZE), -1.5),
    "all negative": lambda r: -np.abs(r.standard_normal((ROWS, SIZE))),
    "infinite": lambda r: r.choice([np.inf, -np.inf, 0.0, 1.0], (ROWS, SIZE)),
}


def by_sorting(x, k):
    """The first k of a stable sort, as a mask."""
    order = np.argsort(-x, axis=1, kind="stable")
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, order, np.arange(x.shape[1])[None] < np.asarray(k)[:, None], axis=1)
    return mask


@pytest.mark.parametrize("cut", CUTS.values(), ids=None)
@pytest.mark.parametrize("case", AWKWARD)
def test_equals_a_stable_sort(case, cut):
    x = AWKWARD[case](np.random.default_rng(0)).astype(np.float32)
    k = np.array([0, 1, 2, 5, 64, 500, 1000, SIZE - 1, SIZE, SIZE + 9, 33], np.int32)
    mask = xla.above(jnp.asarray(x), *cut(jnp.asarray(x), jnp.asarray(k)))
    np.testing.assert_array_equal(mask, by_sorting(x, k))


@pytest.mark.parametrize("cut", [reference.cut, xla.cut])
def test_orders_zeros_and_nan_as_lax_top_k(cut):
    x = jnp.array([[0.0, -0.0, 0.0, -1.0, -0.0], [1.0, jnp.nan, 2.0, jnp.inf, jnp.nan]])
    for k in (1, 2, 3, 4):
        chosen = np.zeros(x.shape, bool)
        np.put_along_axis(chosen, np.asarray(jax.lax.top_k(x, k)[1]), True, axis=1)
        np.testing.assert_array_equal(xla.above(x, *cut(x, k)), chosen)


@pytest.mark.parametrize("cut", CUTS.values(), ids=None)
@pytest.mark.parametrize("size", [130, 2100])
def test_orders_zeros_and_nan_of_both_signs_by_their_bits(size, cut):
    """-NaN < -inf < -0 < +0 < inf < NaN, at widths below and above what the TPU kernel reads at once."""
    rng = np.random.default_rng(2)
    x = rng.choice([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan], (ROWS, size)).astype(np.float32)
    x = np.where(rng.random(x.shape) < 0.1, np.copysign(x, np.float32(-1.0)), x)
    x[0], x[1] = 0.0, -np.abs(x[1])
    bits = x.view(np.int32).astype(np.int64)
    rank = np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)
    k = np.array([1, 2, 5, 20, 64, 100, size - 1, size, 0, 77, 129], np.int32)
    order = np.argsort(-rank, axis=1, kind="stable")
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, order, np.arange(size)[None] < k[:, None], axis=1)
    np.testing.assert_array_equal(xla.above(jnp.asarray(x), *cut(jnp.asarray(x), jnp.asarray(k))), mask)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.sampled_from([7, 130, 513]), st.integers(1, 60), st.integers(0, 10**6))
def test_the_whole_batch_is_cut_at_once(rows, size, k, seed):
    k = min(k, rows * size)
    x = np.round(np.random.default_rng(seed).standard_normal((rows, size)) * 3).astype(np.float32) + 0.0
    mask = topk_mask(jnp.asarray(x), k, over="all")
    np.testing.assert_array_equal(mask, by_sorting(x.reshape(1, -1), [k]).reshape(x.shape))


def test_k_may_be_swept_under_one_program():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 300)), jnp.bfloat16)
    count = jax.jit(jax.vmap(lambda k: topk_mask(x, k, over="all").sum()))
    assert count(jnp.array([0, 3, 40, 1200])).tolist() == [0, 3, 40, 1200]


def test_tiles_fit_by_construction():
    for size in (1000, 24576, 131072, 1 << 20):
        tile = pallas_tpu.tile_rows(4096, size, 128 * 2**20)
        assert tile is not None
        assert 12 * tile * size < 128 * 2**20
    assert pallas_tpu.tile_rows(4096, 1 << 20, 64 * 2**20) is None


@pytest.mark.parametrize("k", [0, 9, np.int64(0), np.int32(9)])
def test_refuses_k_out_of_range(k):
    with pytest.raises(ConfigError, match="between 1 and the 8 candidates"):
        topk_mask(jnp.zeros((2, 8)), k)


@pytest.mark.parametrize("over", ["rows", "ALL", ""])
def test_refuses_another_word_than_row_or_all(over):
    with pytest.raises(ConfigError, match=f"over must be 'row' or 'all', found '{over}'"):
        topk_mask(jnp.zeros((2, 8)), 2, over=over)


def test_refuses_numbers_that_float32_would_round():
    """2^24 + 1 is no f32: the lower of two would win."""
    with pytest.raises(ConfigError, match="takes float32, bfloat16 or float16, found int32; cast it"):
        topk_mask(jnp.array([[2**24, 2**24 + 1]], jnp.int32), 1)


def test_named_on_another_platform_it_says_what_is_possible():
    with pytest.raises(ConfigError, match="runs on tpu, this is cpu; possible: xla, reference"):
        topk_mask(jnp.zeros((2, 8)), 2, implementation="pallas_tpu")
