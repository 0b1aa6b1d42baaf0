"""Metrics over batches: what the dictionary does to rows, whatever their grouping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.errors import ConfigError, DataError
from jaxsae.evals import metrics
from jaxsae.evals.reconstruction import reconstruction
from jaxsae.sae import make_sae

D, S = 6, 20


@pytest.fixture
def sae(key):
    W = jax.random.normal(key, (D, S)) / 2
    return make_sae({"W_enc": W, "b_enc": jnp.zeros(S), "W_dec": W.T / 4, "b_dec": jnp.ones(D)}, k=3)


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(70, D)).astype(np.float32)


def test_equals_the_metrics_of_the_whole(sae, rows):
    codes = sae.encode(jnp.asarray(rows))
    whole = metrics.finish(metrics.update(metrics.init(D, S), rows, sae(jnp.asarray(rows)), codes))
    out = reconstruction(sae, [rows[:13], rows[13:60], rows[60:]], batch_rows=16)
    assert out.numbers == pytest.approx(whole, rel=1e-5)
    np.testing.assert_allclose(out.density, (np.asarray(codes.dense()) != 0).mean(0))


def test_masks_and_other_targets(sae, rows):
    y, mask = rows * 2, np.arange(70) < 50
    out = reconstruction(sae, [{"x": rows, "y": y, "mask": mask}], batch_rows=32)
    error = np.asarray(y - sae(jnp.asarray(rows)))[:50]
    assert out.numbers["mse"] == pytest.approx((error**2).sum(1).mean(), rel=1e-5)
    assert out.numbers["rows"] == 50


def test_progress_counts_rows(sae, rows):
    seen = []
    reconstruction(sae, [rows], batch_rows=32, total=70, progress=lambda *a: seen.append(a))
    assert seen == [("reconstruction", n, 70) for n in (32, 64, 70)]


def test_bad_input_is_named(sae, rows):
    with pytest.raises(DataError, match="no rows"):
        reconstruction(sae, [])
    with pytest.raises(ConfigError, match="width 6"):
        reconstruction(sae, [rows[:, :4]])
    with pytest.raises(ConfigError, match="targets of width 5"):
        reconstruction(sae, [{"x": rows, "y": rows[:, :5]}])
    rows[3, 2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        reconstruction(sae, [rows])
