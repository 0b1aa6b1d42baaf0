"""Rows of very different complexity: S4, where one k for all rows is the wrong constraint."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.config import register
from jaxsae.data.testbeds.base import Truth, expect, magnitudes, unit_directions, zipf


@register("testbed.variable_count")
@dataclass(frozen=True)
class VariableCount:
    """n ~ uniform{least..most} features in a row, drawn without replacement with odds (i + 1)^-decay.

    Drawn as the n largest of log odds + Gumbel noise (successive sampling).

    Attributes:
        d_in: D, width of a row.
        features: F, number of true features.
        least: fewest features in a row.
        most: greatest number.
        decay: exponent of the Zipf law of the odds.
        spread: of the magnitudes |N(1, spread^2)|.
        noise: standard deviation of normal noise on every coordinate.
    """

    d_in: int = 64
    features: int = 256
    least: int = 2
    most: int = 40
    decay: float = 0.0
    spread: float = 0.25
    noise: float = 0.01

    def __post_init__(self) -> None:
        expect(min(self.d_in, self.features) > 0, self, "positive sizes")
        expect(0 <= self.least <= self.most <= self.features, self, "0 <= least <= most <= features")

    @property
    def active(self) -> float:
        """Mean number of features in a row."""
        return (self.least + self.most) / 2

    def init(self, key: jax.Array) -> Truth:
        """Atoms, and probabilities as they would be for draws with replacement (exact where decay is 0)."""
        odds = zipf(self.features, self.decay)
        p = np.minimum(1.0, self.active * odds / odds.sum())
        return Truth(unit_directions(key, self.features, self.d_in), jnp.asarray(p, jnp.float32))

    def sample(self, truth: Truth, key: jax.Array, rows: int) -> dict[str, jax.Array]:
        """See `Testbed.sample`."""
        k_count, k_which, k_size, k_noise = jax.random.split(key, 4)
        count = jax.random.randint(k_count, (rows, 1), self.least, self.most + 1)
        odds = jnp.asarray(np.log(zipf(self.features, self.decay)), jnp.float32)
        score = odds[None] + jax.random.gumbel(k_which, (rows, self.features))
        best = jnp.sort(score, axis=1, descending=True)
        cut = jnp.take_along_axis(best, jnp.minimum(count, self.features - 1), axis=1)
        on = (score > cut) | (count >= self.features)
        codes = jnp.where(on, magnitudes(k_size, on.shape, self.spread), 0.0)
        noise = self.noise * jax.random.normal(k_noise, (rows, self.d_in))
        return {"x": codes @ truth.atoms + noise, "codes": codes}
