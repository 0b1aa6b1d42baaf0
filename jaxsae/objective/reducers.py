"""Reducers: from one value per row to one number."""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxsae.config import register


class Reducer(Protocol):
    """(values [B], mask [B] 0/1) -> []."""

    def __call__(self, values: jax.Array, mask: jax.Array) -> jax.Array: ...


@register("reducer.mean")
@dataclass(frozen=True)
class Mean:
    """Mean over the rows that count."""

    def __call__(self, values: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1.0)


@register("reducer.tilted")
@dataclass(frozen=True)
class Tilted:
    """(1/t) log mean exp(t v): the mean for t -> 0, the largest row for t -> inf (TERM, Li et al. 2021, 2007.01162).

    Used for SAEs that must not neglect rare rows.
    """

    tilt: float = 1.0

    def __call__(self, values: jax.Array, mask: jax.Array) -> jax.Array:
        scaled = jnp.where(mask > 0, self.tilt * values, -jnp.inf)
        return (jax.nn.logsumexp(scaled) - jnp.log(jnp.maximum(jnp.sum(mask), 1.0))) / self.tilt
