"""Baselines: an `SAE` face on what scikit-learn fits, so its own transform is the reference."""

import jax
import numpy as np
import pytest

import jaxsae
from jaxsae.errors import ConfigError, DataError
from jaxsae.evals import BASELINES, fit_baseline, reconstruction

pytest.importorskip("sklearn")
N, D = 400, 12


@pytest.fixture(scope="module")
def x():
    r = np.random.default_rng(0)
    sources = r.laplace(size=(N, 8)) * (r.random((N, 8)) < 0.4)
    return (sources @ r.standard_normal((8, D)) + 0.01 * r.standard_normal((N, D)) + 3).astype(np.float32)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_saved_loaded_evaluated_like_any_dictionary(name, x, tmp_path):
    sae = fit_baseline(name, x, d_sae=8, k=3, seed=1)
    assert (sae.d_in, sae.d_sae, sae.d_out) == (D, 8, D)
    assert sae.meta.recipe == name
    codes = sae.encode(x)
    assert float(codes.l0().max()) <= 3
    jaxsae.save(sae, tmp_path / name)
    again = jaxsae.load(tmp_path / name)
    np.testing.assert_array_equal(again(x), sae(x))
    numbers = reconstruction(again, [x]).numbers
    assert 0 < numbers["fvu"] < 1
    assert 0 < numbers["l0"] <= 3
    np.testing.assert_array_equal(fit_baseline(name, x, d_sae=8, k=3, seed=1)(x), sae(x))


def test_pca_with_all_components_is_scikit_learns(x):
    from sklearn.decomposition import PCA

    fit = PCA(5).fit(x)
    sae = fit_baseline("pca", x, d_sae=5, k=5)
    np.testing.assert_allclose(sae(x), fit.inverse_transform(fit.transform(x)), atol=1e-4)
    np.testing.assert_allclose(np.abs(sae.encode(x).dense()), np.abs(fit.transform(x)), atol=1e-4)


def test_pca_keeps_the_k_best_components_of_each_row(x):
    from sklearn.decomposition import PCA

    fit = PCA(8).fit(x)
    z = fit.transform(x)
    cut = np.sort(np.abs(z), axis=1)[:, -2:-1]
    wanted = np.where(np.abs(z) >= cut, z, 0) @ fit.components_ + fit.mean_
    np.testing.assert_allclose(fit_baseline("pca", x, d_sae=8, k=2)(x), wanted, atol=1e-4)


def test_ica_is_scikit_learns_and_ranks_by_contribution(x):
    from sklearn.decomposition import FastICA

    fit = FastICA(8, whiten="unit-variance", max_iter=200, random_state=0).fit(x)
    np.testing.assert_allclose(
        fit_baseline("ica", x, d_sae=8, k=8)(x), fit.inverse_transform(fit.transform(x)), atol=1e-3
    )
    z = fit.transform(x)
    size = np.abs(z) * np.linalg.norm(fit.mixing_, axis=0)[None]
    wanted = np.where(size >= np.sort(size, axis=1)[:, -2:-1], z, 0) @ fit.mixing_.T + fit.mean_
    np.testing.assert_allclose(fit_baseline("ica", x, d_sae=8, k=2)(x), wanted, atol=1e-3)


def test_nmf_atoms_are_differences_of_non_negative_factors(x):
    from sklearn.decomposition import NMF

    sae = fit_baseline("nmf", x, d_sae=6, k=6)
    centred = x - x.mean(0)
    split = np.concatenate([centred * (centred > 0), -centred * (centred < 0)], axis=1)
    fit = NMF(6, init="nndsvda", max_iter=200, random_state=0).fit(split)
    atoms = fit.components_[:, :D] - fit.components_[:, D:]
    np.testing.assert_allclose(sae.W_dec, atoms / np.linalg.norm(atoms, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(sae.b_dec, x.mean(0), atol=1e-6)
    assert float(sae.encode(x).values.min()) >= 0


def test_kmeans_finds_the_clusters_and_scales_the_best_one():
    r = np.random.default_rng(1)
    centres = np.array([[5.0, 0, 0], [0, 5, 0], [0, 0, 5], [-5, -5, -5]])
    label = r.integers(0, 4, 600)
    x = (centres[label] + 0.05 * r.standard_normal((600, 3))).astype(np.float32)
    sae = fit_baseline("kmeans", x, d_sae=4, k=1)
    chosen = np.asarray(sae.encode(x).indices)[:, 0]
    assert len({(a, b) for a, b in zip(label.tolist(), chosen.tolist(), strict=True)}) == 4
    assert reconstruction(sae, [x]).numbers["fvu"] < 0.01


def test_more_atoms_help_random_directions_but_learning_helps_more(x):
    few, many = (reconstruction(fit_baseline("random", x, n, 3), [x]).numbers["fvu"] for n in (8, 64))
    learned = reconstruction(fit_baseline("pca", x, 8, 3), [x]).numbers["fvu"]
    assert learned < many < few


def test_a_baseline_is_a_pytree_that_jits(x):
    sae = fit_baseline("random", x, d_sae=16, k=3)
    np.testing.assert_allclose(jax.jit(lambda s, a: s(a))(sae, x), sae(x), atol=1e-4)


def test_bad_requests_are_one_sentence(x):
    with pytest.raises(ConfigError, match="did you mean 'pca'"):
        fit_baseline("pcs", x, 4, 2)
    with pytest.raises(ConfigError, match="at most 12"):
        fit_baseline("ica", x, 13, 2)
    with pytest.raises(ConfigError, match="between 1 and"):
        fit_baseline("random", x, 4, 5)
    with pytest.raises(DataError, match="finite"):
        fit_baseline("random", x * np.nan, 4, 2)
