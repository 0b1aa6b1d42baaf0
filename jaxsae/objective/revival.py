"""Terms that bring dead latents back: pre-activation loss, revival, ghost gradients.  (AuxK stands in `terms`.)"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.objective.reducers import Mean, Reducer
from jaxsae.objective.schedules import Constant, Schedule
from jaxsae.objective.terms import TINY
from jaxsae.sae.records import Ctx, Out


@register("term.pre_act")
@dataclass(frozen=True)
class PreAct:
    """sum_j relu(theta_j - pre_j) ||d_j||, sum over latents, mean over B (Anthropic, January 2025 update).

    A small push on every latent below its threshold: up for its pre-activation, down for the threshold.  With
    `dead_only` only latents silent for `dead_after_tokens` are pushed, as SAELens does.  Without a learned threshold
    theta is 0.
    """

    coefficient: str = "pre_act_loss_coefficient"
    schedule: Schedule = Constant()
    dead_only: bool = False
    reducer: Reducer = Mean()
    name = "pre_act"
    needs = ("pre",)
    k_aux = 0

    @property
    def tracks(self) -> tuple[str, ...]:
        return ("fired",) if self.dead_only else ()

    @property
    def reads(self) -> tuple[str, ...]:
        return ("dead_after_tokens",) if self.dead_only else ()

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        pre: Any = out.sel.pre
        theta = 0.0 if out.sel.theta is None else out.sel.theta[None]
        weight = out.D.norms(out.p)
        if self.dead_only:
            weight = jnp.where(ctx.dead(), weight, 0.0)
        return jnp.sum(jax.nn.relu(theta - pre.score) * weight[None], axis=1)


@register("term.revive")
@dataclass(frozen=True)
class Revive:
    """-mean of pre over dead latents and rows that count; 0 when none is dead.

    The reanimation regulariser of overcomplete, whose weight is 0.1.  It calls a latent dead when it is silent in this
    very batch, and divides by the number of dead latents but not by that of rows; here a latent is dead after
    `dead_after_tokens`, and the mean is over both, so that the weight does not depend on the batch size.
    """

    coefficient: str = "revive_coefficient"
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    name = "revive"
    needs = ("pre",)
    k_aux = 0
    tracks = ("fired",)
    reads = ("dead_after_tokens",)

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        pre: Any = out.sel.pre
        dead = ctx.dead().astype(jnp.float32)
        return -jnp.sum(pre.value * dead[None], axis=1) / jnp.maximum(jnp.sum(dead), 1.0)


@register("term.ghost")
@dataclass(frozen=True)
class Ghost:
    """Ghost gradients: dead latents, through exp(pre), model what the live ones leave over.

        e = stop_gradient(y - yhat)      g = exp(pre_dead) W_dec       g <- g ||e|| / (2 ||g||)
        L = ||e - g||^2, scaled on each row to the size of ||y - yhat||^2;     both scales detached; 0 if none is dead

    Jermyn & Templeton, "Ghost grads", Anthropic's January 2024 update, in the form of SAELens up to version 3.  A row
    loses a common factor of exp(pre) before the product, which the scaling restores, so nothing overflows.
    """

    coefficient: str = "ghost_coefficient"
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    name = "ghost"
    needs = ("pre",)
    k_aux = 0
    tracks = ("fired",)
    reads = ("dead_after_tokens",)

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        pre: Any = out.sel.pre
        stop, dead = jax.lax.stop_gradient, ctx.dead()
        any_dead = jnp.any(dead)
        score = jnp.where(dead[None], pre.value, -jnp.inf)
        top = jnp.where(any_dead, jnp.max(stop(score), axis=1, keepdims=True), 0.0)
        g = jnp.where(dead[None], jnp.exp(jnp.where(dead[None], pre.value, 0.0) - top), 0.0)
        W = out.D.atoms(out.p)
        ghost = jnp.dot(g.astype(W.dtype), W, preferred_element_type=jnp.float32)
        e = stop(out.err)
        length = jnp.sqrt(jnp.sum(e**2, axis=1) / jnp.maximum(jnp.sum(stop(ghost) ** 2, axis=1), TINY))
        sse = jnp.sum((e - ghost * (length / 2)[:, None]) ** 2, axis=1)
        scale = jnp.sum(e**2, axis=1) / jnp.maximum(stop(sse), TINY)
        return jnp.where(any_dead, scale * sse, 0.0)
