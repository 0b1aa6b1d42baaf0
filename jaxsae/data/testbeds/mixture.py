"""Sums of a few labelled "images": S13, where a latent is good if it says which classes are in the row."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.data.testbeds.base import Truth, expect, unit_directions


@register("testbed.mixture")
@dataclass(frozen=True)
class Mixture:
    """x = sum over `mixed` distinct classes c of (f_c + variation u V_c) + noise,   u ~ N(0, I).

    Every class has a prototype f_c of unit length and `styles` directions V_c of its own, unit length, along which its
    images differ.  The true codes are 1 for the classes in the row.  (A sum stands in for the collages of images with
    which Fel et al. 2025, 2502.12892, measure identifiability.)

    Attributes:
        d_in: D, width of a row.
        features: F, number of classes.
        mixed: distinct classes in a row.
        styles: directions of variation of each class.
        variation: standard deviation along each.
        noise: standard deviation of normal noise on every coordinate.
    """

    d_in: int = 64
    features: int = 32
    mixed: int = 4
    styles: int = 3
    variation: float = 0.2
    noise: float = 0.01

    def __post_init__(self) -> None:
        expect(min(self.d_in, self.features) > 0 and self.styles >= 0, self, "positive sizes")
        expect(0 < self.mixed <= self.features, self, "between 1 and `features` classes in a row")

    def init(self, key: jax.Array) -> Truth:
        """Prototypes as atoms, and `styles` [F, styles, D]."""
        k_atoms, k_styles = jax.random.split(key)
        styles = unit_directions(k_styles, self.features * self.styles, self.d_in)
        p = jnp.full(self.features, self.mixed / self.features)
        extra = {"styles": styles.reshape(self.features, self.styles, self.d_in)}
        return Truth(unit_directions(k_atoms, self.features, self.d_in), p, extra)

    def sample(self, truth: Truth, key: jax.Array, rows: int) -> dict[str, jax.Array]:
        """See `Testbed.sample`."""
        k_which, k_style, k_noise = jax.random.split(key, 3)
        lot = jax.random.uniform(k_which, (rows, self.features))
        place = jnp.argsort(jnp.argsort(lot, axis=1), axis=1)
        codes = (place < self.mixed).astype(jnp.float32)
        u = self.variation * jax.random.normal(k_style, (rows, self.features, self.styles)) * codes[..., None]
        varied = jnp.einsum("bfs,fsd->bd", u, truth.extra["styles"])
        noise = self.noise * jax.random.normal(k_noise, (rows, self.d_in))
        return {"x": codes @ truth.atoms + varied + noise, "codes": codes}
