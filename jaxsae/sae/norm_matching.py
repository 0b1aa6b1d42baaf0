"""The rule of top-AFA: as many latents as it takes for the code to be as long as the row."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.records import Ctx
from jaxsae.typing import Params


@register("rule.afa")
@dataclass(frozen=True)
class AfaRule:
    """The prefix of the ranked list whose length is nearest to that of the row (top-AFA, Lee et al. 2025, 2503.24277).

        s_1 >= s_2 >= ...   scores (relu(pre) ||d||)      C_i = sqrt(s_1^2 + ... + s_i^2)      t = ||x - b_pre||
        keep s_1 .. s_i*,   i* = argmin_i |C_i - t|   (the first of equals; at least one)

    For atoms that are nearly orthogonal a faithful code is about as long as its row, so no k is needed: L0 differs from
    row to row.  C never falls, so a list is long enough as soon as C reaches t in it, or its last score is not
    positive; both can be seen, and nothing else is certified.  As in the authors' code the whole dictionary is never
    kept.
    """

    may_miss = True
    per_row = True
    reads = ()
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    def review(self, recipe: Any) -> tuple[str, ...]:
        """Lengths must be in one unit: a dataset norm folds into the atoms, so the score must carry their norms."""
        selector = getattr(recipe.encoder, "selector", None)
        if recipe.norm.foldable and recipe.norm.axes and not getattr(selector, "by_norm", True):
            raise ConfigError(
                f"recipe {recipe.name!r}: norm matching compares ||code|| with ||x||, and folding the dataset norm "
                "rescales x and the atoms but not the codes; rank by_norm=True, or use another norm"
            )
        return ()

    def init(self, key: jax.Array) -> Params:
        return {}

    def keep(self, p: Params, score: jax.Array, x: jax.Array, ctx: Ctx, full: bool):
        """Mask of kept entries; arguments as `RowRule.keep`."""
        length = jax.lax.stop_gradient(jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True))
        reach = jnp.sqrt(jnp.cumsum(jax.nn.relu(score) ** 2, axis=1))
        # C_i is nearer to t than C_{i-1} iff both are below 2 t in sum.  Asked in this way, scores too small to change
        # C in f32 are kept while C is below t, and rounding has no say in it.
        before = jnp.pad(reach[:, :-1], ((0, 0), (1, 0)))
        keep = (score > 0) & (before + reach < 2 * length)
        if full:
            keep = keep.at[:, -1].set(False)
        keep = keep.at[:, 0].set(True)
        certain = (reach[:, -1:] >= length) | (score[:, -1:] <= 0) | (ctx.rows.mask[:, None] == 0)
        return keep, True if full else jnp.all(certain)
