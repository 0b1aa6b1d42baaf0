"""Selectors: from scores to codes.  Thresholds give dense codes, ranks give sparse ones."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxsae import kernels
from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.codes import DenseCodes, SparseCodes
from jaxsae.sae.records import Ctx, Pre, Selection, Want
from jaxsae.sae.rules import RowRule, Rule
from jaxsae.sae.slots import Dictionary
from jaxsae.sae.trackers import threshold_value
from jaxsae.typing import Params, PyTree


def dead_candidates(pre: Pre, ctx: Ctx, want: Want, signed: bool = False) -> SparseCodes | None:
    """The k_aux best-scored dead latents of each row, from dense pre-activations; value 0 where fewer are dead."""
    if not want.k_aux:
        return None
    score = jax.lax.stop_gradient(jnp.abs(pre.score) if signed else pre.score)
    best, index = kernels.topk(jnp.where(ctx.dead()[None], score, -jnp.inf), want.k_aux)
    value = jnp.where(jnp.isfinite(best), kernels.pick(pre.value, index), 0.0)
    return SparseCodes(value if signed else jax.nn.relu(value), index, score.shape[1])


@register("selector.relu")
@dataclass(frozen=True)
class Relu:
    """On where score > 0, worth relu(value).  Dense codes.  Already an inference form: a threshold at 0."""

    may_miss = False
    forms = ("threshold",)
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    def init(self, key: jax.Array, d_sae: int) -> Params:
        return {}

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        codes = DenseCodes(jnp.where(pre.score > 0, jax.nn.relu(pre.value), 0.0))
        return Selection(codes, aux=dead_candidates(pre, ctx, want), pre=pre if want.pre else None)

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple["Relu", Params]:
        return self, {}


@register("selector.threshold")
@dataclass(frozen=True)
class Threshold:
    """On where score > threshold [S], worth relu(value) (or value where `signed`, with score = |pre|).

    Without `rectify` it is worth the value itself, which differs only where a threshold is negative.
    The inference form of every method whose selection is, or becomes, a threshold (JumpReLU, Rajamanoharan et al.
    2024).  The threshold is a fixed leaf: learning one is another selector's business.
    """

    signed: bool = False
    rectify: bool = True
    may_miss = False
    forms = ("threshold",)
    axes = {"threshold": "S"}
    fixed = ("threshold",)

    def init(self, key: jax.Array, d_sae: int) -> Params:
        return {"threshold": jnp.zeros(d_sae)}

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        score = jnp.abs(pre.score) if self.signed else pre.score
        value = jax.nn.relu(pre.value) if self.rectify and not self.signed else pre.value
        codes = DenseCodes(jnp.where(score > p["threshold"][None], value, 0.0))
        aux = dead_candidates(pre, ctx, want, self.signed)
        return Selection(codes, aux=aux, pre=pre if want.pre else None, theta=p["threshold"])

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple["Threshold", Params]:
        return self, {"threshold": p["threshold"]}


@register("selector.rank")
@dataclass(frozen=True)
class Rank:
    """Any rank-like support: a rule thins a list of `cap` candidates sorted by score.

    The list comes from the fused op, or from dense pre-activations when somebody needs them; a rule that may miss
    then gets the full list.  Values are relu(pre), or pre itself where `signed` (score |pre|).  With `by_norm` the
    score is multiplied by the norm of the atom.  Without `rectify` the best are kept even where they are negative,
    worth pre itself.
    """

    cap: int
    rule: Rule = RowRule()
    signed: bool = False
    by_norm: bool = False
    rectify: bool = True

    @property
    def axes(self) -> dict[str, str]:
        return self.rule.axes

    @property
    def fixed(self) -> tuple[str, ...]:
        return self.rule.fixed

    @property
    def may_miss(self) -> bool:
        return self.rule.may_miss

    @property
    def forms(self) -> tuple[str, ...]:
        return ("rank", "threshold") if self.rule.per_row else ("threshold",)

    def init(self, key: jax.Array, d_sae: int) -> Params:
        return self.rule.init(key)

    def select_affine(self, p: Params, x: jax.Array, affine: tuple, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        """The fused way: `affine` is (W [D, S], b [S], b_pre [D])."""
        W, b, b_pre = affine
        d_sae, signed = W.shape[1], self.signed
        dead = ctx.dead() if want.k_aux else jnp.zeros(d_sae, bool)
        scale, size = self._scale(p, D, d_sae), max(self.cap, want.ranks)
        values, index, aux_values, aux = kernels.encode_topk(
            x, W, b, b_pre, scale if self.by_norm else None, dead, size, want.k_aux, signed
        )
        selection = self._thin(p, x - b_pre[None].astype(x.dtype), values, index, scale, ctx)
        if not want.k_aux:
            return selection
        aux_values = self._worth(aux_values)
        return selection._replace(aux=SparseCodes(aux_values, aux, d_sae))

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        """The dense way, from pre-activations of every latent."""
        d_sae = pre.score.shape[1]
        scale = self._scale(p, D, d_sae)
        score = jax.lax.stop_gradient((jnp.abs(pre.score) if self.signed else pre.score) * scale[None])
        if not ctx.train and not self.rule.per_row and "threshold" in ctx.track:
            return self._by_threshold(pre, score, ctx)
        if hasattr(self.rule, "keep_unranked") and not want.ranks:
            return self._unranked(pre, score, ctx, want)
        size = d_sae if self.may_miss else max(self.cap, want.ranks)
        index = kernels.topk(score, size)[1]
        values = kernels.pick(pre.value, index)
        ranked_score = kernels.pick(score, index)
        selection = self._thin(p, pre.x, values, index, scale, ctx, ranked_score)
        aux = dead_candidates(Pre(score, pre.value, pre.x), ctx, want, self.signed)
        return selection._replace(aux=aux, pre=pre if want.pre else None)

    def _scale(self, p: Params, D: Dictionary, d_sae: int) -> jax.Array:
        return jax.lax.stop_gradient(D.norms(p)) if self.by_norm else jnp.ones(d_sae)

    def _by_threshold(self, pre: Pre, score: jax.Array, ctx: Ctx) -> Selection:
        keep = score > threshold_value(ctx.track["threshold"])
        return Selection(DenseCodes(jnp.where(keep, self._worth(pre.value), 0.0)))

    def _unranked(self, pre: Pre, score: jax.Array, ctx: Ctx, want: Want) -> Selection:
        """Dense codes of a rule that needs no ranked list, when it sees every latent."""
        keep = self.rule.keep_unranked(score, ctx)  # type: ignore[attr-defined]
        lowest = jnp.min(jnp.where(keep, score, jnp.inf))
        kept_min = jnp.where(jnp.isfinite(lowest), lowest, jnp.nan)
        codes = DenseCodes(jnp.where(keep, self._worth(pre.value), 0.0))
        aux = dead_candidates(Pre(score, pre.value, pre.x), ctx, want, self.signed)
        return Selection(codes, kept_min=kept_min, aux=aux, pre=pre if want.pre else None)

    def _worth(self, value: jax.Array) -> jax.Array:
        return jax.nn.relu(value) if self.rectify and not self.signed else value

    def _thin(self, p, x, values, index, scale, ctx: Ctx, score=None) -> Selection:
        """Applies the rule to a list sorted by score; only positive scores of rows that count are ever kept."""
        size = values.shape[1]
        if score is None:
            score = jax.lax.stop_gradient((jnp.abs(values) if self.signed else values) * kernels.take(scale, index))
        keep, exact = self.rule.keep(p, score, x, ctx, size == len(scale))
        keep = keep & ((score > 0) | (not self.rectify)) & (ctx.rows.mask[:, None] > 0)
        lowest = jnp.where(keep, score, jnp.inf)
        lowest = lowest.min(axis=1) if self.rule.per_row else lowest.min()
        kept_min = jnp.nanmean(jnp.where(jnp.isfinite(lowest), lowest, jnp.nan))
        values = self._worth(values)
        n = size if self.may_miss else self.cap
        # Without the barrier XLA merges a shorter list's cut with the top-k before it, and sorts whole rows instead.
        kept = jax.lax.optimization_barrier(index)[:, :n] if n < size else index
        codes = SparseCodes(jnp.where(keep, values, 0.0)[:, :n], kept, len(scale))
        return Selection(codes, exact, kept_min, SparseCodes(values, index, len(scale)))

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str):
        """Rank form: the same selector, its rule's leaves and k as a leaf.  Threshold form: the tracked average."""
        if form == "rank":
            rule: Any = self.rule.frozen() if hasattr(self.rule, "frozen") else self.rule
            reads_k = "k" in getattr(rule, "reads", ("k",))
            k = {"k": jnp.asarray(hyper["k"]).astype(jnp.int32)} if reads_k else {}
            return replace(self, rule=rule), {**{name: p[name] for name in rule.axes}, **k}
        if "threshold" not in track:
            raise ConfigError("the threshold form needs the tracker 'threshold'; train with EmaThreshold()")
        theta = threshold_value(track["threshold"])
        norms = self._scale(p, D, D.d_sae)
        return Threshold(self.signed, self.rectify), {"threshold": jnp.broadcast_to(theta / norms, norms.shape)}
