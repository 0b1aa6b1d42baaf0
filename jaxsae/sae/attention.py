"""Coders that look along a sequence: temporal SAEs and attention dictionaries (Lorsa).

Rows of one sequence are consecutive; `positions` says how many.  A frozen coder sets it from the array it is given,
a recipe fixes it together with a view that keeps sequences whole.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.geometry import unit
from jaxsae.sae.records import Ctx, Pre, Rows
from jaxsae.sae.slots import Dictionary
from jaxsae.typing import Params


def causal_pattern(q: jax.Array, k: jax.Array, scale: float) -> jax.Array:
    """softmax over earlier and present positions of q.k / scale: [N, T, H, d] twice -> [N, H, T, T]."""
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=jnp.float32) / scale
    seen = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    return jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf), axis=-1)


# ------------------------------------------------------------------------------------------------ temporal SAE
@register("encoder.temporal")
@dataclass(frozen=True)
class Temporal:
    """Splits a row into what its past predicts and what is new; the codes are of the new part.

    With z = x - b_pre, lam = 1/(4 D), E = W_dec^T or W_enc, r = z, in every layer
        a = relu(lam r E);  c = a one position later;  p = relu(Attention(q=a, k=c, v=c) W_o + b_o)
        g = p W_dec;  s = g.r / (||g|| + 1e-6)^2;  predicted += s p;  r -= s g
    and then pre = lam r E (TemporalSAE of SAELens).  `width` is that of queries and keys over all heads.
    """

    d_in: int
    d_sae: int
    n_heads: int = 8
    n_layers: int = 1
    width: int = 64
    tied: bool = True
    b_pre: Literal["none", "b_dec"] = "b_dec"
    positions: int = 1

    @property
    def axes(self) -> dict[str, str]:
        table = {} if self.tied else {"W_enc": "DS"}
        for i in range(self.n_layers):
            own = {"W_q": "S.", "b_q": ".", "W_k": "S.", "b_k": ".", "W_v": "S.", "b_v": "S", "W_o": ".S", "b_o": "S"}
            table |= {f"attn{i}_{name}": letters for name, letters in own.items()}
        return table

    @property
    def fixed(self) -> tuple[str, ...]:
        """The key biases: q.b_k is the same for every key, so the softmax drops it and no gradient means anything."""
        return tuple(f"attn{i}_b_k" for i in range(self.n_layers))

    def in_sequences(self, positions: int) -> "Temporal":
        return replace(self, positions=positions)

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        leaves: Params = {} if self.tied else {"W_enc": D.atoms(p).T}
        sizes = {"q": self.width, "k": self.width, "v": self.d_sae, "o": self.d_sae}
        for i in range(self.n_layers):
            for j, (name, size) in enumerate(sizes.items()):
                draw = jax.random.normal(jax.random.fold_in(key, 4 * i + j), (self.d_sae, size))
                leaves[f"attn{i}_W_{name}"] = draw / math.sqrt(self.d_sae)
                leaves[f"attn{i}_b_{name}"] = jnp.zeros(size)
        return leaves

    def split(self, p: Params, x: jax.Array, atoms: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Predicted latents [B, S] and the residual [B, D] that they leave."""
        r = x - p["b_dec"][None].astype(x.dtype) if self.b_pre == "b_dec" else x
        r, predicted = r.astype(jnp.float32), jnp.zeros((len(x), self.d_sae))
        for i in range(self.n_layers):
            own = {n.removeprefix(f"attn{i}_"): v for n, v in p.items() if n.startswith(f"attn{i}_")}
            now = jax.nn.relu(self._correlations(p, r, atoms)).reshape(-1, self.positions, self.d_sae)
            part = jax.nn.relu(self._attend(own, now)).reshape(-1, self.d_sae)
            g = jnp.dot(part.astype(atoms.dtype), atoms, preferred_element_type=jnp.float32)
            length = jnp.sqrt(jnp.maximum(jnp.sum(g**2, axis=1, keepdims=True), 1e-30)) + 1e-6
            s = jnp.sum(g * r, axis=1, keepdims=True) / length**2
            r, predicted = r - s * g, predicted + s * part
        return predicted, r

    def _correlations(self, p: Params, r: jax.Array, atoms: jax.Array) -> jax.Array:
        E = atoms.T if self.tied else p["W_enc"]
        return jnp.dot(r.astype(E.dtype), E, preferred_element_type=jnp.float32) / (4 * self.d_in)

    def _attend(self, own: Params, now: jax.Array) -> jax.Array:
        past = jnp.pad(now[:, :-1], ((0, 0), (1, 0), (0, 0)))

        def heads(name: str, source: jax.Array) -> jax.Array:
            y = jnp.dot(source, own[f"W_{name}"], preferred_element_type=jnp.float32) + own[f"b_{name}"][None, None]
            return y.reshape(*source.shape[:2], self.n_heads, -1)

        pattern = causal_pattern(heads("q", now), heads("k", past), math.sqrt(self.width // self.n_heads))
        mixed = jnp.einsum("nhqk,nkhd->nqhd", pattern, heads("v", past)).reshape(*now.shape)
        return jnp.dot(mixed, own["W_o"], preferred_element_type=jnp.float32) + own["b_o"][None, None]

    def pre(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx) -> Pre:
        atoms = D.atoms(p)
        r = self.split(p, x, atoms)[1]
        value = self._correlations(p, r, atoms)
        return Pre(value, value, r)


@register("readout.temporal")
@dataclass(frozen=True)
class TemporalReadout:
    """b_dec plus the decoded prediction of a `Temporal` encoder, so that decode(codes, like=x) is old plus new part."""

    encoder: Temporal
    axes = {"b_dec": "E"}

    def in_sequences(self, positions: int) -> "TemporalReadout":
        return replace(self, encoder=self.encoder.in_sequences(positions))

    def init(self, rows: Rows) -> Params:
        return {"b_dec": jnp.zeros(rows.y.shape[1])}

    def base(self, p: Params, x: jax.Array | None) -> jax.Array:
        """[B, E]; [1, E], the bias alone, without x."""
        if x is None:
            return p["b_dec"][None]
        predicted = self.encoder.split(p, x, p["W_dec"])[0].astype(p["W_dec"].dtype)
        return jnp.dot(predicted, p["W_dec"], preferred_element_type=jnp.float32) + p["b_dec"][None]


# ------------------------------------------------------------------------------------------------ Lorsa
@register("encoder.lorsa")
@dataclass(frozen=True)
class Lorsa:
    """pre_i[t] = sum_s A_h(i)[t, s] (x[s] . W_enc_i + b_enc_i): each latent a one-number attention head.

    A_h is the causal attention pattern of head h, shared by S / n_heads consecutive latents (low-rank sparse attention
    of OpenMOSS).  W_enc is their W_V, the dictionary their W_O.  With `rotary_dim` > 0 the first numbers of queries and
    keys are rotated by position, neighbours in pairs where `adjacent`, else halves; the tables of cosines and sines
    [context, rotary_dim] are fixed leaves, so that any scaling of the frequencies can be read.
    """

    d_in: int
    d_sae: int
    n_heads: int
    d_head: int
    attn_scale: float | None = None
    rotary_dim: int = 0
    rotary_base: float = 10_000.0
    adjacent: bool = False
    context: int = 2048
    positions: int = 1

    @property
    def axes(self) -> dict[str, str]:
        table = {"W_enc": "DS", "b_enc": "S", "W_q": "...", "b_q": "..", "W_k": "...", "b_k": ".."}
        return table | dict.fromkeys(self.fixed, "..")

    @property
    def fixed(self) -> tuple[str, ...]:
        return ("rotary_cos", "rotary_sin") if self.rotary_dim else ()

    def in_sequences(self, positions: int) -> "Lorsa":
        if self.rotary_dim and positions > self.context:
            raise ConfigError(f"this attention dictionary knows {self.context} positions, found {positions}")
        return replace(self, positions=positions)

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        keys = jax.random.split(key, 3)
        shape, zeros = (self.n_heads, self.d_in, self.d_head), jnp.zeros((self.n_heads, self.d_head))
        q, k = (jax.random.normal(key, shape) / math.sqrt(self.d_in) for key in keys[:2])
        W = unit(jax.random.normal(keys[2], (self.d_sae, self.d_in))).T
        leaves = {"W_enc": W, "b_enc": jnp.zeros(self.d_sae), "W_q": q, "b_q": zeros, "W_k": k, "b_k": zeros}
        return leaves | self._tables()

    def _tables(self) -> Params:
        if not self.rotary_dim:
            return {}
        rates = self.rotary_base ** (-jnp.arange(0, self.rotary_dim, 2, dtype=jnp.float32) / self.rotary_dim)
        angles = jnp.arange(self.context, dtype=jnp.float32)[:, None] * rates[None]
        angles = jnp.repeat(angles, 2, axis=1) if self.adjacent else jnp.concatenate([angles, angles], axis=1)
        return {"rotary_cos": jnp.cos(angles), "rotary_sin": jnp.sin(angles)}

    def pattern(self, p: Params, x: jax.Array) -> jax.Array:
        """Attention patterns [N, H, T, T] of sequences x [N, T, D]."""
        q, k = (self._rotated(p, self._project(p, x, name)) for name in ("q", "k"))
        return causal_pattern(q, k, self.attn_scale or math.sqrt(self.d_head))

    def _project(self, p: Params, x: jax.Array, name: str) -> jax.Array:
        y = jnp.einsum("ntd,hdk->nthk", x, p[f"W_{name}"], preferred_element_type=jnp.float32)
        return y + p[f"b_{name}"][None, None]

    def _rotated(self, p: Params, a: jax.Array) -> jax.Array:
        if not self.rotary_dim:
            return a
        cos, sin = (p[name][None, : a.shape[1], None] for name in self.fixed)
        turn, rest = a[..., : self.rotary_dim], a[..., self.rotary_dim :]
        half = self.rotary_dim // 2
        if self.adjacent:
            other = jnp.stack([-turn[..., 1::2], turn[..., ::2]], axis=-1).reshape(turn.shape)
        else:
            other = jnp.concatenate([-turn[..., half:], turn[..., :half]], axis=-1)
        return jnp.concatenate([turn * cos + other * sin, rest], axis=-1)

    def pre(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx) -> Pre:
        v = jnp.dot(x, p["W_enc"], preferred_element_type=jnp.float32) + p["b_enc"][None]
        pattern = self.pattern(p, x.reshape(-1, self.positions, self.d_in))
        grouped = v.reshape(-1, self.positions, self.n_heads, self.d_sae // self.n_heads)
        value = jnp.einsum("nhts,nshg->nthg", pattern, grouped).reshape(-1, self.d_sae)
        return Pre(value, value, x)
