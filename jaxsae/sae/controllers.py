"""Controllers: trackers that move the weight of a penalty until the codes are as sparse as asked."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.records import Ctx, Out
from jaxsae.typing import PyTree


@register("tracker.l0_controller")
@dataclass(frozen=True)
class L0Controller:
    """Multiplies a penalty by 1 + rate while the batch's mean L0 is too high, by 1 - rate while it is too low.

        scale <- scale (1 + rate f)     f = sign(log(l0 / target)), with softness tanh(log(l0 / target) / softness)

    The form with signs is Nabeshima's (2024), after an idea of Glen Taggart; it goes on swinging around the target by
    about the rate.  A term whose `controller` is "l0_controller" is multiplied by the scale, which starts at 1.

    Args:
        rate: largest relative change per step.
        start: steps before it begins to act, those of the penalty's warm-up.
        softness: width, in units of log L0, of the range around the target in which it slows down.
        target: the scalar of the recipe that holds the wanted L0.
    """

    rate: float = 3e-4
    start: int = 0
    softness: float = 0.0
    target: str = "target_l0"
    name = "l0_controller"
    axes = {"scale": ""}

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.target,)

    def review(self, recipe: Any) -> tuple[str, ...]:
        """Refuses a target that no code can have, and a controller that no penalty listens to."""
        target = dict(recipe.hyper)[self.target]
        if not 0 < target < recipe.d_sae:
            raise ConfigError(
                f"L0Controller: a target L0 must lie between 0 and d_sae = {recipe.d_sae}, found {target}"
            )
        cap = getattr(getattr(recipe.encoder, "selector", None), "cap", None)
        if cap is not None and target > cap:
            raise ConfigError(f"L0Controller: a target L0 of {target:g} cannot be met by rows that keep at most {cap}")
        if all(getattr(term, "controller", "") != self.name for term in recipe.terms):
            raise ConfigError(
                f"L0Controller: no term is weighed by it, so L0 cannot be steered; give a penalty "
                f"controller={self.name!r}"
            )
        return ()

    def init(self, d_sae: int) -> PyTree:
        return {"scale": jnp.float32(1.0)}

    def observe(self, out: Out, ctx: Ctx) -> PyTree:
        return jnp.sum(out.sel.codes.l0() * out.rows.mask) / jnp.maximum(jnp.sum(out.rows.mask), 1.0)

    def update(self, own: PyTree, observed: jax.Array, ctx: Ctx) -> PyTree:
        excess = jnp.log(jnp.maximum(observed, 1e-6) / ctx.hyper[self.target])
        move = jnp.tanh(excess / self.softness) if self.softness else jnp.where(excess < 0, -1.0, 1.0)
        return {"scale": jnp.where(ctx.step > self.start, own["scale"] * (1 + self.rate * move), own["scale"])}
