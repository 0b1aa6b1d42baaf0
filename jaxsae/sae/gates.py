"""Encoders with more than one affine map: gated, GLU, and layer-normalised pre-activations."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.sae.encoders import Affine
from jaxsae.sae.geometry import unit
from jaxsae.sae.records import Ctx, Pre, Rows
from jaxsae.sae.selectors import Relu, Threshold
from jaxsae.sae.slots import Dictionary
from jaxsae.typing import Params


def _start(key: jax.Array, d_in: int, d_sae: int, p: Params, D: Dictionary, start: str) -> jax.Array:
    return D.atoms(p).T if start == "tied" else unit(jax.random.normal(key, (d_sae, d_in))).T


def _product(x: jax.Array, W: jax.Array) -> jax.Array:
    return jnp.dot(x, W, preferred_element_type=jnp.float32)


@register("encoder.gated")
@dataclass(frozen=True)
class Gated:
    """q = (x - b_pre) W_enc; on where q + b_gate > 0, worth relu(q exp(r_mag) + b_mag) (Rajamanoharan et al. 2024a).

    Takes the selector `Relu`, which tests the gate and rectifies the magnitude.  The gate learns from the terms
    `GateL1` and `GateAux`.  Its inference form is an ordinary affine encoder with thresholds: with W = W_enc exp(r_mag)
    and b = b_mag, q + b_gate > 0 is x W + b > b_mag - exp(r_mag) b_gate, exactly so in real arithmetic.
    """

    d_in: int
    d_sae: int
    b_pre: Literal["none", "b_dec"] = "b_dec"
    start: Literal["tied", "random"] = "tied"
    axes = {"W_enc": "DS", "b_gate": "S", "b_mag": "S", "r_mag": "S"}

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        zeros = jnp.zeros(self.d_sae)
        W = _start(key, self.d_in, self.d_sae, p, D, self.start)
        return {"W_enc": W, "b_gate": zeros, "b_mag": zeros, "r_mag": zeros}

    def pre(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx) -> Pre:
        centred = x - p["b_dec"][None].astype(x.dtype) if self.b_pre == "b_dec" else x
        q = _product(centred, p["W_enc"])
        value = q * jnp.exp(p["r_mag"].astype(jnp.float32))[None] + p["b_mag"][None]
        return Pre(q + p["b_gate"][None], value, centred)

    def frozen(self, p: Params, selector: Any, leaves: Params) -> tuple[Any, Any, Params]:
        """The inference encoder, selector and leaves; with another selector than `Relu` the two paths stay."""
        if not isinstance(selector, Relu):
            return self, selector, {**leaves, **{n: p[n] for n in self.axes}}
        gain = jnp.exp(p["r_mag"])
        theta = p["b_mag"] - gain * p["b_gate"]
        merged = {"W_enc": p["W_enc"] * gain[None], "b_enc": p["b_mag"], "threshold": theta}
        return Affine(self.d_in, self.d_sae, self.b_pre), Threshold(), {**leaves, **merged}


@register("encoder.glu")
@dataclass(frozen=True)
class Glu:
    """pre = (x W_enc + b_enc) * sigmoid(x W_glu + b_glu): the gated linear unit of llamascopium's encoders."""

    d_in: int
    d_sae: int
    b_pre: Literal["none", "b_dec"] = "none"
    start: Literal["tied", "random"] = "tied"
    axes = {"W_enc": "DS", "b_enc": "S", "W_glu": "DS", "b_glu": "S"}

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        first, second = jax.random.split(key)
        zeros = jnp.zeros(self.d_sae)
        W = _start(first, self.d_in, self.d_sae, p, D, self.start)
        gate = unit(jax.random.normal(second, (self.d_sae, self.d_in))).T
        return {"W_enc": W, "b_enc": zeros, "W_glu": gate, "b_glu": zeros}

    def pre(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx) -> Pre:
        centred = x - p["b_dec"][None].astype(x.dtype) if self.b_pre == "b_dec" else x
        gate = jax.nn.sigmoid(_product(centred, p["W_glu"]) + p["b_glu"][None])
        value = (_product(centred, p["W_enc"]) + p["b_enc"][None]) * gate
        return Pre(value, value, centred)


@register("encoder.layer_normed")
@dataclass(frozen=True)
class LayerNormed:
    """pre = LayerNorm(x W_enc + b_enc) * ln_gain + ln_bias, normalised over the S latents of a row.

    The `mlp_ln_1` encoder of overcomplete; variance with divisor S, `eps` added to it.
    """

    d_in: int
    d_sae: int
    eps: float = 1e-5
    start: Literal["tied", "random"] = "tied"
    axes = {"W_enc": "DS", "b_enc": "S", "ln_gain": "S", "ln_bias": "S"}

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        zeros = jnp.zeros(self.d_sae)
        W = _start(key, self.d_in, self.d_sae, p, D, self.start)
        return {"W_enc": W, "b_enc": zeros, "ln_gain": jnp.ones(self.d_sae), "ln_bias": zeros}

    def pre(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx) -> Pre:
        h = _product(x, p["W_enc"]) + p["b_enc"][None]
        centred = h - h.mean(-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + self.eps)
        value = scaled * p["ln_gain"][None] + p["ln_bias"][None]
        return Pre(value, value, x)
