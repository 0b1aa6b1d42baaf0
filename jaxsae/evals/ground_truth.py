"""Metrics that need to know what is really there: learned atoms and codes against those of a testbed.

Arrays are numpy's or JAX's; atoms are rows, of any length but 0 (a zero row has cosine 0 with everything).  Formulas
follow the papers named in each function; where a paper works on a language model, the testbed's true atom takes the
place of the probe.
"""

from typing import NamedTuple

import numpy as np


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """cos(a_i, b_j): [A, B] float64.

    Example:
        >>> cosines(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0], [0.0, -3.0]])).tolist()
        [[1.0, -0.0]]
    """
    return _unit(a) @ _unit(b).T


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def mmcs(a: np.ndarray, b: np.ndarray, signed: bool = True) -> float:
    """Mean over rows of a of the greatest cosine with any row of b (Sharkey et al. 2022).  Not symmetric.

    Args:
        a: [A, D]; the true atoms, to ask how many of them were found.
        b: [B, D]; the learned ones.
        signed: False takes |cos|, for features with two directions.
    """
    cos = cosines(a, b)
    return float((cos if signed else np.abs(cos)).max(1).mean())


class Matched(NamedTuple):
    """A one-to-one match of true atoms with latents.

    Attributes:
        latent: [M] int, the latent given to each matched true atom.
        atom: [M] int, those true atoms; M = min(F, S), all of them where there are enough latents.
        cosine: [M] of the pairs.
        atoms: F, how many true atoms there are.
    """

    latent: np.ndarray
    atom: np.ndarray
    cosine: np.ndarray
    atoms: int

    @property
    def mean(self) -> float:
        """Mean cosine of the pairs; between two dictionaries this is PW-MCC (2505.20254)."""
        return float(self.cosine.mean())

    def recovered(self, cutoff: float = 0.9) -> float:
        """Share of all true atoms whose latent has a cosine above `cutoff`; one without a latent is not recovered."""
        return float((self.cosine > cutoff).sum() / self.atoms)


def match(atoms: np.ndarray, W_dec: np.ndarray, signed: bool = True) -> Matched:
    """The assignment of latents to true atoms with the greatest summed cosine (Hungarian method, scipy).

    Args:
        atoms: [F, D] true atoms.
        W_dec: [S, D] learned ones.
        signed: False matches on |cos|.
    """
    from scipy.optimize import linear_sum_assignment

    cos = cosines(atoms, W_dec)
    cos = cos if signed else np.abs(cos)
    atom, latent = linear_sum_assignment(cos, maximize=True)
    return Matched(latent, atom, cos[atom, latent], len(cos))


def absorption_rate(
    x: np.ndarray,
    codes: np.ndarray,
    W_dec: np.ndarray,
    atoms: np.ndarray,
    parent: np.ndarray,
    true_codes: np.ndarray,
    least_cosine: float = 0.025,
    least_share: float = 0.4,
) -> float:
    """Share of rows with a parent on in which the parent's own latent is silent and another one stands in for it.

    Full absorption of Chanin et al. 2024 (2409.14507) as SAEBench computes it, with the true parent atom p as the
    probe direction.  The parent's own latent is the one matched to p when all true atoms are matched one to one.  A
    row counts when that latent is 0 and, of all others, the one with the greatest z_j cos(d_j, p) has
    cos(d_j, p) >= least_cosine and contributes z_j d_j . p >= least_share * x . p.  Mean over parents that have
    children, each parent weighing the same.

    Args:
        x: [N, D] rows, centred as the dictionary's bias is (subtract b_dec).
        codes: [N, S] learned codes, dense.
        W_dec: [S, D].
        atoms: [F, D] true atoms.
        parent: [F] index of each atom's parent, -1 for none.
        true_codes: [N, F].
        least_cosine: see above.
        least_share: see above.
    """
    codes, true_codes, parent = (np.asarray(a) for a in (codes, true_codes, parent))
    found = match(atoms, W_dec)
    own = dict(zip(found.atom.tolist(), found.latent.tolist(), strict=True))
    rates = []
    for p in sorted(set(parent[parent >= 0].tolist())):
        on = true_codes[:, p] != 0
        if p in own and on.any():
            z, direction = codes[on], _unit(atoms)[p]
            along = np.asarray(W_dec, np.float64) @ direction
            cos = cosines(W_dec, direction[None])[:, 0]
            pull = z * cos[None]
            pull[:, own[p]] = -np.inf
            best = pull.argmax(1)
            share = z[np.arange(len(z)), best] * along[best]
            whole = np.asarray(x, np.float64)[on] @ direction
            stands_in = (cos[best] >= least_cosine) & (share >= least_share * whole) & (whole > 0)
            rates.append(np.mean((z[:, own[p]] == 0) & stands_in))
    return float(np.mean(rates)) if rates else float("nan")


