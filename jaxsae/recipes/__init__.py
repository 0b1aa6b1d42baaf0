"""Published methods, each a choice of slots, and the pure functions that train any of them."""

from jaxsae.recipes.adaptive_k import adaptive_k, with_probe
from jaxsae.recipes.adopt import Adopted, adopt, init_from
from jaxsae.recipes.feature_choice import feature_choice
from jaxsae.recipes.group_max import group_max
from jaxsae.recipes.mutual_choice import mutual_choice
from jaxsae.recipes.placement import letters, permute, placements
from jaxsae.recipes.recipe import Recipe, evaluate, init, step
from jaxsae.recipes.registry import RecipeConfig, configs, published
from jaxsae.recipes.relu_l1 import relu_l1
from jaxsae.recipes.state import State
from jaxsae.recipes.top_afa import top_afa
from jaxsae.recipes.topk import topk

__all__ = [
    "Adopted",
    "adaptive_k",
    "with_probe",
    "feature_choice",
    "group_max",
    "mutual_choice",
    "top_afa",
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
