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


@register("readout.none")
@dataclass(frozen=True)
class NoReadout:
    """Nothing: the reconstruction is the decoded codes alone (Cunningham et al. 2023).

    The leaf b_dec [E] exists and stays 0, so that the frozen coder has the arrays that every other has.
    """

    d_out: int
    axes = {"b_dec": "E"}
    fixed = ("b_dec",)

    def init(self, rows: Rows) -> Params:
        return {"b_dec": jnp.zeros(self.d_out)}

    def base(self, p: Params, x: jax.Array | None) -> jax.Array:
        """[1, E] of zeros."""
        return p["b_dec"][None]


@register("readout.linear_skip")
@dataclass(frozen=True)
class LinearSkip:
    """b_dec + x W_skip: an affine path around the latents (skip transcoder, Paulo et al. 2025).

    W_skip [D, E] starts at 0.  x is the row after input scaling, or with `raw` (frozen coders only) before it.
    """

    d_in: int
    d_out: int
    raw: bool = False
    axes = {"b_dec": "E", "W_skip": "DE"}

    def init(self, rows: Rows) -> Params:
        return {"b_dec": jnp.zeros(self.d_out), "W_skip": jnp.zeros((self.d_in, self.d_out))}

    def base(self, p: Params, x: jax.Array | None) -> jax.Array:
        """[B, E]; [1, E], the bias alone, without x."""
        if x is None:
            return p["b_dec"][None]
        return jnp.dot(x.astype(p["W_skip"].dtype), p["W_skip"], preferred_element_type=jnp.float32) + p["b_dec"][None]
