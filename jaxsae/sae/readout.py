"""Readout: what is added to the decoded codes before the error is taken."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.sae.geometry import geometric_median
from jaxsae.sae.records import Rows
from jaxsae.typing import Params

#: Rows used for the geometric median (Gao et al. 2024: up to 32,768).
MEDIAN_ROWS = 32_768


@register("readout.bias")
@dataclass(frozen=True)
class Bias:
    """b_dec [E].  `start`: where it begins, on the sample given to `init`."""

    d_out: int
    start: Literal["zeros", "mean", "geometric_median"] = "zeros"
    axes = {"b_dec": "E"}

    def init(self, rows: Rows) -> Params:
        y = rows.y.astype(jnp.float32)
        if self.start == "mean":
            return {"b_dec": jnp.sum(y * rows.mask[:, None], axis=0) / jnp.sum(rows.mask)}
        if self.start == "geometric_median":
            return {"b_dec": geometric_median(y[:MEDIAN_ROWS])}
        return {"b_dec": jnp.zeros(self.d_out)}

    def base(self, p: Params, x: jax.Array | None) -> jax.Array:
        """[1, E], the same for every row."""
        return p["b_dec"][None]
