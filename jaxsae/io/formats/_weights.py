"""Algebra on weights that a conversion needs: accurate, in blocks, and in place where the caller owns the array."""

from collections.abc import Iterator

import numpy as np

_BLOCK = 2**20


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of rows of about a million numbers."""
    step = max(1, _BLOCK // max(width, 1))
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def row_norms(W: np.ndarray) -> np.ndarray:
    """Euclidean norm of each row: [S] float64."""
    out = np.empty(len(W))
    for part in blocks(*W.shape):
        out[part] = np.linalg.norm(W[part].astype(np.float64), axis=1)
    return out


def vector_times(v: np.ndarray, W: np.ndarray) -> np.ndarray:
    """v @ W, summed in float64: [S]."""
    out = np.zeros(W.shape[1])
    for part in blocks(*W.shape):
        out += v[part].astype(np.float64) @ W[part].astype(np.float64)
    return out


def scale_columns(W: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """W [D, S] with column j times factor[j], in place."""
    for part in blocks(*W.shape):
        W[part] = (W[part] * factor[None]).astype(W.dtype)
    return W


def scale_rows(W: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """W [S, E] with row i times factor[i], in place."""
    for part in blocks(*W.shape):
        W[part] = (W[part] * factor[part, None]).astype(W.dtype)
    return W


def product(A: np.ndarray, W: np.ndarray) -> np.ndarray:
    """A @ W, summed in float64, in the dtype of W; a new array."""
    out = np.empty((A.shape[0], W.shape[1]), W.dtype)
    A = A.astype(np.float64)
    step = max(1, _BLOCK // max(W.shape[0], 1))
    for i in range(0, W.shape[1], step):
        out[:, i : i + step] = (A @ W[:, i : i + step].astype(np.float64)).astype(W.dtype)
    return out


def transposed(W: np.ndarray) -> np.ndarray:
    """A copy of W.T in C order, made in tiles: several times faster than numpy's own for large matrices."""
    out = np.empty(W.shape[::-1], W.dtype)
    step = 512
    for i in range(0, W.shape[0], step):
        for j in range(0, W.shape[1], step):
            out[j : j + step, i : i + step] = W[i : i + step, j : j + step].T
    return out


def inverse(norms: np.ndarray) -> np.ndarray:
    """1 / norms, and 0 for an atom that is 0: such a latent stays silent and adds nothing."""
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)


def widened(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """16-bit arrays as float32: what is folded must not be rounded to 8 or 11 bits a second time."""
    return {n: a.astype(np.float32) if a.dtype.itemsize == 2 and a.dtype.kind in "fV" else a for n, a in arrays.items()}
