"""Independent features that often fire together: S3, where sparse dictionaries learn the pair as one atom."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.data.testbeds.base import Truth, expect, magnitudes, unit_directions


@register("testbed.cooccurrence")
@dataclass(frozen=True)
class Cooccurrence:
    """Features 2i and 2i + 1 form a pair: both on with `p_both`, each alone with `p_alone`.

    Directions and magnitudes are independent; only the firing is not.  A dictionary that spends one latent on
    f_2i + f_2i+1 saves L0 and has learnt a composition (Anders et al. 2024; Korznikov et al. 2025).

    Attributes:
        d_in: D, width of a row.
        pairs: number of pairs.
        p_both: probability that both are on.
        p_alone: probability that one of them is on without the other, for each of the two.
        spread: of the magnitudes |N(1, spread^2)|.
        noise: standard deviation of normal noise on every coordinate.
    """

    d_in: int = 64
    pairs: int = 48
    p_both: float = 0.05
    p_alone: float = 0.015
    spread: float = 0.25
    noise: float = 0.01

    def __post_init__(self) -> None:
        expect(min(self.d_in, self.pairs) > 0, self, "positive sizes")
        expect(self.p_both > 0 and self.p_alone >= 0, self, "probabilities above 0")
        expect(self.p_both + 2 * self.p_alone <= 1, self, "p_both + 2 p_alone of at most 1")

    @property
    def features(self) -> int:
        return 2 * self.pairs

    def init(self, key: jax.Array) -> Truth:
        """Atoms, probabilities, and `partner` [F]."""
        partner = jnp.arange(self.features, dtype=jnp.int32) ^ 1
        p = jnp.full(self.features, self.p_both + self.p_alone)
        return Truth(unit_directions(key, self.features, self.d_in), p, {"partner": partner})

    def sample(self, truth: Truth, key: jax.Array, rows: int) -> dict[str, jax.Array]:
        """See `Testbed.sample`."""
        k_on, k_size, k_noise = jax.random.split(key, 3)
        u = jax.random.uniform(k_on, (rows, self.pairs))
        both = u < self.p_both
        first = (u >= self.p_both) & (u < self.p_both + self.p_alone)
        second = (u >= self.p_both + self.p_alone) & (u < self.p_both + 2 * self.p_alone)
        on = jnp.stack([both | first, both | second], axis=2).reshape(rows, self.features)
        codes = jnp.where(on, magnitudes(k_size, on.shape, self.spread), 0.0)
        noise = self.noise * jax.random.normal(k_noise, (rows, self.d_in))
        return {"x": codes @ truth.atoms + noise, "codes": codes}
