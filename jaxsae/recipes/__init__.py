"""Published methods, each a choice of slots, and the pure functions that train any of them."""

from jaxsae.recipes.adopt import Adopted, adopt, init_from
from jaxsae.recipes.placement import letters, permute, placements
from jaxsae.recipes.recipe import Recipe, evaluate, init, step
from jaxsae.recipes.registry import RecipeConfig, configs, published
from jaxsae.recipes.relu_l1 import relu_l1
from jaxsae.recipes.state import State
from jaxsae.recipes.topk import topk

__all__ = [
    "Adopted",
    "Recipe",
    "RecipeConfig",
    "State",
    "adopt",
    "configs",
    "evaluate",
    "init",
    "init_from",
    "letters",
    "permute",
    "placements",
    "published",
    "relu_l1",
    "step",
    "topk",
]