def composition_rate(
    atoms: np.ndarray, W_dec: np.ndarray, live: np.ndarray | None = None, cutoff: float = 0.4
) -> float:
    """Share of live latents whose atom has a cosine above `cutoff` with two true atoms or more.

    Args:
        atoms: [F, D] true atoms.
        W_dec: [S, D].
        live: [S] bool; None counts all.
        cutoff: 0.4 is far from chance in 32 or more dimensions, and well below the 0.71 of an even sum of two.
    """
    several = (cosines(W_dec, atoms) > cutoff).sum(1) >= 2
    return _share(several, live)


def mean_max_cosine(W_dec: np.ndarray, live: np.ndarray | None = None) -> float:
    """Mean over live latents of the greatest cosine with another live one (MeanCosSim of 2509.22033)."""
    W_dec = np.asarray(W_dec) if live is None else np.asarray(W_dec)[np.asarray(live)]
    if len(W_dec) < 2:
        return float("nan")
    cos = cosines(W_dec, W_dec)
    np.fill_diagonal(cos, -np.inf)
    return float(cos.max(1).mean())


class PerAxis(NamedTuple):
    """How many latents a true axis takes.

    Attributes:
        latents: mean number of latents along an axis, over the axes that have any.
        covered: share of axes that have any.
    """

    latents: float
    covered: float


def latents_per_axis(
    atoms: np.ndarray, W_dec: np.ndarray, live: np.ndarray | None = None, cutoff: float = 0.8
) -> PerAxis:
    """Live latents with |cos| >= cutoff to each true atom: 1 is ideal, 2 is a pair of opposite ones."""
    W_dec = np.asarray(W_dec) if live is None else np.asarray(W_dec)[np.asarray(live)]
    count = (np.abs(cosines(atoms, W_dec)) >= cutoff).sum(1)
    any_ = count > 0
    return PerAxis(float(count[any_].mean()) if any_.any() else float("nan"), float(any_.mean()))


def l0_correlation(codes: np.ndarray, true_codes: np.ndarray) -> float:
    """Pearson correlation over rows of the number of latents on with the true number of features on.

    NaN where either number never changes, as with a fixed k.
    """
    a, b = (np.count_nonzero(np.asarray(z), axis=1).astype(np.float64) for z in (codes, true_codes))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def linear_error_r2(x: np.ndarray, error: np.ndarray, share_fitted: float = 0.5) -> float:
    """R^2 of the best affine prediction of an SAE's error from its input, on rows not fitted (Engels et al. 2024).

    Args:
        x: [N, D].
        error: [N, E], y - yhat.
        share_fitted: the first rows fit the map, the others judge it.
    """
    x, error = np.asarray(x, np.float64), np.asarray(error, np.float64)
    inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    cut = int(share_fitted * len(x))
    solution = np.linalg.lstsq(inputs[:cut], error[:cut], rcond=1e-9)[0]
    rest = error[cut:] - inputs[cut:] @ solution
    about_mean = error[cut:] - error[cut:].mean(0)
    return float(1 - (rest**2).sum() / (about_mean**2).sum())


def _share(of: np.ndarray, live: np.ndarray | None) -> float:
    of = of if live is None else of[np.asarray(live)]
    return float(of.mean()) if len(of) else float("nan")
