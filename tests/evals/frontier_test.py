"""Frontiers: values at equal L0 and areas of curves whose integral is known."""

import numpy as np
import pytest
from scipy import integrate

from jaxsae.errors import ConfigError
from jaxsae.evals import frontier

L0 = np.array([64.0, 4, 16])  # in no order


def power(l0, c=2.0, a=-0.7):
    return c * l0**a


def test_a_power_law_is_interpolated_exactly():
    for target in (4, 5.0, 23.0, 64):
        assert frontier.at_l0(L0, power(L0), target) == pytest.approx(power(target))


def test_nothing_is_extrapolated():
    assert np.isnan(frontier.at_l0(L0, power(L0), 3.9))
    assert np.isnan(frontier.at_l0(L0, power(L0), 65))
    assert np.isnan(frontier.area(L0, power(L0), 2, 16))
    assert np.isnan(frontier.area(L0, power(L0), 8, 65))


def test_area_of_a_power_law_is_its_value_at_the_geometric_middle():
    assert frontier.area(L0, power(L0), 4, 64) == pytest.approx(power(16.0))
    assert frontier.area(L0, power(L0), 5, 20) == pytest.approx(power(10.0))


def test_area_equals_scipys_integral_of_the_interpolation():
    r = np.random.default_rng(0)
    l0, fvu = np.sort(r.uniform(2, 50, 6)), r.uniform(0.01, 1, 6)
    low, high = l0[0] * 1.1, l0[-1] * 0.9
    f = lambda u: np.log(frontier.at_l0(l0, fvu, np.exp(u)))  # noqa: E731
    inside = np.log(l0[(l0 > low) & (l0 < high)])
    wanted = integrate.quad(f, np.log(low), np.log(high), points=inside)[0] / np.log(high / low)
    assert frontier.area(l0, fvu, low, high) == pytest.approx(np.exp(wanted), rel=1e-6)


def test_of_two_points_at_one_l0_the_better_counts():
    assert frontier.at_l0(np.array([8.0, 8, 16]), np.array([0.5, 0.3, 0.1]), 8) == pytest.approx(0.3)


def test_common_range():
    assert frontier.common_range(np.array([2, 30]), np.array([4, 50])) == (4, 30)
    assert np.isnan(frontier.common_range(np.array([2, 3]), np.array([4, 50]))).all()


@pytest.mark.parametrize(("l0", "value"), [([], []), ([1.0], [1.0, 2.0]), ([0.0, 1], [1, 1]), ([1.0, 2], [0.1, 0.0])])
def test_impossible_points_are_refused(l0, value):
    with pytest.raises(ConfigError, match="frontier needs"):
        frontier.at_l0(np.array(l0), np.array(value), 1.0)
    with pytest.raises(ConfigError, match="low < high"):
        frontier.area(L0, power(L0), 8, 8)
