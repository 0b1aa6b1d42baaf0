"""Coders of several sites at once: per-site encoders, dictionaries and selections.

A row is the concatenation of L sites, [B, L * width].  Latents of separate sites occupy separate, consecutive ranges
of equal size, so S is L times the latents of one site and latent order is structural (`ordered`).
A crosscoder whose latents are shared needs none of this: an affine encoder over the concatenation is one.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.codes import Codes, DenseCodes, SparseCodes
from jaxsae.sae.geometry import row_norms, unit
from jaxsae.sae.records import Ctx, Pre, Rows, Selection, Want
from jaxsae.sae.slots import Dictionary, Selector
from jaxsae.typing import Params, PyTree


def _product(x: jax.Array, W: jax.Array) -> jax.Array:
    return jnp.dot(x, W, preferred_element_type=jnp.float32)


@register("encoder.per_site")
@dataclass(frozen=True)
class PerSite:
    """pre_l = x_l W_enc_l + b_enc_l for each of L sites: the encoders of a cross-layer transcoder."""

    d_in: int
    d_sae: int
    sites: int
    ordered = True
    axes = {"W_enc": "...", "b_enc": ".."}

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        shape = (self.sites, self.d_sae // self.sites, self.d_in // self.sites)
        W = unit(jax.random.normal(key, shape))
        return {"W_enc": jnp.swapaxes(W, 1, 2), "b_enc": jnp.zeros(shape[:2])}

    def pre(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx) -> Pre:
        stacked = x.reshape(len(x), self.sites, self.d_in // self.sites)
        value = jnp.einsum("bld,ldf->blf", stacked, p["W_enc"], preferred_element_type=jnp.float32)
        value = (value + p["b_enc"][None]).reshape(len(x), self.d_sae)
        return Pre(value, value, x)


@register("encoder.shared_sites")
@dataclass(frozen=True)
class SharedSites:
    """One affine map of the concatenated sites, its pre-activations repeated for every site.

    For crosscoders that select per site: latent (l, i) has the pre-activation of feature i everywhere, but each site
    judges it by its own norm or threshold.  W_enc [D, S / L].
    """

    d_in: int
    d_sae: int
    sites: int
    ordered = True
    axes = {"W_enc": "D.", "b_enc": "."}

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        features = self.d_sae // self.sites
        return {"W_enc": unit(jax.random.normal(key, (features, self.d_in))).T, "b_enc": jnp.zeros(features)}

    def pre(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx) -> Pre:
        value = jnp.tile(_product(x, p["W_enc"]) + p["b_enc"][None], (1, self.sites))
        return Pre(value, value, x)


@register("dictionary.stacked")
@dataclass(frozen=True)
class Stacked:
    """Latents shared by L sites: W_dec [S, L * E/L], each atom the concatenation of what it writes to every site.

    `norms` is sum_weight * (sum over sites of the site's norm) + whole_weight * (norm of the whole atom), 1 if both are
    0.  Crosscoders are charged by the sum (Lindsey et al. 2024); the norm of the whole treats them as one wide SAE.
    """

    d_sae: int
    d_out: int
    sites: int
    sum_weight: float = 1.0
    whole_weight: float = 0.0
    init_norm: float = 0.1
    axes = {"W_dec": "SE"}
    fixed = ()

    def init(self, key: jax.Array, rows: Rows, p: Params) -> Params:
        draw = unit(jax.random.normal(key, (self.d_sae, self.sites, self.d_out // self.sites)))
        return {"W_dec": draw.reshape(self.d_sae, self.d_out) * self.init_norm}

    def atoms(self, p: Params) -> jax.Array:
        return p["W_dec"]

    def decode(self, p: Params, codes: Codes) -> jax.Array:
        return codes.decode(self.atoms(p))

    def norms(self, p: Params) -> jax.Array:
        if self.sum_weight == self.whole_weight == 0:
            return jnp.ones(self.d_sae)
        W = p["W_dec"].astype(jnp.float32)
        each = row_norms(W.reshape(self.d_sae, self.sites, -1))[:, :, 0].sum(1)
        return self.sum_weight * each + self.whole_weight * row_norms(W)[:, 0]

    def tangent(self, p: Params, grads: Params) -> Params:
        return grads

    def project(self, p: Params) -> Params:
        return p


@register("readout.per_site_skip")
@dataclass(frozen=True)
class PerSiteSkip:
    """b_dec plus x_l W_skip_l for each of L sites: W_skip [L, D / L, E / L]."""

    d_in: int
    d_out: int
    sites: int
    axes = {"b_dec": "E", "W_skip": "..."}

    def init(self, rows: Rows) -> Params:
        shape = (self.sites, self.d_in // self.sites, self.d_out // self.sites)
        return {"b_dec": jnp.zeros(self.d_out), "W_skip": jnp.zeros(shape)}

    def base(self, p: Params, x: jax.Array | None) -> jax.Array:
        """[B, E]; [1, E], the bias alone, without x."""
        if x is None:
            return p["b_dec"][None]
        W = p["W_skip"]
        stacked = x.reshape(len(x), self.sites, -1).astype(W.dtype)
        y = jnp.einsum("bld,lde->ble", stacked, W, preferred_element_type=jnp.float32)
        return y.reshape(len(x), self.d_out) + p["b_dec"][None]


@register("dictionary.per_site")
@dataclass(frozen=True)
class Blocks:
    """Latents of site l write to site l only: W_dec [L, S / L, E / L], a block-diagonal matrix of atoms."""

    d_sae: int
    d_out: int
    sites: int
    init_norm: float = 0.1
    ordered = True
    axes = {"W_dec": "..."}
    fixed = ()

    def init(self, key: jax.Array, rows: Rows, p: Params) -> Params:
        shape = (self.sites, self.d_sae // self.sites, self.d_out // self.sites)
        return {"W_dec": unit(jax.random.normal(key, shape)) * self.init_norm}

    def atoms(self, p: Params) -> jax.Array:
        """[S, E], padded with zeros; for looking at, not for computing."""
        W = p["W_dec"]
        full = jnp.zeros((self.sites, W.shape[1], self.sites, W.shape[2]), W.dtype)
        sites = jnp.arange(self.sites)
        return full.at[sites, :, sites].set(W).reshape(self.d_sae, self.d_out)

    def decode(self, p: Params, codes: Codes) -> jax.Array:
        values = codes.dense().astype(p["W_dec"].dtype)
        stacked = values.reshape(len(values), self.sites, -1)
        y = jnp.einsum("blf,lfe->ble", stacked, p["W_dec"], preferred_element_type=jnp.float32)
        return y.reshape(len(values), self.d_out)

    def norms(self, p: Params) -> jax.Array:
        return row_norms(p["W_dec"].astype(jnp.float32)).reshape(self.d_sae)

    def tangent(self, p: Params, grads: Params) -> Params:
        return grads

    def project(self, p: Params) -> Params:
        return p


@register("dictionary.triangular")
@dataclass(frozen=True)
class Triangular:
    """Latents of site i write to site i and every later one: y_j = sum_{i <= j} codes_i W_dec_i[:, j - i].

    The decoders of a cross-layer transcoder (Ameisen et al. 2025), kept ragged: `W_dec_i` [S / L, L - i, E / L], half
    the memory of padded atoms.
    """

    d_sae: int
    d_out: int
    sites: int
    init_norm: float = 0.1
    ordered = True
    fixed = ()

    @property
    def axes(self) -> dict[str, str]:
        return {f"W_dec_{i}": "..." for i in range(self.sites)}

    def _sizes(self) -> tuple[int, int]:
        return self.d_sae // self.sites, self.d_out // self.sites

    def init(self, key: jax.Array, rows: Rows, p: Params) -> Params:
        features, width = self._sizes()
        leaves = {}
        for i in range(self.sites):
            draw = jax.random.normal(jax.random.fold_in(key, i), (features, self.sites - i, width))
            leaves[f"W_dec_{i}"] = unit(draw) * self.init_norm / math.sqrt(self.sites - i)
        return leaves

    def atoms(self, p: Params) -> jax.Array:
        """[S, E], padded with zeros; for looking at, not for computing."""
        ragged = [jnp.pad(p[f"W_dec_{i}"], ((0, 0), (i, 0), (0, 0))) for i in range(self.sites)]
        return jnp.concatenate(ragged).reshape(self.d_sae, self.d_out)

    def decode(self, p: Params, codes: Codes) -> jax.Array:
        values, (features, width) = codes.dense(), self._sizes()
        y = jnp.zeros((len(values), self.sites, width))
        for i in range(self.sites):
            W = p[f"W_dec_{i}"]
            own = values[:, i * features : (i + 1) * features].astype(W.dtype)
            y = y.at[:, i:].add(_product(own, W.reshape(features, -1)).reshape(len(values), -1, width))
        return y.reshape(len(values), self.d_out)

    def norms(self, p: Params) -> jax.Array:
        """Norm of everything a latent writes, over all its target sites: [S]."""
        features = self._sizes()[0]
        flat = [p[f"W_dec_{i}"].astype(jnp.float32).reshape(features, -1) for i in range(self.sites)]
        return jnp.concatenate([row_norms(W)[:, 0] for W in flat])

    def tangent(self, p: Params, grads: Params) -> Params:
        return grads

    def project(self, p: Params) -> Params:
        return p


@register("selector.by_site")
@dataclass(frozen=True)
class BySite:
    """The latents of each site are selected by themselves: L rankings of S / L candidates in every row.

    With `by_norm` the scores are multiplied by the norms of the atoms before the inner selector sees them.
    """

    inner: Selector
    sites: int
    by_norm: bool = False
    ordered = True

    @property
    def axes(self) -> dict[str, str]:
        return dict(self.inner.axes)

    @property
    def fixed(self) -> tuple[str, ...]:
        return self.inner.fixed

    @property
    def may_miss(self) -> bool:
        return self.inner.may_miss

    @property
    def forms(self) -> tuple[str, ...]:
        return self.inner.forms[:1]

    def init(self, key: jax.Array, d_sae: int) -> Params:
        return self.inner.init(key, d_sae // self.sites)

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        if want.k_aux:
            raise ConfigError("BySite has no selection among dead latents; leave the AuxK term out")
        rows, d_sae = pre.score.shape
        score = pre.score * jax.lax.stop_gradient(D.norms(p))[None] if self.by_norm else pre.score
        split = lambda a: a.reshape(rows * self.sites, -1)  # noqa: E731
        x = jnp.repeat(pre.x, self.sites, axis=0)
        mask = jnp.repeat(ctx.rows.mask, self.sites)
        inner = ctx.with_rows(ctx.rows._replace(mask=mask))
        found = self.inner.select(p, Pre(split(score), split(pre.value), x), D, inner, want._replace(pre=False))
        codes = _joined(found.codes, rows, self.sites, d_sae)
        return Selection(codes, found.exact, found.kept_min, pre=pre if want.pre else None)

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple[Any, Params]:
        inner, leaves = self.inner.frozen(p, track, hyper, D, form)
        return BySite(inner, self.sites, self.by_norm), leaves


def _joined(codes: Codes, rows: int, sites: int, d_sae: int) -> Codes:
    """Codes of rows * sites short rows as codes of whole rows."""
    if isinstance(codes, DenseCodes):
        return DenseCodes(codes.values.reshape(rows, d_sae))
    first = jnp.arange(sites, dtype=jnp.int32) * (d_sae // sites)
    index = codes.indices.reshape(rows, sites, -1) + first[None, :, None]
    return SparseCodes(codes.values.reshape(rows, -1), index.reshape(rows, -1), d_sae)
