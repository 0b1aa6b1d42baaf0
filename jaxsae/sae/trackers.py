"""Trackers: counters and averages that accompany training and that no gradient touches."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.records import Ctx, Out
from jaxsae.typing import PyTree

#: Counters saturate here, well below the largest int32.
MOST_TOKENS = 2**30


@register("tracker.fired")
@dataclass(frozen=True)
class Fired:
    """Tokens since each latent was last on, int32, saturating at 2**30."""

    name = "fired"
    axes = {"since": "S"}

    def init(self, d_sae: int) -> PyTree:
        return {"since": jnp.zeros(d_sae, jnp.int32)}

    def observe(self, out: Out, ctx: Ctx) -> PyTree:
        count = out.sel.codes.tally(lambda v: (v != 0).astype(jnp.float32), out.rows.mask)
        return {"count": count, "rows": jnp.sum(out.rows.mask)}

    def update(self, own: PyTree, observed: PyTree, ctx: Ctx) -> PyTree:
        waited = jnp.minimum(own["since"] + observed["rows"].astype(jnp.int32), MOST_TOKENS)
        return {"since": jnp.where(observed["count"] > 0, 0, waited)}


@register("tracker.threshold")
@dataclass(frozen=True)
class EmaThreshold:
    """Debiased running mean of the smallest kept score; batches that kept nothing (NaN) leave it alone.

    m <- beta m + (1 - beta) kept_min, divided by the weight the terms really carry, so that the average does not
    start from zero.  Gao et al. and Bussmann et al. export it as the threshold of the inference form.
    """

    beta: float = 0.999
    per_latent: bool = False
    name = "threshold"

    @property
    def axes(self) -> dict[str, str]:
        letter = "S" if self.per_latent else ""
        return {"sum": letter, "weight": letter}

    def init(self, d_sae: int) -> PyTree:
        zeros = jnp.zeros(d_sae if self.per_latent else ())
        return {"sum": zeros, "weight": zeros}

    def observe(self, out: Out, ctx: Ctx) -> PyTree:
        if out.sel.kept_min is None:
            raise ConfigError(
                "the tracker 'threshold' averages the smallest kept score, which this selection does not report; it "
                "needs a selector that ranks"
            )
        return out.sel.kept_min

    def update(self, own: PyTree, observed: PyTree, ctx: Ctx) -> PyTree:
        seen = jnp.isfinite(observed)
        fresh = jnp.where(seen, observed, 0.0)
        mix = lambda old, new: jnp.where(seen, self.beta * old + (1 - self.beta) * new, old)  # noqa: E731
        return {"sum": mix(own["sum"], fresh), "weight": mix(own["weight"], 1.0)}


def threshold_value(own: PyTree) -> jax.Array:
    """The average an `EmaThreshold` holds: [] or [S]; +inf (nothing passes) before anything was seen."""
    return jnp.where(own["weight"] > 0, own["sum"] / jnp.maximum(own["weight"], 1e-12), jnp.inf)
