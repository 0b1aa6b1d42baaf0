"""Findings: effect, spread and verdict by hand and by numpy."""

import numpy as np
import pytest

from jaxsae.science import finding
from jaxsae.science.finding import verdict


def test_effect_and_spread_are_of_the_paired_difference():
    a, b = [1.0, 2.0, 4.0], [2.0, 2.5, 6.0]
    found = finding("a below b", ("a", a), ("b", b))
    differences = np.subtract(b, a)
    assert found.effect == pytest.approx(differences.mean())
    assert found.spread == pytest.approx(np.std(differences, ddof=1))
    assert found.standard_error == pytest.approx(np.std(differences, ddof=1) / np.sqrt(3))
    assert found.better == ("a", pytest.approx(7 / 3))
    assert found.differences == pytest.approx(tuple(differences))


def test_direction_of_the_claim_turns_the_sign():
    sides = ("a", [1.0, 1.1]), ("b", [2.0, 2.1])
    assert finding("below", *sides).effect == -finding("above", *sides, higher=True).effect == pytest.approx(1)


@pytest.mark.parametrize(
    ("effect", "spread", "wanted"),
    [
        (1.0, 0.4, "shown"),
        (1.0, 0.5, "not shown"),  # exactly twice is not above
        (-1.0, 0.4, "contrary"),
        (-1.0, 0.6, "not shown"),
        (0.0, 0.0, "not shown"),
        (float("nan"), float("nan"), "not shown"),
    ],
)
def test_verdicts(effect, spread, wanted):
    assert verdict(effect, spread) == wanted
