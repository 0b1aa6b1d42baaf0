"""Resampling: dead latents are redrawn from the rows that the dictionary reconstructs worst (Bricken et al. 2023)."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.recipes.placement import letters
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.state import State
from jaxsae.sae.geometry import unit
from jaxsae.sae.records import Ctx, Out
from jaxsae.typing import Params, PyTree

#: Key of an empty place; any real key is larger.  Finite, so that differences of states are.
ABSENT = -1e30
#: Least loss whose logarithm is taken.
TINY = 1e-30


@register("tracker.reservoir")
@dataclass(frozen=True)
class Reservoir:
    """Rows drawn with probability proportional to their squared loss, without replacement, from many batches.

    A row of weight w = (||y - yhat||^2)^2 gets the key log w + Gumbel noise, and the rows with the largest keys stay: a
    weighted reservoir sample (Efraimidis & Spirakis 2006, keys log(u) / w, after a monotone map that cannot overflow).
    Rows are kept as the encoder sees them, after input scaling.

    Args:
        d_in: width of a row.
        size: rows kept.
        at: steps after which they are used; `Resample` empties the reservoir then.
        steps: it fills during so many steps before each of them, so that losses are recent (100 batches of 8,192 rows
            are the 819,200 of the paper).
    """

    d_in: int
    size: int = 1024
    at: tuple[int, ...] = (25_000, 50_000, 75_000, 100_000)
    steps: int = 100
    name = "reservoir"
    axes = {"rows": ".D", "keys": "."}

    def init(self, d_sae: int) -> PyTree:
        return {"rows": jnp.zeros((self.size, self.d_in)), "keys": jnp.full(self.size, ABSENT)}

    def observe(self, out: Out, ctx: Ctx) -> PyTree:
        """The best rows of this batch, [size, D], and their keys."""
        loss = jnp.sum(out.err**2, axis=1)
        keys = 2 * jnp.log(jnp.maximum(loss, TINY)) + jax.random.gumbel(ctx.rng(self.name), loss.shape)
        keys = jnp.where(out.rows.mask > 0, keys, ABSENT)
        return self._largest(keys, out.rows.x.astype(jnp.float32))

    def _largest(self, keys: jax.Array, rows: jax.Array) -> PyTree:
        short = max(self.size - len(keys), 0)
        keys = jnp.pad(keys, (0, short), constant_values=ABSENT)
        best, index = jax.lax.top_k(keys, self.size)
        kept = jnp.where(best[:, None] > ABSENT, jnp.pad(rows, ((0, short), (0, 0)))[index], 0.0)
        return {"keys": best, "rows": kept}

    def update(self, own: PyTree, observed: PyTree, ctx: Ctx) -> PyTree:
        left = jnp.asarray(self.at, jnp.int32) - ctx.step - 1  # steps to go; 0 on the step that resamples
        filling = jnp.any((left >= 0) & (left < self.steps))
        keys = jnp.concatenate([own["keys"], jnp.where(filling, observed["keys"], ABSENT)])
        return self._largest(keys, jnp.concatenate([own["rows"], observed["rows"]]))


@register("transform.resample")
@dataclass(frozen=True)
class Resample:
    """Gives dead latents a row each (Bricken et al. 2023, "Neuron resampling"), after the steps in `at`.

    For a dead latent j and a row x of the reservoir: atom d_j = x / ||x||; encoder column = 0.2 (mean norm of the live
    columns) x / ||x||; encoder biases 0; the optimiser's moments, the running mean of the weights and the counter of
    that latent start afresh.  Dead is what has been silent for `dead_after_tokens`.  Rows go to the dead latents in
    order; where these are more than the rows, the rest waits.

    The step is shared by the runs of a fleet, so all other steps skip this branch, also under `vmap`.

    Args:
        at: steps after which latents are redrawn; the same as the reservoir's.
        scale: norm of a redrawn encoder column relative to the live ones.
    """

    at: tuple[int, ...] = (25_000, 50_000, 75_000, 100_000)
    scale: float = 0.2
    tracks = ("reservoir", "fired")
    reads = ("dead_after_tokens",)

    def __call__(self, recipe: Recipe, state: State, ctx: Ctx) -> State:
        due = jnp.any(ctx.step + 1 == jnp.asarray(self.at, jnp.int32))
        moving = (state.params, state.opt, state.track, state.average)
        params, opt, track, average = jax.lax.cond(due, lambda m: self._redraw(recipe, state, *m), lambda m: m, moving)
        return replace(state, params=params, opt=opt, track=track, average=average)

    def _redraw(self, recipe: Recipe, state: State, params: Params, opt: Any, track: PyTree, average: Params) -> tuple:
        own, dead = track["reservoir"], track["fired"]["since"] >= state.hyper["dead_after_tokens"]
        place = jnp.cumsum(dead) - 1  # a dead latent's row
        reached = dead & (place < jnp.sum(own["keys"] > ABSENT))
        direction = unit(own["rows"][jnp.clip(place, 0, len(own["keys"]) - 1)])
        fresh = self._leaves(recipe, params, direction, dead)
        table: Any = letters(recipe, state)

        def put(leaf: jax.Array, a: str, value: Any = 0.0) -> jax.Array:
            """`value` at the redrawn latents of a leaf that has latents."""
            if "S" not in a:
                return leaf
            at = jnp.expand_dims(reached, [i for i in range(len(a)) if i != a.index("S")])
            return jnp.where(at, value, leaf).astype(leaf.dtype)

        params = {n: put(leaf, table.params[n], fresh[n]) if n in fresh else leaf for n, leaf in params.items()}
        average = {n: put(leaf, table.params[n], params[n]) if n in fresh else leaf for n, leaf in average.items()}
        emptied = {**own, "keys": jnp.full_like(own["keys"], ABSENT)}
        fired = {**track["fired"], "since": put(track["fired"]["since"], "S", 0)}
        return params, jax.tree.map(put, opt, table.opt), {**track, "reservoir": emptied, "fired": fired}, average

    def _leaves(self, recipe: Recipe, params: Params, direction: jax.Array, dead: jax.Array) -> Params:
        """What every leaf of encoder and dictionary would be if all latents were redrawn."""
        columns = jnp.linalg.norm(params["W_enc"], axis=0)
        alive = jnp.sum(jnp.where(dead, 0.0, columns)) / jnp.maximum(jnp.sum(~dead), 1)
        encoder: Any = getattr(recipe.encoder, "encoder", recipe.encoder)
        biases = {name: jnp.float32(0.0) for name, a in encoder.axes.items() if a == "S"}
        if "W_dec" not in params:  # tied: one matrix, whose columns are the atoms
            return {**biases, "W_enc": direction.T}
        return {**biases, "W_enc": self.scale * alive * direction.T, "W_dec": direction}

    def review(self, recipe: Recipe) -> list[str]:
        """Refuses slots it does not know how to redraw, and a reservoir that fills for other steps.

        Raises:
            ConfigError: naming the slot.
        """
        dictionary = dict(recipe.dictionary.axes)
        if dictionary not in ({"W_dec": "SE"}, {"W_enc": "DS"}) or "W_enc" not in recipe.axes:
            raise ConfigError(
                f"recipe {recipe.name!r}: resampling redraws rows of W_dec and columns of W_enc, which "
                f"{type(recipe.dictionary).__name__} and its encoder do not have"
            )
        reservoir: Any = next(t for t in recipe.trackers if t.name == "reservoir")
        if reservoir.at != self.at:
            raise ConfigError(f"recipe {recipe.name!r}: reservoir and resampling differ in `at`; give both the same")
        return []
