"""The opponents that several studies share, and what is alike for all arms."""

from dataclasses import replace
from typing import Any

from jaxsae import recipes
from jaxsae.objective import Linear
from jaxsae.science.beds import S1, D, S
from jaxsae.science.fleet import Job
from jaxsae.science.lab import Arm, Lab

#: Updates of a run, rows of a batch, and after how many rows without firing a latent counts as dead.
STEPS, ROWS = 450, 128
DEAD = 100 * ROWS


def alike(recipe: recipes.Recipe) -> recipes.Recipe:
    """The recipe with the learning rate schedule of all arms: constant, then linearly to 0 over the last fifth."""
    return replace(recipe, lr_schedule=Linear(0, STEPS // 5, STEPS))


def job(recipe: recipes.Recipe, bed: Any, **options: Any) -> Job:
    """A job of the usual length."""
    return Job(alike(recipe), bed, STEPS, ROWS, **options)


def relu_arm(lab: Lab, bed: Any = S1, l0: float = 4.0, values: tuple[float, ...] = (2.0, 3.0, 4.5)) -> Arm:
    """ReLU + L1 (April 2024)."""
    return lab.arm("ReLU + L1", job(recipes.relu_l1(D, S, training_steps=STEPS), bed), "l1_coefficient", values, l0)


def topk_arm(lab: Lab, bed: Any = S1, l0: float = 4.0, ks: tuple[int, ...] = (3, 4, 5), **options: Any) -> Arm:
    """TopK on rows as they come."""
    recipe = recipes.topk(D, S, k=max(ks), normalize_activations=False, dead_after_tokens=DEAD, **options)
    return lab.arm("TopK", job(recipe, bed), "k", ks, l0)


def batch_topk_arm(lab: Lab, bed: Any, l0: float, ks: tuple[float, ...]) -> Arm:
    """BatchTopK on rows as they come, judged by its threshold."""
    recipe = recipes.batch_topk(D, S, k=max(ks), k_aux=16, normalize_activations=False, dead_after_tokens=DEAD)
    return lab.arm("BatchTopK", job(recipe, bed), "k", ks, l0)
