"""Published methods, each a choice of slots, and the pure functions that train any of them."""

from jaxsae.recipes.abs_topk import abs_topk
from jaxsae.recipes.adaptive_k import adaptive_k, with_probe
from jaxsae.recipes.adopt import Adopted, adopt, init_from
from jaxsae.recipes.batch_topk import batch_topk
from jaxsae.recipes.bricken import bricken
from jaxsae.recipes.cadence import PermuteByImportance, RunningScale
from jaxsae.recipes.feature_choice import feature_choice
from jaxsae.recipes.gated import gated
from jaxsae.recipes.gated_p_anneal import gated_p_anneal
from jaxsae.recipes.group_max import group_max
from jaxsae.recipes.hierarchical_topk import hierarchical_topk
from jaxsae.recipes.jumprelu import jumprelu
from jaxsae.recipes.jumprelu_anthropic import jumprelu_anthropic
from jaxsae.recipes.jumprelu_tanh_quad import jumprelu_tanh_quad
from jaxsae.recipes.jumprelu_target_l0 import jumprelu_target_l0
from jaxsae.recipes.k_sparse import k_sparse
from jaxsae.recipes.matryoshka import matryoshka
from jaxsae.recipes.matryoshka_random import matryoshka_random
from jaxsae.recipes.msae import msae
from jaxsae.recipes.multi_topk import multi_topk
from jaxsae.recipes.mutual_choice import mutual_choice
from jaxsae.recipes.ortsae import ortsae
from jaxsae.recipes.p_anneal import p_anneal
from jaxsae.recipes.placement import letters, permute, placements
from jaxsae.recipes.programs import Programs
from jaxsae.recipes.recipe import Recipe, evaluate, init, step
from jaxsae.recipes.registry import RecipeConfig, configs, published
from jaxsae.recipes.relu_l1 import relu_l1
from jaxsae.recipes.resample import Resample, Reservoir
from jaxsae.recipes.state import State
from jaxsae.recipes.tied_l1 import tied_l1
from jaxsae.recipes.top_afa import top_afa
from jaxsae.recipes.topk import topk

__all__ = [
    "Adopted",
    "PermuteByImportance",
    "Programs",
    "Recipe",
    "RecipeConfig",
    "Resample",
    "Reservoir",
    "RunningScale",
    "State",
    "abs_topk",
    "adaptive_k",
    "adopt",
    "batch_topk",
    "bricken",
    "configs",
    "evaluate",
    "feature_choice",
    "gated",
    "gated_p_anneal",
    "group_max",
    "hierarchical_topk",
    "init",
    "init_from",
    "jumprelu",
    "jumprelu_anthropic",
    "jumprelu_tanh_quad",
    "jumprelu_target_l0",
    "k_sparse",
    "letters",
    "matryoshka",
    "matryoshka_random",
    "msae",
    "multi_topk",
    "mutual_choice",
    "ortsae",
    "p_anneal",
    "permute",
    "placements",
    "published",
    "relu_l1",
    "step",
    "tied_l1",
    "top_afa",
    "topk",
    "with_probe",
]
