"""Selectors without a ranking: every latent by itself, or one per group."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.codes import DenseCodes, SparseCodes
from jaxsae.sae.records import Ctx, Pre, Selection, Want
from jaxsae.sae.selectors import Threshold, dead_candidates
from jaxsae.sae.slots import Dictionary
from jaxsae.sae.trackers import threshold_value
from jaxsae.typing import Params, PyTree


@register("selector.linear")
@dataclass(frozen=True)
class Linear:
    """Every latent on, worth its pre-activation: a linear coder, the baseline that sparsity is compared with."""

    may_miss = False
    forms = ("threshold",)
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    def init(self, key: jax.Array, d_sae: int) -> Params:
        return {}

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        aux = dead_candidates(pre, ctx, want, signed=True)
        return Selection(DenseCodes(pre.value), aux=aux, pre=pre if want.pre else None)

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple["Linear", Params]:
        return self, {}


@register("selector.tanh_relu")
@dataclass(frozen=True)
class TanhRelu:
    """On where score > 0, worth tanh(relu(value)): codes between 0 and 1 (an option of SAELens up to version 5)."""

    may_miss = False
    forms = ("threshold",)
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    def init(self, key: jax.Array, d_sae: int) -> Params:
        return {}

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        codes = DenseCodes(jnp.where(pre.score > 0, jnp.tanh(jax.nn.relu(pre.value)), 0.0))
        return Selection(codes, aux=dead_candidates(pre, ctx, want), pre=pre if want.pre else None)

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple["TanhRelu", Params]:
        return self, {}


@register("selector.group_max")
@dataclass(frozen=True)
class GroupMax:
    """The best latent of each of `groups` equal, contiguous groups, worth relu(value); ties to the first.

    The `groupmax` activation of EleutherAI's sparsify.  L0 is at most `groups`.  Latents of one group exclude each
    other for good: a recipe whose dictionary draws its atoms from data deals them out at random (`by_position`).

    Args:
        groups: their number; it must divide d_sae.
        signed: compare magnitudes and keep signs.
        by_norm: multiply scores by the norm of the atom.
    """

    groups: int
    signed: bool = False
    by_norm: bool = False
    ordered = True
    by_position = True
    may_miss = False
    forms = ("rank", "threshold")
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    def review(self, recipe: Any) -> tuple[str, ...]:
        """Refuses groups of unequal size."""
        if self.groups < 1 or recipe.d_sae % self.groups:
            raise ConfigError(
                f"recipe {recipe.name!r}: {recipe.d_sae} latents cannot be cut into {self.groups} equal groups; "
                "choose a number of groups that divides d_sae"
            )
        return ()

    def init(self, key: jax.Array, d_sae: int) -> Params:
        return {}

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        score = jax.lax.stop_gradient(jnp.abs(pre.score) if self.signed else pre.score)
        score = score * self._scale(p, D)[None]
        rows, d_sae = score.shape
        size = d_sae // self.groups
        first = jnp.arange(self.groups, dtype=jnp.int32) * size
        index = jnp.argmax(score.reshape(rows, self.groups, size), axis=-1).astype(jnp.int32) + first[None]
        best = jnp.take_along_axis(score, index, axis=1)
        keep = (best > 0) & (ctx.rows.mask[:, None] > 0)
        value = jnp.take_along_axis(pre.value, index, axis=1)
        codes = SparseCodes(jnp.where(keep, value if self.signed else jax.nn.relu(value), 0.0), index, d_sae)
        lowest = jnp.min(jnp.where(keep, best, jnp.inf), axis=1)
        kept_min = jnp.nanmean(jnp.where(jnp.isfinite(lowest), lowest, jnp.nan))
        aux = dead_candidates(Pre(score, pre.value, pre.x), ctx, want, self.signed)
        return Selection(codes, kept_min=kept_min, aux=aux, pre=pre if want.pre else None)

    def _scale(self, p: Params, D: Dictionary) -> jax.Array:
        return jax.lax.stop_gradient(D.norms(p)) if self.by_norm else jnp.ones(D.d_sae)

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple[Any, Params]:
        """Rank form: itself.  Threshold form: the tracked average, across groups.

        It is another coder: the smallest kept score is that of the group with the least to say, so many latents that
        lost within their group pass it (docs/methods.md has the measured L0).
        """
        if form == "rank":
            return self, {}
        if "threshold" not in track:
            raise ConfigError("the threshold form needs the tracker 'threshold'; train with EmaThreshold()")
        return Threshold(self.signed), {"threshold": threshold_value(track["threshold"]) / self._scale(p, D)}


@register("selector.quantised")
@dataclass(frozen=True)
class Quantised:
    """Worth relu of the nearest of `n_levels` learned levels (`hard`), or of their mean weighted by softmax(-dist^2).

    The QSAE of overcomplete.  Codes of the soft kind are never exactly 0.  The hard choice passes its gradient
    straight through to the pre-activation.
    """

    n_levels: int
    hard: bool = True
    may_miss = False
    forms = ("threshold",)
    axes = {"levels": "."}
    fixed = ()

    def init(self, key: jax.Array, d_sae: int) -> Params:
        return {"levels": jnp.linspace(0.0, 1.0, self.n_levels)}

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        levels = p["levels"].astype(jnp.float32)
        square = (pre.value[..., None] - levels[None, None]) ** 2
        if self.hard:
            nearest = levels[jnp.argmin(square, axis=-1)]
            through = pre.value - jax.lax.stop_gradient(pre.value)  # 0, with a gradient
            value = jnp.where(nearest > 0, nearest + through, 0.0)
        else:
            value = jax.nn.relu(jnp.dot(jax.nn.softmax(-square, axis=-1), levels))
        return Selection(DenseCodes(value), aux=dead_candidates(pre, ctx, want), pre=pre if want.pre else None)

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple[Any, Params]:
        return self, {"levels": p["levels"]}
