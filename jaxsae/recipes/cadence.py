"""Transforms that follow running averages: latents in order of importance, inputs in a steady scale."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.recipes.placement import permute
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.state import State
from jaxsae.sae.importance import running_mean
from jaxsae.sae.records import Ctx


@register("transform.permute_by_importance")
@dataclass(frozen=True)
class PermuteByImportance:
    """Every `every` steps, puts the latents that contribute most first (tracker `Importance`).

    Parameters, moments, averages and all trackers move together.  The step count is shared by the runs of a sweep, so
    this stays a branch under vmap.
    """

    every: int = 100
    tracks = ("importance",)

    def __call__(self, recipe: Recipe, state: State, ctx: Ctx) -> State:
        def sort(state: State) -> State:
            return permute(recipe, state, jnp.argsort(-running_mean(state.track["importance"]), stable=True))

        return jax.lax.cond((state.step + 1) % self.every == 0, sort, lambda state: state, state)


@register("transform.running_scale")
@dataclass(frozen=True)
class RunningScale:
    """Keeps c of `DatasetNorm` at sqrt(D) / (running mean of ||x||), of the tracker `InputNorm`; targets are inputs."""

    tracks = ("input_norm",)

    def __call__(self, recipe: Recipe, state: State, ctx: Ctx) -> State:
        c = math.sqrt(recipe.d_in) / running_mean(state.track["input_norm"])
        return replace(state, params={**state.params, "c_in": c, "c_out": c})
