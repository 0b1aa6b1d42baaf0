"""Handwritten digits in the shape of a testbed, so that fleets can train on them."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxsae.data import Truth, digits


@dataclass(frozen=True)
class DigitsBed:
    """Rows drawn from 1,297 digits; which ones is the seed's own, the other 500 are held out.

    The truth has no atoms; `extra["order"]` is the seed's order of all digits, training rows first.
    """

    train: ClassVar[int] = 1297
    d_in: ClassVar[int] = 64
    features: ClassVar[int] = 1

    def init(self, key: jax.Array) -> Truth:
        order = jax.random.permutation(key, len(digits().x))
        return Truth(jnp.ones((1, self.d_in)), jnp.ones(1), {"order": order})

    def sample(self, truth: Truth, key: jax.Array, rows: int) -> dict[str, jax.Array]:
        picked = truth.extra["order"][jax.random.randint(key, (rows,), 0, self.train)]
        return {"x": jnp.asarray(digits().x)[picked], "codes": jnp.ones((rows, 1))}
