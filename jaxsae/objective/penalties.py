"""Smooth penalties on codes that are closer to a count than L1 is: tanh, tanh with a quadratic part, p-norms."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.objective.dead_zones import too_heavy
from jaxsae.objective.reducers import Mean, Reducer
from jaxsae.objective.schedules import Constant, Schedule
from jaxsae.sae.codes import Codes
from jaxsae.sae.records import Ctx, Out


def magnitudes(out: Out, by_norm: bool) -> jax.Array:
    """|z|, times the norm of the atom with `by_norm`: [B, S], or [B, K] of sparse codes."""
    z = jnp.abs(out.sel.codes.values)
    return z * out.sel.codes.at(out.D.norms(out.p)) if by_norm else z


@register("term.tanh")
@dataclass(frozen=True)
class Tanh:
    """sum_j tanh(c |z_j| ||d_j||), sum over latents, mean over B (Anthropic, January 2025 update; c = 4).

    Saturates at one per latent that is on, so strong codes do not shrink.
    """

    coefficient: str = "sparsity_coefficient"
    schedule: Schedule = Constant()
    c: float = 4.0
    by_norm: bool = True
    reducer: Reducer = Mean()
    name = "tanh"
    needs = ()
    k_aux = 0

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        return jnp.sum(jnp.tanh(self.c * magnitudes(out, self.by_norm)), axis=-1)


@register("term.tanh_quadratic")
@dataclass(frozen=True)
class TanhQuadratic:
    """sum_j f_j (1 + f_j / s) with f_j = mean_B tanh(c |z_j| ||d_j||), about the share of rows with latent j on.

    The quadratic part makes a latent that is on in a share f of the rows cost (1 + f / s) times as much per row as a
    rare one, which suppresses dense latents (the "tanh-quad" sparsity loss of OpenMOSS' llamascopium; s = 0.01).
    """

    coefficient: str = "sparsity_coefficient"
    schedule: Schedule = Constant()
    c: float = 4.0
    s: float = 0.01
    by_norm: bool = True
    reducer: Reducer = Mean()
    name = "tanh_quadratic"
    needs = ()
    k_aux = 0

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        mask = out.rows.mask
        soft = jnp.tanh(self.c * magnitudes(out, self.by_norm))
        share = _tally(out.sel.codes, soft, mask) / jnp.maximum(jnp.sum(mask), 1.0)
        return jnp.sum(share * (1.0 + share / self.s))


def _tally(codes: Codes, per_entry: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum over rows of values that stand where the codes stand: [S]."""
    return replace(codes, values=per_entry).tally(lambda v: v, mask)


@register("term.p_norm")
@dataclass(frozen=True)
class PNorm:
    """sum_j |z_j|^p, or its p-th root with `root`, sum over latents, mean over B (Karvonen et al. 2024, 2408.00113).

    p, and the factor that keeps the penalty's scale as p falls, are read from the tracker `p_anneal`.  The slope of v^p
    is infinite at 0, so entries that are 0 are masked out of the gradient.  `on_gate` takes relu(score) of a gated
    encoder in place of the codes.
    """

    coefficient: str = "sparsity_coefficient"
    schedule: Schedule = Constant()
    root: bool = False
    on_gate: bool = False
    reducer: Reducer = Mean()
    name = "p_norm"
    k_aux = 0
    tracks = ("p_anneal",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("pre",) if self.on_gate else ()

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        own = ctx.track["p_anneal"]
        return own["factor"] * p_sum(penalised(out, self.on_gate), own["p"], self.root)

    def review(self, recipe: Any) -> list[str]:
        """Warns of a weight that no latent is worth while p is 1."""
        own = next((t for t in recipe.trackers if t.name == "p_anneal"), None)
        plain = getattr(own, "p_start", 0.0) == 1.0 and getattr(recipe.dictionary, "unit_norm", False)
        return too_heavy(recipe, self.coefficient, "l1") if plain else []


def penalised(out: Out, on_gate: bool) -> jax.Array:
    """What a p-norm is taken of: codes, or relu(score) with `on_gate`."""
    return jax.nn.relu(out.sel.pre.score) if on_gate else jnp.abs(out.sel.codes.values)  # type: ignore[union-attr]


def p_sum(v: jax.Array, p: jax.Array, root: bool) -> jax.Array:
    """sum_j v_j^p over the last axis for v >= 0, or its p-th root; entries at 0 count 0 and get no gradient."""
    on = v > 0
    total = jnp.sum(jnp.where(on, jnp.where(on, v, 1.0) ** p, 0.0), axis=-1)
    if not root:
        return total
    some = total > 0
    return jnp.where(some, jnp.where(some, total, 1.0) ** (1.0 / p), 0.0)
