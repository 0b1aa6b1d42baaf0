"""More features than dimensions, on independently: S1, and with other settings S5, S6 and S7."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.data.testbeds.base import Truth, capped, expect, magnitudes, unit_directions, zipf


@register("testbed.superposition")
@dataclass(frozen=True)
class Superposition:
    """x = sum_i z_i f_i + noise,   z_i = b_i s_i m_i,   b_i ~ Bernoulli(p_i),   m_i ~ |N(1, spread^2)|.

    After Sharkey, Braun and Millidge 2022 (Interim report: taking features out of superposition with sparse
    autoencoders), without correlations between features.  p_i is proportional to (i + 1)^-decay, at most `most`, and
    sums to `active`.  s_i = 1, or a fair sign where `signed`.

    Attributes:
        d_in: D, width of a row.
        features: F, number of true features.
        active: mean number of features in a row.
        decay: exponent of the Zipf law; 0 makes all features equally frequent.
        most: cap on the probability of a feature, so that none is nearly constant.
        spread: standard deviation of magnitudes before the absolute value.
        noise: standard deviation of normal noise on every coordinate (inside the subspace where there is one).
        signed: coefficients are symmetric in sign (bidirectional features).
        rank: all features lie in a random subspace of so many dimensions; None for no restriction.

    Example:
        >>> bed = Superposition(d_in=8, features=16, active=2)
        >>> truth = bed.init(jax.random.key(0))
        >>> bed.sample(truth, jax.random.key(1), rows=4)["codes"].shape
        (4, 16)
    """

    d_in: int = 64
    features: int = 256
    active: float = 8.0
    decay: float = 1.0
    most: float = 0.3
    spread: float = 0.25
    noise: float = 0.01
    signed: bool = False
    rank: int | None = None

    def __post_init__(self) -> None:
        expect(self.d_in > 0 and self.features > 0, self, "positive sizes")
        expect(min(self.noise, self.spread) >= 0, self, "no negative noise or spread")
        expect(self.rank is None or 0 < self.rank <= self.d_in, self, "a rank between 1 and d_in")
        capped(zipf(self.features, self.decay), self.active, self.most)

    def init(self, key: jax.Array) -> Truth:
        """Atoms, their probabilities, and `subspace` [r, D] (orthonormal rows) where there is one."""
        k_atoms, k_space = jax.random.split(key)
        p = jnp.asarray(capped(zipf(self.features, self.decay), self.active, self.most), jnp.float32)
        if self.rank is None:
            return Truth(unit_directions(k_atoms, self.features, self.d_in), p)
        space = jnp.linalg.qr(jax.random.normal(k_space, (self.d_in, self.rank)))[0].T
        return Truth(unit_directions(k_atoms, self.features, self.rank) @ space, p, {"subspace": space})

    def sample(self, truth: Truth, key: jax.Array, rows: int) -> dict[str, jax.Array]:
        """See `Testbed.sample`."""
        k_on, k_size, k_sign, k_noise = jax.random.split(key, 4)
        shape = (rows, self.features)
        on = jax.random.uniform(k_on, shape) < truth.probability[None]
        codes = jnp.where(on, magnitudes(k_size, shape, self.spread), 0.0)
        if self.signed:
            codes = codes * jax.random.rademacher(k_sign, shape, jnp.float32)
        noise = self.noise * jax.random.normal(k_noise, (rows, self.rank or self.d_in))
        if self.rank is not None:
            noise = noise @ truth.extra["subspace"]
        return {"x": codes @ truth.atoms + noise, "codes": codes}
