"""Rules: which entries of a ranked candidate list are kept.  `Rank` does the rest for all of them.

A rule sees scores sorted in descending order.  One that cannot tell from a short list whether it kept everything sets
`may_miss` and certifies each answer; when the certificate fails, the step is recomputed with the full list.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from jaxsae import kernels
from jaxsae.config import register
from jaxsae.sae.records import Ctx
from jaxsae.typing import Params


class Rule(Protocol):
    """See the module docstring.  `per_row`: every row is judged by itself, so the rank form is an inference form."""

    @property
    def may_miss(self) -> bool: ...
    @property
    def per_row(self) -> bool: ...
    @property
    def axes(self) -> dict[str, str]: ...
    @property
    def fixed(self) -> tuple[str, ...]: ...

    def init(self, key: jax.Array) -> Params: ...
    def keep(
        self, p: Params, score: jax.Array, x: jax.Array, ctx: Ctx, full: bool
    ) -> tuple[jax.Array, jax.Array | bool]: ...


@register("rule.row")
@dataclass(frozen=True)
class RowRule:
    """The first k of each row (TopK, Gao et al. 2024).  k is `hyper["k"]`, [] or [B], up to the capacity."""

    may_miss = False
    per_row = True
    reads = ("k",)
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    def init(self, key: jax.Array) -> Params:
        return {}

    def keep(self, p: Params, score: jax.Array, x: jax.Array, ctx: Ctx, full: bool):
        """Mask of kept entries.

        Args:
            p: leaves.
            score: [B, C] sorted, descending.
            x: [B, D] centred input.
            ctx: step context.
            full: the list holds every latent.

        Returns:
            keep [B, C] bool and whether that is certainly what the full list would give.
        """
        k = jnp.round(jnp.reshape(jnp.asarray(ctx.hyper["k"]), (-1, 1)))  # a schedule may pass through fractions
        return jnp.arange(score.shape[1])[None] < k, True


@register("rule.batch")
@dataclass(frozen=True)
class BatchRule:
    """The k * rows best of the whole batch (BatchTopK, Bussmann et al. 2024).  k is `hyper["k"]` [], fractions allowed.

    A row may keep more than the list holds: the answer is certain only if every row's last candidate was dropped, or
    the list was full.  Ties go to the lower row, then to the better rank.
    """

    may_miss = True
    per_row = False
    reads = ("k",)
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    def init(self, key: jax.Array) -> Params:
        return {}

    def keep(self, p: Params, score: jax.Array, x: jax.Array, ctx: Ctx, full: bool):
        """Mask of kept entries; arguments as `RowRule.keep`."""
        keep = self._best(score, ctx, latents=False)
        return keep, True if full else ~jnp.any(keep[:, -1])

    def keep_unranked(self, score: jax.Array, ctx: Ctx) -> jax.Array:
        """The same entries from scores [B, S] of all latents in their own order: nothing has to be sorted."""
        return self._best(score, ctx, latents=True)

    def _best(self, score: jax.Array, ctx: Ctx, latents: bool) -> jax.Array:
        mask = ctx.rows.mask
        total = entries(ctx.hyper["k"], mask)
        return kernels.keep_best(jnp.where(mask[:, None] > 0, score, -jnp.inf), total, latents=latents) & (score > 0)


def entries(k: jax.Array, mask: jax.Array) -> jax.Array:
    """floor(k * rows that count), [] int32: whole numbers are counted in int32, as f32 skips some above 2**24.

    The fraction of k is known to half a unit in its last place; a product that falls short of a whole number by no more
    than that counts as this number.
    """
    k, rows = jnp.asarray(k, jnp.float32), jnp.sum(mask > 0, dtype=jnp.int32)
    whole = jnp.floor(k)
    rest, n = k - whole, rows.astype(jnp.float32)
    slack = jnp.where(rest > 0, jnp.minimum(k * n * 2.0**-24, 0.25), 0.0)
    return whole.astype(jnp.int32) * rows + jnp.floor(rest * n + slack).astype(jnp.int32)
