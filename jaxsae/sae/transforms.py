"""Dictionaries whose atoms are linear maps of the row: mixtures of linear transforms."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.codes import Codes
from jaxsae.sae.geometry import unit
from jaxsae.sae.records import Rows
from jaxsae.typing import Params


@register("dictionary.transforms")
@dataclass(frozen=True)
class Transforms:
    """y = sum_i codes_i x U_i V_i, where latent i owns a matrix of low rank (MOLT, Kamath et al. 2025).

    `ranks` lists (rank, count) in the order of the latents; leaves `U_r` [count, D, r] and `V_r` [count, r, E].  The
    norm of a latent is the Frobenius norm of its matrix.
    """

    d_in: int
    d_out: int
    ranks: tuple[tuple[int, int], ...]
    ordered = True
    fixed = ()

    @property
    def d_sae(self) -> int:
        return sum(count for _, count in self.ranks)

    @property
    def axes(self) -> dict[str, str]:
        return {f"{side}_{rank}": "..." for rank, _ in self.ranks for side in "UV"}

    def init(self, key: jax.Array, rows: Rows, p: Params) -> Params:
        leaves = {}
        for rank, count in self.ranks:
            first, second = jax.random.split(jax.random.fold_in(key, rank))
            leaves[f"U_{rank}"] = jnp.swapaxes(unit(jax.random.normal(first, (count, rank, self.d_in))), 1, 2)
            leaves[f"V_{rank}"] = unit(jax.random.normal(second, (count, rank, self.d_out))) / rank
        return leaves

    def atoms(self, p: Params) -> jax.Array:
        raise ConfigError("the atoms of a mixture of linear transforms depend on the row; there is no matrix of them")

    def decode(self, p: Params, codes: Codes) -> jax.Array:
        raise ConfigError("a mixture of linear transforms decodes with its input: decode(codes, like=x)")

    def decode_with(self, p: Params, codes: Codes, x: jax.Array) -> jax.Array:
        """[B, E] from codes of B rows and the rows x [B, D] themselves."""
        values, y, at = codes.dense(), jnp.zeros((len(x), self.d_out)), 0
        for rank, count in self.ranks:
            U, V = p[f"U_{rank}"], p[f"V_{rank}"]
            inner = jnp.einsum("bd,cdr->bcr", x.astype(U.dtype), U, preferred_element_type=jnp.float32)
            inner = (inner * values[:, at : at + count, None]).astype(V.dtype)
            y, at = y + jnp.einsum("bcr,cre->be", inner, V, preferred_element_type=jnp.float32), at + count
        return y

    def norms(self, p: Params) -> jax.Array:
        found = []
        for rank, _ in self.ranks:
            U, V = (p[f"{side}_{rank}"].astype(jnp.float32) for side in "UV")
            left = jnp.einsum("cdr,cds->crs", U, U)
            found.append(jnp.sqrt(jnp.einsum("crs,cre,cse->c", left, V, V)))
        return jnp.concatenate(found)

    def tangent(self, p: Params, grads: Params) -> Params:
        return grads

    def project(self, p: Params) -> Params:
        return p
