"""Levels: squared errors of the nested reconstructions that a loss may weigh.  The plain coder has one."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.sae.dictionaries import decode_rows
from jaxsae.sae.records import Ctx, Out


@register("levels.one")
@dataclass(frozen=True)
class One:
    """The plain case: the full reconstruction only."""

    ranks = 0

    def read(self, out: Out, e0: jax.Array, ctx: Ctx) -> tuple[jax.Array, jax.Array]:
        """Squared errors and residual.

        Args:
            out: what is known so far (rows, leaves, selection, dictionary).
            e0: [B, E] residual before any latent is used, y - readout.
            ctx: step context.

        Returns:
            level_sse [B, 1] (sum over E) and err [B, E], the residual of the main reconstruction.
        """
        err = e0 - decode_rows(out.D, out.p, out.sel.codes, out.rows.x)
        return jnp.sum(err**2, axis=-1, keepdims=True), err
