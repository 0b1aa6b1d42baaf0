"""Dictionaries: the atoms that codes weigh, and what keeps them in shape."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.codes import Codes
from jaxsae.sae.geometry import remove_parallel, row_norms, unit
from jaxsae.sae.records import Rows
from jaxsae.sae.slots import Dictionary
from jaxsae.typing import Params


def decode_rows(D: Dictionary, p: Params, codes: Codes, x: jax.Array | None) -> jax.Array:
    """The decoded codes [B, E] of any dictionary, also of one whose atoms depend on the row.

    Args:
        D: the dictionary.
        p: leaves.
        codes: of B rows.
        x: [B, D] rows as the encoder saw them; only a dictionary with `decode_with` reads them.

    Raises:
        ConfigError: such a dictionary, without rows.
    """
    if not hasattr(D, "decode_with"):
        return D.decode(p, codes)
    if x is None:
        raise ConfigError(f"the atoms of {type(D).__name__} depend on the input; decode(codes, like=x) needs x")
    return D.decode_with(p, codes, x)


@register("dictionary.free")
@dataclass(frozen=True)
class Free:
    """W_dec [S, E] without a constraint; initial rows are random directions of norm `init_norm`."""

    d_sae: int
    d_out: int
    init_norm: float = 0.1
    axes = {"W_dec": "SE"}
    fixed = ()
    unit_rows = ()

    def init(self, key: jax.Array, rows: Rows, p: Params) -> Params:
        return {"W_dec": unit(jax.random.normal(key, (self.d_sae, self.d_out))) * self.init_norm}

    def atoms(self, p: Params) -> jax.Array:
        return p["W_dec"]

    def decode(self, p: Params, codes: Codes) -> jax.Array:
        return codes.decode(self.atoms(p))

    def norms(self, p: Params) -> jax.Array:
        return row_norms(self.atoms(p).astype(jnp.float32))[:, 0]

    def tangent(self, p: Params, grads: Params) -> Params:
        return grads

    def project(self, p: Params) -> Params:
        return p


@register("dictionary.unit")
@dataclass(frozen=True)
class Unit:
    """W_dec [S, E] with rows of norm 1.

    Before the optimiser the gradient loses its component along each atom; after the step rows are renormalised,
    because Adam's per-coordinate scaling brings a parallel part back (Bricken et al. 2023; Gao et al. 2024).
    """

    d_sae: int
    d_out: int
    axes = {"W_dec": "SE"}
    fixed = ()
    unit_rows = ("W_dec",)
    unit_norm = True

    def init(self, key: jax.Array, rows: Rows, p: Params) -> Params:
        return {"W_dec": unit(jax.random.normal(key, (self.d_sae, self.d_out)))}

    def atoms(self, p: Params) -> jax.Array:
        return p["W_dec"]

    def decode(self, p: Params, codes: Codes) -> jax.Array:
        return codes.decode(self.atoms(p))

    def norms(self, p: Params) -> jax.Array:
        return row_norms(self.atoms(p).astype(jnp.float32))[:, 0]

    def tangent(self, p: Params, grads: Params) -> Params:
        return {**grads, "W_dec": remove_parallel(grads["W_dec"], p["W_dec"])}

    def project(self, p: Params) -> Params:
        return {**p, "W_dec": unit(p["W_dec"])}


@register("dictionary.normalised")
@dataclass(frozen=True)
class Normalised:
    """Atoms d_j = W_dec_j / ||W_dec_j||, divided inside the forward pass (end-to-end SAEs, Braun et al. 2024).

    W_dec [S, E] itself is free: its length takes no part in the loss, so no gradient is removed and nothing is
    projected.  Exported atoms are the d_j, which is exact: codes already count unit atoms.
    """

    d_sae: int
    d_out: int
    axes = {"W_dec": "SE"}
    fixed = ()
    unit_rows = ()
    unit_norm = True

    def init(self, key: jax.Array, rows: Rows, p: Params) -> Params:
        return {"W_dec": unit(jax.random.normal(key, (self.d_sae, self.d_out)))}

    def atoms(self, p: Params) -> jax.Array:
        return unit(p["W_dec"].astype(jnp.float32)).astype(p["W_dec"].dtype)

    def decode(self, p: Params, codes: Codes) -> jax.Array:
        return codes.decode(self.atoms(p))

    def norms(self, p: Params) -> jax.Array:
        return row_norms(self.atoms(p).astype(jnp.float32))[:, 0]

    def tangent(self, p: Params, grads: Params) -> Params:
        return grads

    def project(self, p: Params) -> Params:
        return p


@register("dictionary.tied")
@dataclass(frozen=True)
class Tied:
    """One matrix for both ways: this member owns W_enc [D, S] and its atoms are W_enc.T (Cunningham et al. 2023).

    Goes with the encoder `TiedAffine`, which owns the latent bias alone; input and output have one width, D = E.
    With `unit_norm` columns keep norm 1, as the rows of `Unit` do: the gradient loses its part along each, and columns
    are renormalised after the step.
    """

    d_sae: int
    d_out: int
    unit_norm: bool = True
    axes = {"W_enc": "DS"}
    fixed = ()

    def init(self, key: jax.Array, rows: Rows, p: Params) -> Params:
        return {"W_enc": unit(jax.random.normal(key, (self.d_sae, self.d_out))).T}

    def atoms(self, p: Params) -> jax.Array:
        return p["W_enc"].T

    def decode(self, p: Params, codes: Codes) -> jax.Array:
        return codes.decode(self.atoms(p))

    def norms(self, p: Params) -> jax.Array:
        return row_norms(self.atoms(p).astype(jnp.float32))[:, 0]

    def tangent(self, p: Params, grads: Params) -> Params:
        if not self.unit_norm:
            return grads
        return {**grads, "W_enc": remove_parallel(grads["W_enc"].T, p["W_enc"].T).T}

    def project(self, p: Params) -> Params:
        return {**p, "W_enc": unit(p["W_enc"].T).T} if self.unit_norm else p


def decodes_atoms(D: Dictionary) -> bool:
    """Whether decoding is `codes.decode(atoms)` and nothing else, so that an op may read the atoms itself."""
    return type(D).decode in (Free.decode, Unit.decode, Normalised.decode, Tied.decode)
