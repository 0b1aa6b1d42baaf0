"""Levels: squared errors of the nested reconstructions that a loss may weigh.  The plain coder has one.

A member's `weights` are what the reconstruction terms give its levels; () stands for the mean.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxsae import kernels
from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.codes import SparseCodes
from jaxsae.sae.dictionaries import decode_rows, decodes_atoms
from jaxsae.sae.records import Ctx, Out


@register("levels.one")
@dataclass(frozen=True)
class One:
    """The plain case: the full reconstruction only.

    Sparse codes over one matrix of atoms go through `kernels.decode_residual_sddmm`, which may fetch the rows of atoms
    once for the residual and for the gradient of the codes.
    """

    ranks = 0
    weights: ClassVar[tuple[float, ...]] = ()
    ordered = False

    def read(self, out: Out, e0: jax.Array, ctx: Ctx) -> tuple[jax.Array, jax.Array]:
        """Squared errors and residual.

        Args:
            out: what is known so far (rows, leaves, selection, dictionary).
            e0: [B, E] residual before any latent is used, y - readout.
            ctx: step context.

        Returns:
            level_sse [B, 1] (sum over E) and err [B, E], the residual of the main reconstruction.
        """
        codes: Any = out.sel.codes
        if reads_atoms(out):
            sse, err = kernels.decode_residual_sddmm(codes.values, codes.indices, out.D.atoms(out.p), e0)
            return sse[:, None], err
        err = e0 - decode_rows(out.D, out.p, out.sel.codes, out.rows.x)
        return jnp.sum(err**2, axis=-1, keepdims=True), err

    def read_both(self, out: Out, e0: jax.Array, live: jax.Array) -> tuple[jax.Array, ...]:
        """As `read`, and the decoded codes of dead latents [B, E]: the gradient of the atoms is then one sum.

        Only where `reads_atoms(out)` and the selection has such codes; `live` says whether any latent is dead.
        """
        codes: Any = out.sel.codes
        aux: Any = out.sel.aux
        second = aux.values, aux.indices, live
        W = out.D.atoms(out.p)
        sse, err, rows = kernels.decode_residual_sddmm(codes.values, codes.indices, W, e0, second)
        return sse[:, None], err, rows


def reads_atoms(out: Out) -> bool:
    """Whether the codes are sparse and decoded with one matrix of atoms and nothing else."""
    return isinstance(out.sel.codes, SparseCodes) and decodes_atoms(out.D)


def average(levels: Any, level_sse: jax.Array) -> jax.Array:
    """sum_r w_r sse_r / sum_r w_r over the levels [B, R] -> [B], or the mean where the member has no weights.

    With `summed` the weights are used as they are (L(k) + L(4k)/8 of multi-TopK).
    """
    weights = getattr(levels, "weights", ())
    if not weights:
        return jnp.mean(level_sse, axis=1)
    w = jnp.asarray(weights, jnp.float32)
    return jnp.dot(level_sse, w if getattr(levels, "summed", False) else w / jnp.sum(w))


def check_nested(name: str, bounds: tuple[int, ...], most: int, what: str, weights: tuple[float, ...]) -> None:
    """Refuses bounds that do not increase from at least 1 to at most `most`, and weights that do not match them."""
    if not bounds or any(a >= b for a, b in zip((0, *bounds), bounds, strict=False)):
        raise ConfigError(f"{name}: {what} must increase from at least 1, found {bounds}")
    if bounds[-1] > most:
        raise ConfigError(f"{name}: {what} must not exceed {most}, found {bounds[-1]}")
    check_weights(name, len(bounds), weights)


def check_weights(name: str, levels: int, weights: tuple[float, ...]) -> None:
    """Refuses level weights of another number than the levels, negative ones, and those that sum to 0."""
    if weights and (len(weights) != levels or min(weights) < 0 or sum(weights) <= 0):
        raise ConfigError(f"{name}: {levels} levels need as many weights >= 0, not all 0, found {weights}")


def check_one_matrix(name: str, dictionary: Any) -> None:
    """Refuses dictionaries whose reconstruction is not a plain sum of rows of one matrix of atoms."""
    if hasattr(dictionary, "decode_with") or getattr(dictionary, "ordered", False):
        raise ConfigError(
            f"{name}: nested reconstructions are partial sums over the rows of one matrix of atoms, which "
            f"{type(dictionary).__name__} does not have; use levels One"
        )
