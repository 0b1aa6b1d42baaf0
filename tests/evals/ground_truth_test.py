"""Metrics against ground truth: hand-worked dictionaries, and scipy and numpy as second opinions."""

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from jaxsae.evals import ground_truth as gt

E = np.eye(4)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_cosines_are_scipys_and_zero_rows_are_orthogonal():
    a, b = rng().standard_normal((5, 7)), rng(1).standard_normal((6, 7))
    np.testing.assert_allclose(gt.cosines(a, b), 1 - cdist(a, b, "cosine"), atol=1e-12)
    np.testing.assert_array_equal(gt.cosines(np.zeros((1, 7)), b), 0)


def test_mmcs_by_hand():
    learned = np.array([[3.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, -2, 0]])
    # true 0: 1; true 1: 1/sqrt(2); true 2: at best 0 (its own is opposite); true 3: 0
    assert gt.mmcs(E, learned) == pytest.approx((1 + 0.5**0.5) / 4)
    assert gt.mmcs(E, learned, signed=False) == pytest.approx((2 + 0.5**0.5) / 4)
    assert gt.mmcs(learned, E) == pytest.approx((1 + 0.5**0.5 + 0) / 3)


def test_match_is_the_best_permutation():
    a, b = rng(2).standard_normal((4, 6)), rng(3).standard_normal((5, 6))
    cos = 1 - cdist(a, b, "cosine")
    best = max(sum(cos[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(5), 4))
    found = gt.match(a, b)
    assert found.cosine.sum() == pytest.approx(best)
    assert len(set(found.latent.tolist())) == 4
    assert found.mean == pytest.approx(best / 4)


def test_recovered_counts_atoms_above_the_cutoff_once_each():
    learned = np.array([[1.0, 0, 0, 0], [1, 0.01, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    found = gt.match(E, learned)
    # atoms 0 and 3 are there; the twin of atom 0 cannot serve for another atom; 1 or 2 gets the sum at cos 0.71
    assert found.recovered(0.9) == 0.5


def absorbed_dictionary():
    """Parent 0 with children 1 and 2: the latent of child 1 has swallowed the parent, that of child 2 has not."""
    atoms, parent = E[:3], np.array([-1, 0, 0])
    W_dec = np.array([E[0], (E[0] + E[1]) / 2**0.5, E[2]])
    true = np.array([[1.0, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 0], [0, 0, 0]])
    codes = np.array([[1.0, 0, 0], [0, 2**0.5, 0], [1, 0, 1], [0, 2**0.5, 0], [0, 0, 0]])
    return true @ atoms, codes, W_dec, atoms, parent, true


def test_absorption_by_hand():
    args = absorbed_dictionary()
    assert gt.absorption_rate(*args) == 0.5  # 2 of the 4 rows with the parent on
    x, codes, W_dec, atoms, parent, true = args
    honest = np.eye(3, 4)
    assert gt.absorption_rate(x, true, honest, atoms, parent, true) == 0.0
    silent = codes * np.array([[0, 1, 1]])
    # the parent's latent is off everywhere: in rows 0 and 2 nobody stands in for it, so they are misses, not absorbed
    assert gt.absorption_rate(x, silent, W_dec, atoms, parent, true) == 0.5


def test_absorption_needs_a_substitute_that_carries_the_parent():
    x, codes, W_dec, atoms, parent, true = absorbed_dictionary()
    weak = W_dec.copy()
    weak[1] = (0.2 * E[0] + E[1]) / 1.04**0.5  # carries a fifth of the parent only
    assert gt.absorption_rate(x, codes, weak, atoms, parent, true) == 0.0
    assert gt.absorption_rate(x, codes, weak, atoms, parent, true, least_share=0.1) == 0.5
    assert np.isnan(gt.absorption_rate(x, codes, W_dec, atoms, np.array([-1, -1, -1]), true))


def test_composition_by_hand():
    W = np.array([E[0], E[0] + E[1], E[2] + 0.1 * E[3], -E[1] - E[2]])
    assert gt.composition_rate(E, W) == 0.25
    assert gt.composition_rate(E, W, live=np.array([False, True, True, False])) == 0.5
    assert np.isnan(gt.composition_rate(E, W, live=np.zeros(4, bool)))


def test_mean_max_cosine_by_hand():
    W = np.array([[1.0, 0], [1, 1], [0, 2]])
    assert gt.mean_max_cosine(W) == pytest.approx(0.5**0.5)
    assert gt.mean_max_cosine(W, live=np.array([True, False, True])) == 0.0


def test_latents_per_axis_by_hand():
    W = np.array([E[0], -E[0], E[1], E[2] + E[3], 0.1 * E[1]])
    # axis 0: two opposite ones; axis 1: twice the same; axes 2 and 3: none close enough
    assert gt.latents_per_axis(E, W) == (2.0, 0.5)
    assert gt.latents_per_axis(E, W, live=np.array([1, 0, 1, 1, 0], bool)) == (1.0, 0.5)


def test_l0_correlation_is_pearsons():
    r = rng(4)
    a, b = (r.random((200, 9)) < r.random((200, 1)) for _ in range(2))
    a = a | (b & (r.random((200, 9)) < 0.5))
    wanted = stats.pearsonr(a.sum(1), b.sum(1)).statistic
    assert gt.l0_correlation(a * 2.0, b * -1.0) == pytest.approx(wanted)
    assert np.isnan(gt.l0_correlation(np.ones((5, 3)), a[:5]))


def test_linear_error_is_the_affine_part():
    r = rng(5)
    x, A = r.standard_normal((2000, 6)), r.standard_normal((6, 6))
    noise = r.standard_normal((2000, 6))
    assert gt.linear_error_r2(x, x @ A + 3) == pytest.approx(1)
    signal = ((x @ A) ** 2).sum() / ((x @ A) ** 2 + noise**2).sum()
    assert gt.linear_error_r2(x, x @ A + noise) == pytest.approx(signal, abs=0.03)
    assert abs(gt.linear_error_r2(x, noise)) < 0.03


def test_atoms_without_a_latent_are_not_recovered():
    """Two latents cannot recover more than two of four atoms, however good they are."""
    found = gt.match(E, E[:2])
    assert found.atoms == 4
    assert found.mean == 1.0
    assert found.recovered(0.9) == 0.5
    assert gt.match(E[:2], E).recovered(0.9) == 1.0
