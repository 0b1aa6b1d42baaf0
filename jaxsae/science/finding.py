"""A finding: the effect of one method over another, its spread over seeds, and what follows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Finding(NamedTuple):
    """A claim held against paired runs.

    Attributes:
        claim: what should hold, in words.
        better: (name, mean over seeds) of the side the claim favours.
        worse: of the other side.
        effect: mean over seeds of the paired difference, positive when it is as claimed.
        spread: sample standard deviation over seeds of that difference (divisor N - 1).
        standard_error: spread / sqrt(N).
        verdict: "shown" where effect > 2 spread, "contrary" where effect < -2 spread, else "not shown".
        differences: one per seed.
        facts: learning rates, sweeps, L0s: what else was measured or chosen.
    """

    claim: str
    better: tuple[str, float]
    worse: tuple[str, float]
    effect: float
    spread: float
    standard_error: float
    verdict: str
    differences: tuple[float, ...]
    facts: dict[str, Any]


def finding(
    claim: str,
    better: tuple[str, Sequence[float]],
    worse: tuple[str, Sequence[float]],
    higher: bool = False,
    facts: dict[str, Any] | None = None,
) -> Finding:
    """Compares two sides seed by seed.

    Args:
        claim: in words.
        better: (name, one value per seed) of the side the claim favours.
        worse: of the other side.
        higher: whether greater values are the claim (else smaller ones).
        facts: kept with the finding.

    Example:
        >>> finding("a is smaller", ("a", [1.0, 1.1, 0.9]), ("b", [2.0, 2.2, 1.8])).verdict
        'shown'
    """
    a, b = np.asarray(better[1], np.float64), np.asarray(worse[1], np.float64)
    difference = a - b if higher else b - a
    effect, spread = float(difference.mean()), float(difference.std(ddof=1))
    return Finding(
        claim,
        (better[0], float(a.mean())),
        (worse[0], float(b.mean())),
        effect,
        spread,
        spread / len(difference) ** 0.5,
        verdict(effect, spread),
        tuple(float(d) for d in difference),
        dict(facts or {}),
    )


def verdict(effect: float, spread: float) -> str:
    """See `Finding.verdict`; a difference that is not a number shows nothing."""
    if effect > 2 * spread:
        return "shown"
    return "contrary" if effect < -2 * spread else "not shown"
