"""Loss terms.  Each says its reduction; each is logged under its own name.

A term returns one value per row, [B], which the recipe reduces over the rows that count, or one number, [], when it
normalises over the batch itself (it must then honour `rows.mask`).  Coefficients are arrays in `state.hyper`; a term
names its own by `coefficient` ("" means 1) and may shape it over time by a schedule.  A term with a `controller` is
also multiplied by the "scale" that the tracker of this name holds.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.objective.dead_zones import too_heavy
from jaxsae.objective.reducers import Mean, Reducer
from jaxsae.objective.schedules import Constant, Schedule
from jaxsae.sae.levels import average
from jaxsae.sae.records import Ctx, Out

#: Guards divisions by a variance that may be 0.
TINY = 1e-12


class Term(Protocol):
    """See the module docstring.  `k_aux` asks for a selection among dead latents.

    `needs` may contain "pre" (dense pre-activations) and what a selector lists in `gives`, such as "theta" (learned
    thresholds).  Optional, for terms as for every other slot: `reads` (swept scalars that must be in hyper), `tracks`
    (trackers that must be there), `review(recipe)` (raises ConfigError, or returns warnings, when a recipe is built).
    """

    @property
    def name(self) -> str: ...
    @property
    def coefficient(self) -> str: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def reducer(self) -> Reducer: ...
    @property
    def needs(self) -> tuple[str, ...]: ...

    @property
    def k_aux(self) -> int: ...
    def __call__(self, out: Out, ctx: Ctx) -> jax.Array: ...


def weight(term: Term, ctx: Ctx) -> jax.Array:
    """What multiplies a term at this step: [] f32."""
    peak = ctx.hyper[term.coefficient] if term.coefficient else 1.0
    controller = getattr(term, "controller", "")
    scale = ctx.track[controller]["scale"] if controller else 1.0
    return peak * scale * term.schedule(ctx.step)


def batch_variance(y: jax.Array, mask: jax.Array) -> jax.Array:
    """sum over rows and E of (y - mean over rows of y)^2, rows that count only: [] f32."""
    rows = mask[:, None]
    mean = jnp.sum(y * rows, axis=0, keepdims=True) / jnp.maximum(jnp.sum(mask), 1.0)
    return jnp.sum(rows * (y - mean) ** 2)


@register("term.mse")
@dataclass(frozen=True)
class Mse:
    """||y - yhat||^2, sum over E, mean over levels (by weight) and B (Bricken et al. 2023; Anthropic April 2024)."""

    coefficient: str = ""
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    name = "mse"
    needs = ()
    k_aux = 0

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        return average(out.levels, out.level_sse)


@register("term.normalised_mse")
@dataclass(frozen=True)
class NormalisedMse:
    """sum_B,E (y - yhat)^2 / sum_B,E (y - mean_B y)^2: the fraction of variance unexplained of this batch.

    With the constant 1/var(x) of Gao et al. 2024 taken on the batch itself; levels as in `Mse`.
    """

    coefficient: str = ""
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    name = "normalised_mse"
    needs = ()
    k_aux = 0

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        sse = jnp.sum(average(out.levels, out.level_sse) * out.rows.mask)
        return sse / jnp.maximum(batch_variance(out.rows.y, out.rows.mask), TINY)


@register("term.row_normalised_mse")
@dataclass(frozen=True)
class RowNormalisedMse:
    """||y - yhat||^2 / ||y - mean_B y||^2 of each row, mean over levels (by weight) and B (MSAE, 2502.20578).

    A mean of ratios, where `NormalisedMse` is a ratio of means.  The authors subtract the mean of the data set.
    """

    coefficient: str = ""
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    name = "row_normalised_mse"
    needs = ()
    k_aux = 0

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        y, rows = out.rows.y, out.rows.mask[:, None]
        mean = jnp.sum(y * rows, axis=0, keepdims=True) / jnp.maximum(jnp.sum(rows), 1.0)
        return average(out.levels, out.level_sse) / jnp.maximum(jnp.sum((y - mean) ** 2, axis=1), TINY)


@register("term.l1")
@dataclass(frozen=True)
class L1:
    """sum_j |z_j| ||d_j||, sum over latents, mean over B (Anthropic, April 2024 update).

    With `by_norm` False the plain sum |z_j| (Cunningham et al. 2023; Bricken et al. 2023), which is only meaningful
    for atoms of unit norm: otherwise codes shrink and atoms grow.
    """

    coefficient: str = "l1_coefficient"
    schedule: Schedule = Constant()
    by_norm: bool = True
    reducer: Reducer = Mean()
    controller: str = ""
    name = "l1"
    needs = ()
    k_aux = 0

    @property
    def tracks(self) -> tuple[str, ...]:
        return (self.controller,) if self.controller else ()

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        z = jnp.abs(out.sel.codes.values)
        return jnp.sum(z * out.sel.codes.at(out.D.norms(out.p)) if self.by_norm else z, axis=-1)

    def review(self, recipe: Any) -> list[str]:
        """Warns of a weight that no latent is worth, and of a penalty that scaling evades.

        Codes over a and atoms times a give the same output; without norms, at less cost.
        """
        if self.by_norm or getattr(recipe.dictionary, "unit_norm", False):
            return [] if self.controller else too_heavy(recipe, self.coefficient, "l1")
        return [
            "L1 without decoder norms on atoms of free length has no minimum: atoms twice as long halve the penalty at "
            "the same reconstruction; use by_norm=True or a unit dictionary"
        ]


@register("term.auxk")
@dataclass(frozen=True)
class AuxK:
    """How badly the k_aux best dead latents model what the live ones leave over (Gao et al. 2024).

        e = stop_gradient(y - yhat)     e_hat = z_dead @ W_dec (no bias)
        L = sum_B,E (e - e_hat)^2 / sum_B,E (e - mean_B e)^2,   0 when no latent is dead

    The residual is detached, so live latents are not touched; the gradient reaches encoder and atoms of dead ones.
    With `normalised` False the divisor is the number of rows, so that it is comparable with `Mse` (sum over E, mean
    over B: the form of the BatchTopK authors' code, there with a residual that is not detached).
    """

    k_aux: int
    coefficient: str = "aux_loss_coefficient"
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    normalised: bool = True
    name = "auxk"
    needs = ()

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        e, mask = jax.lax.stop_gradient(out.err), out.rows.mask
        any_dead = jnp.any(ctx.dead())
        aux: Any = out.sel.aux  # present, since k_aux asks for it
        found = out.sel.aux_rows
        rest = e - (aux.decode(out.D.atoms(out.p), live=any_dead) if found is None else found)
        scale = jnp.maximum(batch_variance(e, mask), TINY) if self.normalised else jnp.maximum(jnp.sum(mask), 1.0)
        loss = jnp.sum(mask[:, None] * rest**2) / scale
        return jnp.where(any_dead, loss, 0.0)
