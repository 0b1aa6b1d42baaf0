"""Selectors without a ranking: every latent by itself, or one per group."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.codes import DenseCodes, SparseCodes
from jaxsae.sae.records import Ctx, Pre, Selection, Want
from jaxsae.sae.selectors import dead_candidates
from jaxsae.sae.slots import Dictionary
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

    The `groupmax` activation of EleutherAI's sparsify.  L0 is at most `groups`.
    """

    groups: int
    ordered = True
    may_miss = False
    forms = ("rank",)
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    def init(self, key: jax.Array, d_sae: int) -> Params:
        if d_sae % self.groups:
            raise ConfigError(f"GroupMax: {d_sae} latents cannot be cut into {self.groups} equal groups")
        return {}

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        rows, d_sae = pre.score.shape
        grouped = pre.score.reshape(rows, self.groups, d_sae // self.groups)
        first = jnp.arange(self.groups, dtype=jnp.int32) * (d_sae // self.groups)
        index = jnp.argmax(grouped, axis=-1).astype(jnp.int32) + first[None]
        score = jax.lax.stop_gradient(jnp.take_along_axis(pre.score, index, axis=1))
        keep = (score > 0) & (ctx.rows.mask[:, None] > 0)
        values = jnp.where(keep, jax.nn.relu(jnp.take_along_axis(pre.value, index, axis=1)), 0.0)
        aux = dead_candidates(pre, ctx, want)
        return Selection(SparseCodes(values, index, d_sae), aux=aux, pre=pre if want.pre else None)

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple["GroupMax", Params]:
        return self, {}


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
