"""Numbers about one trained dictionary on held-out rows of a testbed, by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxsae.evals import ground_truth as gt


class Run(NamedTuple):
    """One dictionary and what it made of R rows; arrays are numpy's.

    Attributes:
        W_dec: [S, D].
        b_dec: [D].
        codes: [R, S].
        yhat: [R, D].
        x: [R, D].
        true: [R, F] true codes.
        truth: the testbed's.
    """

    W_dec: np.ndarray
    b_dec: np.ndarray
    codes: np.ndarray
    yhat: np.ndarray
    x: np.ndarray
    true: np.ndarray
    truth: Any

    @property
    def live(self) -> np.ndarray:
        """[S] latents on in at least one row."""
        return (self.codes != 0).any(0)


def fvu(run: Run) -> float:
    """sum |x - yhat|^2 / sum |x - mean(x)|^2."""
    return float(((run.x - run.yhat) ** 2).sum() / ((run.x - run.x.mean(0)) ** 2).sum())


def l0(run: Run) -> float:
    """Mean number of latents on."""
    return float((run.codes != 0).sum(1).mean())


def dead(run: Run) -> float:
    """Share of latents on in none of the rows."""
    return float(1 - run.live.mean())


def dense(run: Run) -> float:
    """Share of latents on in more than a tenth of the rows."""
    return float(((run.codes != 0).mean(0) > 0.1).mean())


def bias(run: Run) -> float:
    """Relative reconstruction bias sum |yhat|^2 / sum x . yhat; below 1 is shrinkage.  Both sides without the bias."""
    x, yhat = run.x - run.b_dec, run.yhat - run.b_dec
    return float((yhat**2).sum() / (x * yhat).sum())


def shrinkage(run: Run) -> float:
    """|1 - relative reconstruction bias|."""
    return abs(1 - bias(run))


def absorption(run: Run) -> float:
    """See `ground_truth.absorption_rate`."""
    parent = np.asarray(run.truth.extra["parent"])
    return gt.absorption_rate(run.x - run.b_dec, run.codes, run.W_dec, run.truth.atoms, parent, run.true)


def count_correlation(run: Run) -> float:
    """Correlation of a row's L0 with its true number of features; 0 where L0 is the same for every row."""
    r = gt.l0_correlation(run.codes, run.true)
    return 0.0 if np.isnan(r) else r


def latents_per_axis(run: Run) -> float:
    """See `ground_truth.latents_per_axis`."""
    return gt.latents_per_axis(run.truth.atoms, run.W_dec, run.live).latents


MEASURES: dict[str, Callable[[Run], float]] = {
    "fvu": fvu,
    "l0": l0,
    "dead": dead,
    "dense": dense,
    "bias": bias,
    "shrinkage": shrinkage,
    "mmcs": lambda run: gt.mmcs(run.truth.atoms, run.W_dec),
    "recovered": lambda run: gt.match(run.truth.atoms, run.W_dec).recovered(0.9),
    "absorption": absorption,
    "composition": lambda run: gt.composition_rate(run.truth.atoms, run.W_dec, run.live),
    "mean_max_cosine": lambda run: gt.mean_max_cosine(run.W_dec, run.live),
    "count_correlation": count_correlation,
    "latents_per_axis": latents_per_axis,
}
