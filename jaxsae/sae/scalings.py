"""Further input scalings: to constant length, per coordinate, and whitening.  They stay with the frozen coder."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.sae.records import Rows
from jaxsae.typing import Params


@register("norm.row_length")
@dataclass(frozen=True)
class RowLength:
    """x <- x sqrt(D) / ||x||, row by row; a zero row stays zero.

    `restore` gives the output its length back (SAELens' constant_norm_rescale); without it the output stays in the
    scale of the normalised row (token-wise normalisation of the OpenMOSS library).
    """

    restore: bool = True
    foldable = False
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    def init(self, rows: Rows) -> Params:
        return {}

    def _factor(self, x: jax.Array) -> jax.Array:
        length = jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
        return jnp.where(length > 0, math.sqrt(x.shape[-1]) / jnp.where(length > 0, length, 1.0), 1.0)

    def inputs(self, p: Params, x: jax.Array) -> jax.Array:
        return (x * self._factor(x)).astype(x.dtype)

    def targets(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        return (y * self._factor(x if self.restore else y)).astype(y.dtype)

    def undo(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        return y / self._factor(x) if self.restore else y

    def fold(self, p: Params, leaves: Params) -> Params:
        return leaves


@register("norm.standardise")
@dataclass(frozen=True)
class Standardise:
    """x <- (x - x_mean) * x_scale per coordinate, y likewise; constants measured on the sample given to `init`.

    Foldable in principle, but how depends on whether the encoder subtracts b_dec, so the frozen coder keeps it.
    """

    foldable = False
    axes = {"x_mean": "D", "x_scale": "D", "y_mean": "E", "y_scale": "E"}
    fixed = ("x_mean", "x_scale", "y_mean", "y_scale")

    def init(self, rows: Rows) -> Params:
        (x_mean, x_scale), (y_mean, y_scale) = (self._moments(a, rows.mask) for a in (rows.x, rows.y))
        return {"x_mean": x_mean, "x_scale": x_scale, "y_mean": y_mean, "y_scale": y_scale}

    @staticmethod
    def _moments(a: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, count = a.astype(jnp.float32), jnp.maximum(jnp.sum(mask), 1.0)
        mean = jnp.sum(a * mask[:, None], axis=0) / count
        variance = jnp.sum((a - mean[None]) ** 2 * mask[:, None], axis=0) / count
        return mean, jax.lax.rsqrt(variance + 1e-8)

    def inputs(self, p: Params, x: jax.Array) -> jax.Array:
        return (x - p["x_mean"][None].astype(x.dtype)) * p["x_scale"][None].astype(x.dtype)

    def targets(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        return (y - p["y_mean"][None]) * p["y_scale"][None]

    def undo(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        return y / p["y_scale"][None] + p["y_mean"][None]

    def fold(self, p: Params, leaves: Params) -> Params:
        return leaves


@register("norm.whiten")
@dataclass(frozen=True)
class Whiten:
    """x <- (x - white_mean) @ white, output y @ colour + white_mean; needs E = D.

    `white` is the inverse square root of the sample's covariance and `colour` its inverse, measured by `init`
    (SAELens' covariance_whitening).  `ridge` keeps directions without variance finite.
    """

    ridge: float = 1e-6
    foldable = False
    axes = {"white_mean": "D", "white": "D.", "colour": ".D"}
    fixed = ("white_mean", "white", "colour")

    def init(self, rows: Rows) -> Params:
        x, count = rows.x.astype(jnp.float32), jnp.maximum(jnp.sum(rows.mask), 1.0)
        mean = jnp.sum(x * rows.mask[:, None], axis=0) / count
        centred = (x - mean[None]) * rows.mask[:, None]
        values, vectors = jnp.linalg.eigh(centred.T @ centred / count)
        root = jnp.sqrt(jnp.maximum(values, 0.0) + self.ridge)
        return {
            "white_mean": mean,
            "white": (vectors / root[None]) @ vectors.T,
            "colour": (vectors * root[None]) @ vectors.T,
        }

    def inputs(self, p: Params, x: jax.Array) -> jax.Array:
        centred = x - p["white_mean"][None].astype(x.dtype)
        return jnp.dot(centred, p["white"], preferred_element_type=jnp.float32).astype(x.dtype)

    def targets(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        return self.inputs(p, y)

    def undo(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.dot(y, p["colour"], preferred_element_type=jnp.float32) + p["white_mean"][None]

    def fold(self, p: Params, leaves: Params) -> Params:
        return leaves
