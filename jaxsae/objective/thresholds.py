"""What pulls on a learned threshold: the number of latents that are on, straight or towards a target."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.objective.dead_zones import too_heavy
from jaxsae.objective.reducers import Mean, Reducer
from jaxsae.objective.schedules import Constant, Schedule
from jaxsae.sae.jump import Kernel, step
from jaxsae.sae.records import Ctx, Out


def counted(out: Out, ctx: Ctx, kernel: Kernel, to_pre: bool) -> jax.Array:
    """Latents on in each row, [B], with a straight-through gradient to the thresholds.

    Counts pre-activations above their threshold, not codes above it: a gated code is never just below, so half of the
    window would be empty and the gradient half as large.
    """
    pre: Any = out.sel.pre  # present, since "pre" is among the needs
    theta: Any = out.sel.theta
    return jnp.sum(step(pre.value, theta[None], ctx.hyper["bandwidth"], kernel, to_pre), axis=1)


@register("term.l0_step")
@dataclass(frozen=True)
class L0Step:
    """sum_j 1(pre_j > theta_j), sum over latents, mean over B (Rajamanoharan et al. 2024b, 2407.14435).

    Its gradient reaches the thresholds alone, unless `to_pre`.
    """

    coefficient: str = "l0_coefficient"
    schedule: Schedule = Constant()
    kernel: Kernel = "rectangle"
    to_pre: bool = False
    reducer: Reducer = Mean()
    name = "l0_step"
    needs = ("pre", "theta")
    k_aux = 0
    reads = ("bandwidth",)

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        return counted(out, ctx, self.kernel, self.to_pre)

    def review(self, recipe: Any) -> list[str]:
        """Warns of a weight that no latent is worth."""
        return too_heavy(recipe, self.coefficient, "l0")


@register("term.target_l0")
@dataclass(frozen=True)
class TargetL0:
    """(mean_B L0 / target - 1)^2: pulls the batch's mean L0 to `hyper["target_l0"]` from both sides.

    As dictionary_learning's JumpReLU trainer, except that it counts pre-activations (see `counted`).
    """

    coefficient: str = "l0_coefficient"
    schedule: Schedule = Constant()
    kernel: Kernel = "rectangle"
    to_pre: bool = False
    reducer: Reducer = Mean()
    name = "target_l0"
    needs = ("pre", "theta")
    k_aux = 0
    reads = ("bandwidth", "target_l0")

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        mean = Mean()(counted(out, ctx, self.kernel, self.to_pre), out.rows.mask)
        return (mean / ctx.hyper["target_l0"] - 1.0) ** 2

    def review(self, recipe: Any) -> list[str]:
        """Refuses a target that no dictionary of this size can meet.

        Raises:
            ConfigError: target_l0 outside 0 .. d_sae.
        """
        target = dict(recipe.hyper)["target_l0"]
        if not 0 < target < recipe.d_sae:
            raise ConfigError(
                f"recipe {recipe.name!r}: target_l0 must lie between 0 and d_sae = {recipe.d_sae}, found {target}"
            )
        if target > recipe.d_sae / 2:
            return [f"target_l0 = {target:g} asks for more than half of {recipe.d_sae} latents on every row"]
        return []
