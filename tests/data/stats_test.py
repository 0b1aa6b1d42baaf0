"""Statistics of rows equal numpy's."""

import json

import ml_dtypes
import numpy as np
import pytest

from jaxsae.data.stats import SiteStats

RNG = np.random.default_rng(0)


def filled(rows, pieces=1):
    stats = SiteStats.empty(rows.shape[1])
    for piece in np.array_split(rows, pieces):
        assert stats.add(piece) == 0
    return stats


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_equal_numpy(dtype):
    rows = (RNG.normal(size=(1000, 24)) * RNG.lognormal(size=24) + RNG.normal(size=24)).astype(dtype)
    stats, wide = filled(rows, 3), rows.astype(np.float64)
    norm = np.linalg.norm(wide, axis=1)
    assert stats.rows == 1000
    np.testing.assert_allclose(stats.mean, wide.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(stats.variance, wide.var(0), rtol=1e-5)
    np.testing.assert_allclose(stats.mean_norm, norm.mean(), rtol=1e-6)
    np.testing.assert_allclose(stats.mean_square_norm, (norm**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(stats.max_norm, norm.max(), rtol=1e-6)
    for q in (0.01, 0.5, 0.99):
        np.testing.assert_allclose(stats.norm_quantile(q), np.quantile(norm, q), rtol=0.02)


def test_rows_of_zero():
    stats = filled(np.concatenate([np.zeros((3, 4), np.float32), np.ones((1, 4), np.float32)]))
    assert stats.norm_quantile(0.5) == 0.0
    np.testing.assert_allclose(stats.norm_quantile(1.0), 2.0, rtol=0.006)


def test_json_keeps_every_bit():
    stats = filled(RNG.normal(size=(100, 5)).astype(np.float32))
    again = SiteStats.from_json(json.loads(json.dumps(stats.to_json())))
    assert again.to_json() == stats.to_json()
    np.testing.assert_array_equal(again.total, stats.total)


def test_going_on_after_json_is_bit_identical():
    a, b = RNG.normal(size=(2, 300, 5)).astype(np.float32)
    straight, stopped = filled(a), filled(a)
    stopped = SiteStats.from_json(json.loads(json.dumps(stopped.to_json())))
    straight.add(b)
    stopped.add(b)
    assert straight.to_json() == stopped.to_json()


def test_merge_is_the_whole():
    rows = RNG.normal(size=(500, 6)).astype(np.float32)
    merged, whole = SiteStats.merge([filled(rows[:123]), filled(rows[123:])]), filled(rows)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-6)
    assert merged.histogram == whole.histogram
    assert merged.rows == 500


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_counted_and_nothing_else(bad):
    rows = np.ones((100, 4), np.float32)
    rows[[3, 70], 1] = bad
    stats = SiteStats.empty(4)
    assert stats.add(rows) == 2
    assert stats.to_json() == SiteStats.empty(4).to_json()


def test_a_copy_is_independent():
    stats = filled(np.ones((4, 2), np.float32))
    copy = stats.copy()
    copy.add(np.full((4, 2), 5, np.float32))
    assert stats.rows == 4
    assert sum(stats.histogram.values()) == 4
    np.testing.assert_array_equal(stats.total, [4, 4])
