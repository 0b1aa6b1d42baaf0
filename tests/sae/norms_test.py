"""Input scaling: what each member does, and that folding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.sae import DatasetNorm, NoNorm, RowNorm, Rows, make_sae


def rows(n=40, d=8):
    x = 5.0 + 3.0 * jax.random.normal(jax.random.key(1), (n, d))
    return Rows(x, x, jnp.ones(n))


def test_dataset_norm_gives_mean_norm_sqrt_d_on_rows_that_count():
    r = rows()
    junk = r._replace(x=r.x.at[:5].set(1e6), y=r.y.at[:5].set(1e6), mask=r.mask.at[:5].set(0.0))
    p = DatasetNorm().init(junk)
    scaled = DatasetNorm().inputs(p, r.x[5:])
    np.testing.assert_allclose(jnp.linalg.norm(scaled, axis=1).mean(), np.sqrt(8), rtol=1e-5)


def test_row_norm_standardises_with_divisor_d_minus_one():
    x = np.asarray(rows().x, np.float64)
    expected = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(RowNorm().inputs({}, rows().x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [NoNorm(), DatasetNorm(), RowNorm()])
def test_undo_returns_targets_to_their_scale(norm):
    r = rows()
    p = norm.init(r)
    back = norm.undo(p, norm.targets(p, r.y, r.x), r.x)
    np.testing.assert_allclose(back, r.y, rtol=2e-5, atol=2e-5)


def test_folding_keeps_codes_and_reconstruction():
    batch = {"x": rows(64, 8).x}
    recipe = recipes.relu_l1(8, 16)
    state = recipes.init(recipe, jax.random.key(0), batch)
    sae, p = recipe.export(state), state.params
    assert isinstance(sae.norm, NoNorm)
    z = jax.nn.relu(batch["x"] * p["c_in"] @ p["W_enc"] + p["b_enc"][None])
    y = (z @ p["W_dec"] + p["b_dec"][None]) / p["c_out"]
    np.testing.assert_allclose(sae.encode(batch["x"]).dense(), z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sae(batch["x"]), y, rtol=1e-4, atol=1e-5)


def test_a_row_norm_stays_with_the_frozen_coder_and_needs_like_to_be_undone():
    d = 8
    eye = jnp.eye(d)
    sae = make_sae({"W_enc": eye, "b_enc": jnp.full(d, 9.0), "W_dec": eye, "b_dec": jnp.full(d, -9.0)}, norm=RowNorm())
    x = rows().x
    codes = sae.encode(x)
    np.testing.assert_allclose(sae.decode(codes, like=x), x, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(sae.decode(codes), RowNorm().inputs({}, x), rtol=1e-4, atol=1e-4)
