"""Terms of methods that let rows or latents choose how many: norm matching, Zipf auxiliary, complexity probe."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.objective.reducers import Mean, Reducer
from jaxsae.objective.schedules import Constant, Schedule
from jaxsae.objective.terms import TINY, AuxK
from jaxsae.sae.density import density_value, rank_of, zipf_curve
from jaxsae.sae.probe import complexity
from jaxsae.sae.records import Ctx, Out


def _length(a: jax.Array) -> jax.Array:
    """Euclidean norm of each row, with gradient 0 (not NaN) at 0: a row may keep nothing."""
    square = jnp.sum(a.astype(jnp.float32) ** 2, axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


@register("term.afa")
@dataclass(frozen=True)
class Afa:
    """(||z||_2 - ||x||_2)^2, mean over B: codes as long as their rows (Lee et al. 2025, 2503.24277).

    z are the codes times the norms of their atoms, x the row after input scaling and before any centring, as in the
    authors' code, whose atoms have norm 1.
    """

    coefficient: str = "afa_coefficient"
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    name = "afa"
    needs = ()
    k_aux = 0

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        codes = out.sel.codes
        return (_length(codes.values * codes.at(out.D.norms(out.p))) - _length(out.rows.x)) ** 2


@dataclass(frozen=True)
class Underused:
    """Latents whose running density falls short of the Zipf curve at their rank by at least a share `tolerance`.

        shortfall_j = max(0, 1 - density_j / curve_j)      curve_j = min(1, k p(rank_j)),  p from `zipf_curve`

    A latent is judged only once the curve lets it expect `evidence` firings among the rows counted: a rare latent is
    not underused because it has not had its turn.  With tolerance 1 only latents of density 0 count.
    """

    evidence: float = 10.0

    def shortfall(self, ctx: Ctx) -> jax.Array:
        """[S] in 0..1; 0 where it is too early to judge."""
        own = ctx.track["density"]
        density = density_value(own)
        share = zipf_curve(len(density), ctx.hyper["zipf_q"], ctx.hyper["zipf_s"])[rank_of(density)]
        curve = jnp.minimum(ctx.hyper["k"] * share, 1.0)
        short = jnp.maximum(0.0, 1.0 - density / curve)
        return jnp.where(own["rows"] * curve >= self.evidence, short, 0.0)

    def __call__(self, ctx: Ctx) -> jax.Array:
        short = self.shortfall(ctx)
        return (short >= ctx.hyper["zipf_tolerance"]) & (short > 0)


@register("term.aux_zipf")
@dataclass(frozen=True)
class AuxZipf:
    """AuxK for underused latents, weighted by how far they fall short (Ayonrinde 2024, 2411.02124).

        L = (mean shortfall of the underused) * L_aux,   L_aux as `AuxK`, over the k_aux best among them

    AuxK is the case in which only density 0 counts (`zipf_tolerance` 1: every shortfall is then 1).

    Uncertain: the abstract says that the loss generalises AuxK to underused latents; the curve, the tolerance, the mean
    of shortfalls as the weight and the waiting for evidence are this library's reading of it.
    """

    k_aux: int
    coefficient: str = "aux_loss_coefficient"
    schedule: Schedule = Constant()
    evidence: float = 10.0
    reducer: Reducer = Mean()
    name = "aux_zipf"
    needs = ()
    reads = ("k", "zipf_q", "zipf_s", "zipf_tolerance")
    tracks = ("density",)

    @property
    def pool(self) -> Callable[[Ctx], jax.Array]:
        """Whom the auxiliary selection draws from."""
        return Underused(self.evidence)

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        short, weak = Underused(self.evidence).shortfall(ctx), ctx.dead()
        mean = jnp.sum(jnp.where(weak, short, 0.0)) / jnp.maximum(jnp.sum(weak), 1)
        return mean * AuxK(self.k_aux)(out, ctx)


@register("term.relative_l1")
@dataclass(frozen=True)
class RelativeL1:
    """mean ||z||_1 / mean ||x||_2, both over B: the sparsity term of AdaptiveK (Yao & Du 2025, 2508.17320)."""

    coefficient: str = "l1_coefficient"
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    name = "relative_l1"
    needs = ()
    k_aux = 0

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        mask = out.rows.mask
        l1 = jnp.sum(jnp.abs(out.sel.codes.values), axis=-1)
        return jnp.sum(l1 * mask) / jnp.maximum(jnp.sum(_length(out.rows.x) * mask), TINY)


def _needs_probe(recipe: Any, name: str) -> None:
    if "probe_w_start" not in recipe.axes:
        raise ConfigError(f"recipe {recipe.name!r}: the term {name!r} needs an anchored ProbeRule to select by")


@register("term.probe_error")
@dataclass(frozen=True)
class ProbeError:
    """(c(x) - score)^2, mean over B: keeps the complexity probe a probe while it is trained along (AdaptiveK, phase 3).

    Scores come with the batch, as `rows.extra["score"]` [B]: use the view `Scored`.
    """

    coefficient: str = "probe_coefficient"
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    name = "probe_error"
    needs = ()
    k_aux = 0

    def review(self, recipe: Any) -> tuple[str, ...]:
        """Refuses a recipe without a probe, or without scores in its batches."""
        _needs_probe(recipe, self.name)
        if not getattr(recipe.view, "scored", False):
            raise ConfigError(f"recipe {recipe.name!r}: the term 'probe_error' reads scores; use the view Scored()")
        return ()

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        return (complexity(out.rows.x, out.p["probe_w"], out.p["probe_b"]) - out.rows.extra["score"]) ** 2


@register("term.probe_drift")
@dataclass(frozen=True)
class ProbeDrift:
    """||w - w_0||_2 + |b - b_0|: how far the probe has left the fitted one (AdaptiveK, phase 3)."""

    coefficient: str = "probe_coefficient"
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    name = "probe_drift"
    needs = ()
    k_aux = 0

    def review(self, recipe: Any) -> tuple[str, ...]:
        """Refuses a recipe without a probe and its anchor."""
        _needs_probe(recipe, self.name)
        return ()

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        p = out.p
        return _length(p["probe_w"] - p["probe_w_start"]) + jnp.abs(p["probe_b"] - p["probe_b_start"])
