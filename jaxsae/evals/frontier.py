"""Comparing methods at equal sparsity: frontiers of an error against L0.

Points are joined by straight lines in (log L0, log error), where frontiers of dictionaries are nearly straight; nothing
is ever extrapolated.
"""

import numpy as np

from jaxsae.errors import ConfigError


def at_l0(l0: np.ndarray, value: np.ndarray, target: float) -> float:
    """The value of a frontier at L0 = target, e.g. FVU at equal L0; NaN outside the measured range.

    Args:
        l0: [P] measured L0, in any order, all above 0.
        value: [P] what was measured there, all above 0.
        target: the L0 asked for.

    Example:
        >>> round(at_l0(np.array([4.0, 16.0]), np.array([0.4, 0.1]), 8.0), 3)
        0.2
    """
    x, y = _sorted(l0, value)
    if not x[0] - 1e-9 <= np.log(target) <= x[-1] + 1e-9:
        return float("nan")
    return float(np.exp(np.interp(np.log(target), x, y)))


def area(l0: np.ndarray, value: np.ndarray, low: float, high: float) -> float:
    """Geometric mean of a frontier over log L0 from low to high: the area below it, as one number.

        exp( integral_{log low}^{log high} log value d(log L0) / (log high - log low) )

    For a frontier of FVU, lower is better; two areas compare only over the same range.  NaN where the range was not
    measured.

    Raises:
        ConfigError: an empty range.
    """
    if not 0 < low < high:
        raise ConfigError(f"a frontier's area needs 0 < low < high, found {low:g} and {high:g}")
    x, y = _sorted(l0, value)
    a, b = np.log(low), np.log(high)
    if a < x[0] - 1e-9 or b > x[-1] + 1e-9:
        return float("nan")
    inside = (x > a) & (x < b)
    at = np.concatenate([[a], x[inside], [b]])
    height = np.interp(at, x, y)
    return float(np.exp(np.trapezoid(height, at) / (b - a)))


def common_range(*l0: np.ndarray) -> tuple[float, float]:
    """The range of L0 that all frontiers cover; (NaN, NaN) if there is none."""
    low, high = max(float(np.min(a)) for a in l0), min(float(np.max(a)) for a in l0)
    return (low, high) if low < high else (float("nan"), float("nan"))


def _sorted(l0: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    l0, value = np.asarray(l0, np.float64), np.asarray(value, np.float64)
    if l0.ndim != 1 or l0.shape != value.shape or not len(l0) or min(l0.min(), value.min()) <= 0:
        raise ConfigError(
            f"a frontier needs as many values as L0s, at least one, all above 0; found L0 {l0.tolist()} "
            f"and values {value.tolist()}"
        )
    order = np.argsort(l0, kind="stable")
    x, y = np.log(l0[order]), np.log(value[order])
    first = np.concatenate([[True], np.diff(x) > 0])  # of points with equal L0, the best one
    groups = np.flatnonzero(first)
    return x[first], np.minimum.reduceat(y, groups)
