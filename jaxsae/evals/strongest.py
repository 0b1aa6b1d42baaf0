"""The best entries of every latent in a stream, in fixed memory."""

import numpy as np


class Best:
    """Per latent, the n entries of largest key seen so far, whatever the order in which they came.

    With the activation as key these are the strongest rows; with a random key that depends only on (row, latent),
    they are a uniform sample of the rows in which the latent is on.  Ties go to the lower row.  Memory: 20 S n bytes.

    Args:
        latents: S.
        n: entries kept per latent.

    Attributes:
        key: [S, n] float64, descending; -inf where there is no entry.
        value: [S, n] float32, the activation.
        row: [S, n] int64; -1 where there is no entry.

    Example:
        >>> best = Best(latents=2, n=1)
        >>> best.add(np.array([0, 0]), np.array([1.0, 3.0]), np.array([1.0, 3.0]), np.array([10, 11]))
        >>> best.row.tolist()
        [[11], [-1]]
    """

    def __init__(self, latents: int, n: int):
        self.n = n
        self.key = np.full((latents, n), -np.inf)
        self.value = np.zeros((latents, n), np.float32)
        self.row = np.full((latents, n), -1, np.int64)

    def add(self, latent: np.ndarray, key: np.ndarray, value: np.ndarray, row: np.ndarray) -> None:
        """Takes entries, four arrays [M]; a (latent, row) that is offered twice is kept twice."""
        chance = key >= self.key[latent, -1]
        latent, key, value, row = latent[chance], key[chance], value[chance], row[chance]
        touched, group = np.unique(latent, return_inverse=True)
        old = self.row[touched] >= 0
        group = np.concatenate([group, np.broadcast_to(np.arange(len(touched))[:, None], old.shape)[old]])
        key = np.concatenate([key, self.key[touched][old]])
        value = np.concatenate([value, self.value[touched][old]])
        row = np.concatenate([row, self.row[touched][old]])
        order = np.lexsort((row, -key, group))
        group = group[order]
        place = np.arange(len(group)) - np.searchsorted(group, group)
        kept = place < self.n
        where, order = (touched[group[kept]], place[kept]), order[kept]
        self.key[where], self.value[where], self.row[where] = key[order], value[order], row[order]

    def merge(self, other: "Best") -> None:
        """Takes everything another table kept."""
        latent, place = np.nonzero(other.row >= 0)
        self.add(latent, *(a[latent, place] for a in (other.key, other.value, other.row)))


def lottery(row: np.ndarray, latent: np.ndarray, seed: int) -> np.ndarray:
    """A uniform number in [0, 1) that depends on (row, latent, seed) alone: splitmix64 of the three."""
    x = row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ latent.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    x = x + np.uint64((seed * 0x165667B19E3779F9 + 0x27D4EB2F165667C5) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53
