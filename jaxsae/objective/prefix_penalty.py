"""A sparsity penalty that counts a latent once per nested level that uses it."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.objective.reducers import Mean, Reducer
from jaxsae.objective.schedules import Constant, Schedule
from jaxsae.sae.records import Ctx, Out

#: Offset inside the logarithm of the authors' second form.
OFFSET = 0.1


@register("term.prefix_penalty")
@dataclass(frozen=True)
class PrefixPenalty:
    """sum_j share_j f(|z_j| ||d_j||), mean over B; share_j is the share of this step's levels that use latent j.

        f(a) = a ("l1")      or      log(a + 0.1) - log 0.1 ("log")

    The mean over prefixes of each prefix's own penalty (Nabeshima 2024, both forms of the authors' code).  Levels that
    are not made of latents use every latent: share 1.
    """

    coefficient: str = "l1_coefficient"
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    form: Literal["l1", "log"] = "l1"
    controller: str = ""
    name = "prefix_penalty"
    needs = ()
    k_aux = 0

    @property
    def tracks(self) -> tuple[str, ...]:
        return (self.controller,) if self.controller else ()

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        codes = out.sel.codes
        a = jnp.abs(codes.values) * codes.at(out.D.norms(out.p))
        f = a if self.form == "l1" else jnp.log(a + OFFSET) - jnp.log(OFFSET)
        share = getattr(out.levels, "share", None)
        return jnp.sum(f * codes.at(share(ctx)) if share else f, axis=-1)
