"""Arrays of several sites in our layout: concatenated rows, stacked atoms, ragged cross-layer decoders."""

import numpy as np

from jaxsae.sae import RowShape


def site_rows(sites: int, d_in: int, d_out: int) -> RowShape:
    """Rows [L, d_in] and [L, d_out] per site."""
    return RowShape((sites, d_in), (sites, d_out))


def stacked_atoms(W: np.ndarray) -> np.ndarray:
    """[L, S, e] -> [S, L * e]."""
    sites, latents, width = W.shape
    return np.ascontiguousarray(W.transpose(1, 0, 2)).reshape(latents, sites * width)


def unstacked_atoms(W: np.ndarray, sites: int) -> np.ndarray:
    """[S, L * e] -> [L, S, e]."""
    return np.ascontiguousarray(W.reshape(len(W), sites, -1).transpose(1, 0, 2))


def site_norms(W: np.ndarray) -> np.ndarray:
    """Norms [L, S] of atoms [L, S, e], in float64."""
    return np.stack([np.linalg.norm(part.astype(np.float64), axis=1) for part in W])


def ragged_norms(ragged: list[np.ndarray]) -> np.ndarray:
    """Norms [L, f] of everything the latents of each site write, from W_dec_i [f, L - i, e]."""
    return np.stack([np.linalg.norm(W.astype(np.float64).reshape(len(W), -1), axis=1) for W in ragged])


def over_norm(threshold: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """A threshold on h * norm as one on h; infinite, so never passed, where the atom is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = threshold / norms
    return np.where(norms > 0, found, np.inf).astype(np.float32)
