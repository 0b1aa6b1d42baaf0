"""Encoders: from rows to pre-activations."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.geometry import unit
from jaxsae.sae.records import Ctx, Pre, Rows
from jaxsae.sae.slots import Dictionary
from jaxsae.typing import Params


@register("encoder.affine")
@dataclass(frozen=True)
class Affine:
    """pre = (x - b_pre) W_enc + b_enc, with b_pre either absent or the decoder bias.

    W_enc [D, S] starts as the transpose of the atoms (`start` "tied"; needs D = E), as their directions ("unit": the
    same with columns of norm 1), or as random unit columns, times `start_scale`.  b_enc starts at 0, or, with
    `start_share`, at what puts that share of the sample's rows above `start_above`, latent by latent.
    """

    d_in: int
    d_sae: int
    b_pre: Literal["none", "b_dec"] = "none"
    start: Literal["tied", "unit", "random"] = "tied"
    start_scale: float = 1.0
    start_share: float | None = None
    start_above: float = 0.0
    axes = {"W_enc": "DS", "b_enc": "S"}

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        if self.start == "tied":
            W = D.atoms(p).T
        elif self.start == "unit":
            W = unit(D.atoms(p)).T
        else:
            W = unit(jax.random.normal(key, (self.d_sae, self.d_in))).T
        leaves = {"W_enc": W * self.start_scale, "b_enc": jnp.zeros(self.d_sae)}
        return leaves if self.start_share is None else {**leaves, "b_enc": self._bias(rows, {**p, **leaves})}

    def _bias(self, rows: Rows, p: Params) -> jax.Array:
        W, _, b_pre = self.affine(p)
        pre = jnp.where(rows.mask[:, None] > 0, (rows.x - b_pre[None]) @ W, jnp.nan)
        return self.start_above - jnp.nanquantile(pre, 1.0 - float(self.start_share or 0.0), axis=0)

    def affine(self, p: Params) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(W [D, S], b [S], b_pre [D]): what the fused op needs."""
        return p["W_enc"], p["b_enc"], p["b_dec"] if self.b_pre == "b_dec" else jnp.zeros(self.d_in)

    def pre(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx) -> Pre:
        W, b, b_pre = self.affine(p)
        centred = x - b_pre[None].astype(x.dtype)
        value = jnp.dot(centred, W, preferred_element_type=jnp.float32) + b[None]
        return Pre(value, value, centred)


@register("encoder.tied")
@dataclass(frozen=True)
class TiedAffine:
    """pre = (x - b_pre) D^T + b_enc, where the dictionary `Tied` owns the matrix and this member the bias b_enc [S].

    The frozen coder has an ordinary `Affine` encoder with a matrix of its own.
    """

    d_in: int
    d_sae: int
    b_pre: Literal["none", "b_dec"] = "none"
    axes = {"b_enc": "S"}

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        if "W_enc" not in D.axes:
            raise ConfigError(f"a tied encoder needs the dictionary Tied, which owns W_enc; found {type(D).__name__}")
        return {"b_enc": jnp.zeros(self.d_sae)}

    def _untied(self) -> Affine:
        return Affine(self.d_in, self.d_sae, self.b_pre)

    def affine(self, p: Params) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(W [D, S], b [S], b_pre [D]): what the fused op needs."""
        return self._untied().affine(p)

    def pre(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx) -> Pre:
        return self._untied().pre(p, x, D, ctx)

    def frozen(self, p: Params, selector: Any, leaves: Params) -> tuple[Affine, Any, Params]:
        """The inference encoder and selector and all their leaves; see `PreSelect.frozen`."""
        return self._untied(), selector, {**leaves, "W_enc": p["W_enc"], "b_enc": p["b_enc"]}
