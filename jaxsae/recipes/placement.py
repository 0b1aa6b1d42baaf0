"""Where the leaves of a state live and how they move with their latents, both read off the axis letters."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxsae.errors import ConfigError
from jaxsae.parallel import sharding
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.state import State
from jaxsae.typing import PyTree


def letters(recipe: Recipe, state: State) -> State:
    """A state whose every leaf is replaced by its axis letters ("" for scalars and keys).

    Works on abstract states (`jax.eval_shape` of init) as well.

    Raises:
        ConfigError: a leaf whose shape its letters do not describe.
    """
    axes, trackers = recipe.axes, {t.name: t for t in recipe.trackers}
    params: Any = {name: _checked(name, axes[name], leaf) for name, leaf in state.params.items()}
    track = {
        name: {field: _checked(field, trackers[name].axes.get(field, ""), leaf) for field, leaf in own.items()}
        for name, own in state.track.items()
    }
    train = {name: params[name] for name in recipe.split(state.params)[0]}
    opt = optax.tree_map_params(
        recipe.optimizer.build(), lambda _, a: a, state.opt, train, transform_non_params=lambda _: ""
    )
    average: Any = {name: params[name] for name in state.average}
    blank: Any = ""
    return State(params, track, opt, jax.tree.map(lambda _: "", state.hyper), blank, blank, average)


def _checked(name: str, axis_letters: str, leaf: Any) -> str:
    if len(axis_letters) != len(leaf.shape):
        raise ConfigError(f"leaf {name!r}: letters {axis_letters!r} do not describe the shape {tuple(leaf.shape)}")
    return axis_letters


def placements(recipe: Recipe, state: State, mesh: Mesh, zero: bool = False) -> State:
    """The sharding of every leaf on a mesh: pass it as `out_shardings` of a jitted init or step.

    Args:
        recipe: the method.
        state: its state, or the shapes of one.
        mesh: where to.
        zero: spread the optimiser's moments over the devices of `data` too.
    """
    table = letters(recipe, state)
    placed = jax.tree.map(lambda _, a: sharding(mesh, a), state, table)
    if zero:
        placed = replace(placed, opt=jax.tree.map(lambda _, a: sharding(mesh, a, zero=True), state.opt, table.opt))
    return placed


def permute(recipe: Recipe, state: State, order: jax.Array) -> State:
    """Reorders latents in parameters, moments, averages and trackers: new latent i is old latent order[i].

    Raises:
        ConfigError: the order of latents is structural in one of this recipe's slots.
    """
    if getattr(recipe.encoder, "ordered", False) or getattr(recipe.dictionary, "ordered", False):
        raise ConfigError(f"recipe {recipe.name!r}: the order of latents is structural, it cannot be permuted")
    return map_latents(recipe, state, lambda leaf, axis: jnp.take(leaf, order, axis=axis))


def map_latents(recipe: Recipe, state: State, move: Callable[[jax.Array, int], jax.Array]) -> State:
    """Applies `move(leaf, latent axis)` to every leaf that has one; all others stay."""

    def one(leaf: Any, a: str) -> Any:
        return move(leaf, a.index("S")) if "S" in a else leaf

    table = letters(recipe, state)
    parts: dict[str, PyTree] = {
        part: jax.tree.map(one, getattr(state, part), getattr(table, part))
        for part in ("params", "track", "opt", "average")
    }
    return replace(state, **parts)
