"""Metrics against numpy in float64, and the properties that make them mergeable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.evals import metrics
from jaxsae.sae import DenseCodes, SparseCodes

B, E, S, K = 96, 12, 40, 4


def make(seed=0, n=B, offset=0.0):
    rng = np.random.default_rng(seed)
    y = (rng.normal(size=(n, E)) * np.linspace(0.5, 3, E) + 0.7 + offset).astype(np.float32)
    yhat = (0.8 * (y - offset) + 0.3 * rng.normal(size=(n, E)) + offset).astype(np.float32)
    indices = np.stack([rng.permutation(S - 5)[:K] for _ in range(n)]).astype(np.int32)
    values = (rng.random((n, K)) * (rng.random((n, K)) > 0.25)).astype(np.float32)
    return y, yhat, SparseCodes(jnp.asarray(values), jnp.asarray(indices), S)


def rows_of(codes, part):
    return codes.replace(values=codes.values[part], indices=codes.indices[part])


def run(y, yhat, codes, parts=(slice(None),), mask=None):
    sums, mask = metrics.init(E, S), np.ones(len(y), np.float32) if mask is None else mask
    for part in parts:
        sums = metrics.update(sums, y[part], yhat[part], rows_of(codes, part), mask[part])
    return sums


def numpy_metrics(y, yhat, codes):
    y, yhat = y.astype(np.float64), yhat.astype(np.float64)
    err, on = y - yhat, np.asarray(codes.dense()) != 0
    fvu = (err**2).sum() / ((y - y.mean(0)) ** 2).sum()
    norm = np.linalg.norm
    return {
        "rows": float(len(y)),
        "mse": (err**2).sum(1).mean(),
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "explained_variance_centred": 1 - err.var(0).sum() / y.var(0).sum(),
        "normalised_mse": ((err**2).sum(1) / (y**2).sum(1)).mean(),
        "cosine": ((y * yhat).sum(1) / norm(y, axis=1) / norm(yhat, axis=1)).mean(),
        "l2_ratio": (norm(yhat, axis=1) / norm(y, axis=1)).mean(),
        "relative_reconstruction_bias": (yhat**2).sum() / (y * yhat).sum(),
        "l0": on.sum(1).mean(),
        "dead_share": 1 - on.any(0).mean(),
        "dense_share": (on.mean(0) > 0.1).mean(),
    }


def close(a, b, rel=1e-6):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=rel, abs=rel), name


def test_equals_numpy_float64():
    y, yhat, codes = make()
    close(metrics.finish(run(y, yhat, codes)), numpy_metrics(y, yhat, codes))


def test_dense_and_sparse_codes_agree():
    y, yhat, codes = make()
    dense = metrics.update(metrics.init(E, S), y, yhat, DenseCodes(codes.dense()))  # no mask: all rows
    close(metrics.finish(dense), metrics.finish(run(y, yhat, codes)))


def test_identity_has_no_error():
    y, _, codes = make()
    out = metrics.finish(run(y, y, codes))
    assert (out["fvu"], out["mse"], out["explained_variance"]) == (0.0, 0.0, 1.0)
    assert out["cosine"] == pytest.approx(1.0)
    assert out["relative_reconstruction_bias"] == pytest.approx(1.0)


def test_predicting_the_mean_explains_exactly_nothing():
    y = np.random.default_rng(0).integers(-8, 8, (64, E)).astype(np.float32)
    y[32:] = -y[:32]  # the mean is exactly 0 in every coordinate, and so are all roundings
    codes = SparseCodes(jnp.zeros((64, 1)), jnp.zeros((64, 1), jnp.int32), S)
    assert metrics.finish(run(y + 3, np.full_like(y, 3), codes))["explained_variance"] == 0.0
    y, _, codes = make(offset=50.0)
    mean = np.broadcast_to(y.astype(np.float64).mean(0), y.shape).astype(np.float32)
    out = metrics.finish(run(y, mean, codes, [slice(0, 24), slice(24, B)]))
    assert out["explained_variance"] == pytest.approx(0.0, abs=2e-7)


def test_constant_bias_is_seen_by_one_form_and_not_by_the_other():
    y, _, codes = make()
    out = metrics.finish(run(y, y + 1.0, codes))
    assert out["explained_variance_centred"] == pytest.approx(1.0, abs=1e-6)
    assert out["fvu"] == pytest.approx(E / y.var(0).sum(), rel=1e-5)


def test_merge_of_parts_equals_the_whole_in_any_order():
    y, yhat, codes = make()
    whole = metrics.finish(run(y, yhat, codes))
    cuts = [slice(0, 24), slice(24, 25), slice(25, 49), slice(49, B)]
    parts = [run(y, yhat, codes, [c]) for c in cuts]
    left = metrics.merge(metrics.merge(parts[0], parts[1]), metrics.merge(parts[2], parts[3]))
    right = metrics.merge(parts[3], metrics.merge(parts[2], metrics.merge(parts[1], parts[0])))
    streamed = run(y, yhat, codes, cuts[::-1])
    empty = metrics.merge(metrics.init(E, S), metrics.merge(left, metrics.init(E, S)))
    for sums in (left, right, streamed, empty):
        close(metrics.finish(sums), whole)
        np.testing.assert_array_equal(metrics.density(sums), metrics.density(left))


def test_masked_rows_do_not_count_even_when_they_are_nan():
    y, yhat, codes = make()
    mask = (np.arange(B) % 3 > 0).astype(np.float32)
    want = numpy_metrics(y[mask > 0], yhat[mask > 0], rows_of(codes, mask > 0))
    y[mask == 0], yhat[mask == 0] = np.nan, np.inf
    codes = codes.replace(values=jnp.where(mask[:, None] > 0, codes.values, jnp.nan))
    close(metrics.finish(run(y, yhat, codes, [slice(0, 24), slice(24, B)], mask)), want)


@pytest.mark.parametrize("offset", [1e3, -1e3])
def test_a_common_offset_does_not_change_fvu(offset):
    y, yhat, codes = make()
    near, far = run(y, yhat, codes), run(y + np.float32(offset), yhat + np.float32(offset), codes)
    rounding = float(np.finfo(np.float32).eps) * abs(offset)
    assert metrics.finish(far)["fvu"] == pytest.approx(metrics.finish(near)["fvu"], rel=10 * rounding)


def test_a_hundred_million_rows_lose_no_digits():
    y, yhat, codes = make()
    sums = run(y, yhat, codes)
    for _ in range(20):  # doubling 96 rows 20 times
        sums = metrics.merge(sums, sums)
    assert metrics.finish(sums)["rows"] == B * 2**20 > 1e8
    close(metrics.finish(sums), numpy_metrics(y, yhat, codes) | {"rows": B * 2.0**20})
    one_more = metrics.finish(metrics.merge(sums, run(y, yhat, codes, [slice(24, 25)])))
    assert one_more["rows"] == B * 2**20 + 1  # float32 alone would swallow it


def test_many_small_steps_do_not_drift():
    rng = np.random.default_rng(0)
    y = (rng.normal(size=(2**18, 2)) + 100).astype(np.float32)
    codes = SparseCodes(jnp.ones((64, 1)), jnp.zeros((64, 1), jnp.int32), 2)

    @jax.jit
    def scan(y):
        step = lambda sums, rows: (metrics.update(sums, rows, rows * 0.99, codes), None)  # noqa: E731
        return jax.lax.scan(step, metrics.init(2, 2), y.reshape(-1, 64, 2))[0]

    out, y64 = metrics.finish(scan(y)), y.astype(np.float64)
    err = (y64 - (y * np.float32(0.99)).astype(np.float64)) ** 2
    assert out["fvu"] == pytest.approx(err.sum() / ((y64 - y64.mean(0)) ** 2).sum(), rel=3e-6)
    assert out["l0"] == 1.0
    assert out["rows"] == 2**18


def test_density_histogram_counts_every_latent_once():
    frequency = np.array([0.0, 1e-9, 1e-3, 0.5, 1.0])
    out = metrics.density_histogram(frequency)
    assert out["dead"] == 1
    assert sum(out["counts"]) == 4
    assert len(out["edges"]) == len(out["counts"]) + 1
    assert out["counts"][0] == 1
    assert out["counts"][-1] == 1


def test_density_is_the_share_of_rows():
    y, yhat, codes = make()
    want = (np.asarray(codes.dense()) != 0).mean(0)
    np.testing.assert_allclose(metrics.density(run(y, yhat, codes)), want, rtol=1e-12)


def test_nothing_seen_is_undefined_not_zero():
    out = metrics.finish(metrics.init(E, S))
    assert out.pop("rows") == 0
    assert all(np.isnan(v) for v in out.values())


def test_one_trace_for_all_batches():
    y, yhat, codes = make()
    before = metrics.update._cache_size()
    run(y, yhat, codes, [slice(0, 24), slice(24, 48), slice(48, 72)])
    assert metrics.update._cache_size() - before <= 1
