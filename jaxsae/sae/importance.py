"""Running means of the data and of what latents contribute to it; debiased, so that they do not start from zero."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.sae.geometry import row_norms
from jaxsae.sae.records import Ctx, Out
from jaxsae.typing import PyTree


def running_mean(own: PyTree) -> jax.Array:
    """The average held by a tracker with the leaves `sum` and `weight`; 0 before anything was seen."""
    return own["sum"] / jnp.maximum(own["weight"], 1e-12)


def _mix(own: PyTree, observed: jax.Array, beta: float) -> PyTree:
    return {"sum": beta * own["sum"] + (1 - beta) * observed, "weight": beta * own["weight"] + (1 - beta)}


@register("tracker.importance")
@dataclass(frozen=True)
class Importance:
    """Running mean over batches of mean_B (z_j ||d_j||)^2, per latent: what each latent contributes to the output.

    Nabeshima (2024) orders latents by it, with beta 0.95.
    """

    beta: float = 0.95
    name = "importance"
    axes = {"sum": "S", "weight": ""}

    def init(self, d_sae: int) -> PyTree:
        return {"sum": jnp.zeros(d_sae), "weight": jnp.float32(0.0)}

    def observe(self, out: Out, ctx: Ctx) -> PyTree:
        squares = out.sel.codes.tally(jnp.square, out.rows.mask) / jnp.maximum(jnp.sum(out.rows.mask), 1.0)
        return squares * out.D.norms(out.p) ** 2

    def update(self, own: PyTree, observed: jax.Array, ctx: Ctx) -> PyTree:
        return _mix(own, observed, self.beta)


@register("tracker.input_norm")
@dataclass(frozen=True)
class InputNorm:
    """Running mean over batches of mean_B ||x|| of the raw rows, as seen through a `DatasetNorm`."""

    beta: float = 0.99
    name = "input_norm"
    axes = {"sum": "", "weight": ""}

    def init(self, d_sae: int) -> PyTree:
        return {"sum": jnp.float32(0.0), "weight": jnp.float32(0.0)}

    def observe(self, out: Out, ctx: Ctx) -> PyTree:
        mean = jnp.sum(row_norms(out.rows.x)[:, 0] * out.rows.mask) / jnp.maximum(jnp.sum(out.rows.mask), 1.0)
        return mean / out.p["c_in"] if "c_in" in out.p else mean

    def update(self, own: PyTree, observed: jax.Array, ctx: Ctx) -> PyTree:
        return _mix(own, observed, self.beta)
