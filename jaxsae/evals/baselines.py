"""Classical decompositions behind the face of an `SAE`, so that every evaluation runs on them.

    sae = fit_baseline("pca", x, d_sae=64, k=8)
    sae.encode(x); sae(x); jaxsae.save(sae, "pca")

PCA and ICA have linear encoders and signed codes, of which the k of largest contribution are kept.  NMF, k-means and
random directions give atoms of unit length that are coded by non-negative matching pursuit with k picks.  scikit-learn
does the fitting.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import ConfigError, DataError, closest
from jaxsae.sae import SAE, Bias, Free, Meta, NoNorm, Pursuit, make_sae


def pca(x: np.ndarray, d_sae: int, k: int, seed: int = 0) -> SAE:
    """The first d_sae principal components; per row the k with the largest |code|.

    Args:
        x: [N, D] rows to fit.
        d_sae: components, at most min(N, D).
        k: components kept per row; k = d_sae is plain PCA.
        seed: of the randomised solver, which large inputs get.
    """
    from sklearn.decomposition import PCA

    _check_count("pca", d_sae, min(x.shape))
    fit = PCA(d_sae, random_state=seed).fit(x)
    params = {"W_enc": fit.components_.T, "W_dec": fit.components_, "b_dec": fit.mean_}
    return _linear("pca", params, k, seed)


def ica(x: np.ndarray, d_sae: int, k: int, seed: int = 0, iterations: int = 200) -> SAE:
    """FastICA with d_sae sources of unit variance; per row the k with the largest |code| ||atom||.

    Args:
        x: [N, D] rows to fit.
        d_sae: sources, at most min(N, D).
        k: sources kept per row.
        seed: of the initial unmixing.
        iterations: at most; sklearn warns where it has not converged.
    """
    from sklearn.decomposition import FastICA

    _check_count("ica", d_sae, min(x.shape))
    fit = FastICA(d_sae, whiten="unit-variance", max_iter=iterations, random_state=seed).fit(x)
    params = {"W_enc": fit.components_.T, "W_dec": fit.mixing_.T, "b_dec": fit.mean_}
    return _linear("ica", params, k, seed)


def nmf(x: np.ndarray, d_sae: int, k: int, seed: int = 0, iterations: int = 200) -> SAE:
    """Non-negative factors of the two signs of x - mean(x) side by side, coded by pursuit.

    [max(x - m, 0), max(m - x, 0)] ~ Z [H+, H-] with Z, H >= 0; the atoms are the rows of H+ - H-, unit length.

    Args:
        x: [N, D] rows to fit, of any sign.
        d_sae: factors.
        k: picks per row.
        seed: of the initial factors.
        iterations: of coordinate descent.
    """
    from sklearn.decomposition import NMF

    mean = x.mean(0)
    split = _signs(x - mean[None])
    init = "nndsvda" if d_sae <= min(split.shape) else "random"
    up, down = np.split(NMF(d_sae, init=init, max_iter=iterations, random_state=seed).fit(split).components_, 2, axis=1)
    return _pursuit("nmf", up - down, mean, k, seed)


def _signs(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=1)


def kmeans(x: np.ndarray, d_sae: int, k: int, seed: int = 0) -> SAE:
    """Directions of d_sae cluster centres of x - mean(x), coded by pursuit.

    With k = 1 this is gain-shape vector quantisation: the best centre, scaled.

    Args:
        x: [N, D] rows to fit.
        d_sae: clusters, at most N.
        k: picks per row.
        seed: of the initial centres.
    """
    from sklearn.cluster import MiniBatchKMeans

    _check_count("kmeans", d_sae, len(x))
    mean = x.mean(0)
    fit = MiniBatchKMeans(d_sae, random_state=seed, n_init=1, batch_size=4096).fit(x - mean[None])
    return _pursuit("kmeans", fit.cluster_centers_, mean, k, seed)


def random_directions(x: np.ndarray, d_sae: int, k: int, seed: int = 0) -> SAE:
    """d_sae random directions around the mean of x, coded by pursuit: what needs no learning at all.

    Args:
        x: [N, D] rows, for their mean.
        d_sae: directions.
        k: picks per row.
        seed: of the directions.
    """
    atoms = np.random.default_rng(seed).standard_normal((d_sae, x.shape[1]))
    return _pursuit("random", atoms, x.mean(0), k, seed)


#: By name, as `fit_baseline` takes them.
BASELINES: dict[str, Callable[..., SAE]] = {
    "pca": pca,
    "ica": ica,
    "nmf": nmf,
    "kmeans": kmeans,
    "random": random_directions,
}


def fit_baseline(name: str, x: Any, d_sae: int, k: int, seed: int = 0) -> SAE:
    """A fitted baseline by name: pca, ica, nmf, kmeans or random.

    Args:
        name: which.
        x: [N, D] finite rows.
        d_sae: number of latents.
        k: latents kept per row, at most d_sae.
        seed: of whatever is random.

    Raises:
        ConfigError: no such baseline, or sizes that it cannot have.
        DataError: rows that are not finite, or scikit-learn is not installed.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((64, 8))
        >>> fit_baseline("random", x, d_sae=16, k=2).d_sae
        16
    """
    if name not in BASELINES:
        raise ConfigError(f"no baseline is called {name!r}{closest(name, BASELINES)}")
    x = np.asarray(x, np.float32)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise DataError(f"baseline {name!r}: expected finite rows [N, D], found shape {x.shape} or values that are not")
    if not 0 < k <= d_sae:
        raise ConfigError(f"baseline {name!r}: k must lie between 1 and d_sae = {d_sae}, found {k}")
    try:
        return BASELINES[name](x, d_sae, k, seed)
    except ImportError as e:
        raise DataError(
            f"baseline {name!r} is fitted by scikit-learn, which is not installed; run `pip install scikit-learn`"
        ) from e


def _check_count(name: str, d_sae: int, most: int) -> None:
    if d_sae > most:
        raise ConfigError(f"baseline {name!r} has at most {most} latents on these rows, found d_sae = {d_sae}")


def _linear(name: str, params: dict[str, np.ndarray], k: int, seed: int) -> SAE:
    arrays = {n: jnp.asarray(a, jnp.float32) for n, a in params.items()}
    arrays["b_enc"] = jnp.zeros(arrays["W_enc"].shape[1])
    meta = Meta(recipe=name).with_extra(form="rank", seed=seed)
    return make_sae(arrays, subtract_b_dec=True, k=k, signed=True, by_norm=True, meta=meta)


def _pursuit(name: str, atoms: np.ndarray, bias: np.ndarray, k: int, seed: int) -> SAE:
    norms = np.linalg.norm(atoms, axis=1, keepdims=True)
    atoms = atoms / np.where(norms > 0, norms, 1.0)
    d_sae, d = atoms.shape
    params: dict[str, jax.Array] = {"W_dec": jnp.asarray(atoms, jnp.float32), "b_dec": jnp.asarray(bias, jnp.float32)}
    encoder = Pursuit(d, d_sae, k, b_pre="b_dec")
    meta = Meta(recipe=name).with_extra(form="rank", seed=seed)
    return SAE(params, NoNorm(), encoder, Free(d_sae, d), Bias(d), meta)
