"""Published methods, each a choice of slots, and the pure functions that train any of them."""

from jaxsae.recipes.placement import letters, permute, placements
from jaxsae.recipes.recipe import Recipe, evaluate, init, step
from jaxsae.recipes.registry import RecipeConfig, configs, published
from jaxsae.recipes.relu_l1 import relu_l1
from jaxsae.recipes.state import State
from jaxsae.recipes.topk import topk

__all__ = [
    "Recipe",
    "RecipeConfig",
    "State",
    "configs",
    "evaluate",
    "init",
    "letters",
    "permute",
    "placements",
    "published",
    "relu_l1",
    "step",
    "topk",
]
