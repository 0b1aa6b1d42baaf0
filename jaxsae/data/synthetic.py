"""Activations whose true features are known: sparse sums of random directions.

    x = sum_i z_i f_i,    z_i = b_i u_i,    b_i ~ Bernoulli(p_i),  u_i ~ uniform(0.5, 1.5)

after Sharkey, Braun and Millidge 2022 (Interim report: taking features out of superposition with sparse
autoencoders), without their correlations between features.
"""

import numpy as np

from jaxsae.data.shuffle import bits
from jaxsae.data.sources import local_rows
from jaxsae.errors import ConfigError


class SyntheticSource:
    """Batches of synthetic activations, a pure function of (seed, step).

    Args:
        d_in: D, width of a row.
        features: S, number of true features; may be more than D.
        active: mean number of features in a row.
        batch_size: B, rows of a global batch.
        decay: feature i has probability proportional to `(i + 1) ** -decay`; 0 makes all equally frequent.
        noise: standard deviation of normal noise added to every value.
        seed: of the directions and of all rows.

    Attributes:
        directions: the true features, unit length, float32 [S, D].
        probability: how often each is active, [S].

    Example:
        >>> source = SyntheticSource(d_in=8, features=16, active=2, batch_size=4)
        >>> source.batch(0)["x"].shape
        (4, 8)
    """

    def __init__(
        self,
        d_in: int,
        features: int,
        active: float,
        batch_size: int,
        *,
        decay: float = 0.0,
        noise: float = 0.0,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if not 0 < active <= features:
            raise ConfigError(f"active = {active}: expected more than 0 and at most {features} features in a row")
        self.d_in, self.batch_size, self._noise, self._seed = d_in, batch_size, noise, seed
        self._rows = local_rows(batch_size, process_index, process_count)
        f = np.random.Generator(bits(seed, "synthetic", 0)).standard_normal((features, d_in), np.float32)
        self.directions = f / np.linalg.norm(f, axis=1, keepdims=True)
        weight = np.arange(1, features + 1, dtype=np.float64) ** -decay
        self.probability = _with_sum(weight, active)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """`{"x": [B, D]}` float32; see `jaxsae.data.sources.Source.batch`."""
        return {"x": self.labelled(step)[0]}

    def labelled(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows [B, D] of a step and the true feature values [B, S] they are made of."""
        random = np.random.Generator(bits(self._seed, "synthetic", 1, step))
        shape = (self.batch_size, len(self.directions))
        on = random.random(shape, np.float32) < self.probability[None]
        z = np.where(on, random.random(shape, np.float32) + np.float32(0.5), np.float32(0))
        noise = self._noise * random.standard_normal((self.batch_size, self.d_in), np.float32)
        rows = slice(*self._rows)
        return (z @ self.directions + noise.astype(np.float32))[rows], z[rows]


def _with_sum(weight: np.ndarray, total: float) -> np.ndarray:
    """Probabilities proportional to weight that sum to `total`, none above 1."""
    low, high = 0.0, total / weight.min()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * weight).sum() < total else (low, middle)
    return np.minimum(1, high * weight)
