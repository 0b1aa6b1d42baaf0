"""Feature choice: every latent chooses its rows, where TopK lets every row choose its latents."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxsae import kernels
from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.codes import DenseCodes
from jaxsae.sae.density import density_value, rank_of, zipf_curve
from jaxsae.sae.records import Ctx, Pre, Selection, Want
from jaxsae.sae.selectors import Threshold, dead_candidates
from jaxsae.sae.slots import Dictionary
from jaxsae.sae.trackers import threshold_value
from jaxsae.typing import Params, PyTree


@register("selector.column")
@dataclass(frozen=True)
class Column:
    """Latent j keeps its m_j best rows of the batch (Feature Choice, Ayonrinde 2024, 2411.02124).

        sum_j m_j = k B      m_j = k B / S, or with `zipf`  m_j = k B / (rank_j + q)^s / sum_r 1 / (r + q)^s

    k is `hyper["k"]`: [] is the mean L0; [S] gives latent j the share k_j / sum k, and mean(k) is the mean L0.  q and s
    are `hyper["zipf_q"]` and `hyper["zipf_s"]`; rank_j is the place of latent j by running density (tracker `density`,
    as known before this batch).  An m_j that is no whole number is rounded so that sums over ranks never drift: with
    one draw u per step, m at rank r is floor(C_r + u) - floor(C_{r-1} + u), C being the cumulated curve.  So latents
    with m_j < 1 get a row in some batches, and the total is k B in each, where it does not exceed B for one latent.

    The choice runs over the whole batch, whatever its layout, and only positive scores are kept.  Rows with mask 0 are
    never chosen.  Codes are dense: a column may put everything into one row, so no list per row can be certified.
    Inference: one threshold per latent, the tracked average of its smallest kept score
    (`EmaThreshold(per_latent=True)`).

    Args:
        cap: largest k; sets how many rows are ranked per latent.
        zipf: unequal shares by the rank of density; needs the tracker `Density`.
        signed: rank by magnitude, keep signs.
        by_norm: multiply scores by the norm of the atom.
    """

    cap: int
    zipf: bool = False
    signed: bool = False
    by_norm: bool = False
    may_miss = False
    forms = ("threshold",)
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    @property
    def reads(self) -> tuple[str, ...]:
        return ("k", "zipf_q", "zipf_s") if self.zipf else ("k",)

    @property
    def tracks(self) -> tuple[str, ...]:
        return ("threshold", "density") if self.zipf else ("threshold",)

    def review(self, recipe: Any) -> tuple[str, ...]:
        """Refuses one threshold for all: latents that choose their rows fire at heights of their own."""
        if not any(t.name == "threshold" and getattr(t, "per_latent", False) for t in recipe.trackers):
            raise ConfigError(
                f"recipe {recipe.name!r}: feature choice infers by one threshold per latent; use "
                "EmaThreshold(per_latent=True)"
            )
        return ()

    def init(self, key: jax.Array, d_sae: int) -> Params:
        return {}

    def select(self, p: Params, pre: Pre, D: Dictionary, ctx: Ctx, want: Want) -> Selection:
        score = jax.lax.stop_gradient(jnp.abs(pre.score) if self.signed else pre.score)
        score = score * jax.lax.stop_gradient(D.norms(p))[None] if self.by_norm else score
        if ctx.train:
            keep, kept_min = self._choose(score, ctx)
        else:
            keep, kept_min = score > threshold_value(ctx.track["threshold"])[None], None
        values = jnp.where(keep, pre.value if self.signed else jax.nn.relu(pre.value), 0.0)
        aux = dead_candidates(Pre(score, pre.value, pre.x), ctx, want, self.signed)
        return Selection(DenseCodes(values), kept_min=kept_min, aux=aux, pre=pre if want.pre else None)

    def _choose(self, score: jax.Array, ctx: Ctx) -> tuple[jax.Array, jax.Array]:
        """keep [B, S] bool and the smallest kept score per latent, [S], NaN where nothing was."""
        rows, d_sae = score.shape
        m = self.rows_per_latent(ctx, d_sae)
        equal = not self.zipf and jnp.ndim(ctx.hyper["k"]) == 0
        length = min(rows, -(-self.cap * rows // d_sae) + 1) if equal else rows
        counted = jnp.where(ctx.rows.mask[:, None] > 0, score, -jnp.inf)
        keep = kernels.keep_best_of_columns(counted, m, length) & (counted > 0)
        lowest = jnp.min(jnp.where(keep, score, jnp.inf), axis=0)
        return keep, jnp.where(jnp.isfinite(lowest), lowest, jnp.nan)

    def rows_per_latent(self, ctx: Ctx, d_sae: int) -> jax.Array:
        """m_j of this batch: [S] int32."""
        k, rows = ctx.hyper["k"], jnp.sum(ctx.rows.mask)
        rank = rank_of(density_value(ctx.track["density"])) if self.zipf else jnp.arange(d_sae)
        if self.zipf:
            curve = k * d_sae * zipf_curve(d_sae, ctx.hyper["zipf_q"], ctx.hyper["zipf_s"])
        else:
            curve = jnp.broadcast_to(k, (d_sae,)).astype(jnp.float32)
        reached = jnp.cumsum(jnp.minimum(curve / d_sae, 1.0) * rows) + jax.random.uniform(ctx.rng("column"))
        whole = jnp.floor(reached).astype(jnp.int32)
        return jnp.diff(whole, prepend=0)[rank]

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple[Threshold, Params]:
        """A threshold per latent; +inf for a latent that never kept a row."""
        theta = threshold_value(track["threshold"])
        norms = D.norms(p) if self.by_norm else jnp.ones(D.d_sae)
        return Threshold(self.signed), {"threshold": theta / norms}
