"""p-annealing: the exponent of a p-norm penalty falls in steps while the penalty keeps its size."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.objective.penalties import p_sum, penalised
from jaxsae.objective.reducers import Mean
from jaxsae.sae.records import Ctx, Out
from jaxsae.typing import PyTree

#: What one mean of the penalty may be divided by.
TINY = 1e-12


@register("tracker.p_anneal")
@dataclass(frozen=True)
class PAnneal:
    """The exponent p of `PNorm` and the factor that keeps its scale (Karvonen et al. 2024, 2408.00113).

    p is `p_start` up to step `first`; then it takes `updates` values, equally spaced from p_start to p_end, at equally
    spaced steps from `first` to `last`; a run of `last` steps ends before the last of them, so p_end is approached and
    not reached.  At each change

        factor <- factor mean(penalty at the old p) / mean(penalty at the new p)

    over the last `queue` steps, all measured before the change.  As in the trainer of dictionary_learning, which takes
    both penalties at every step.  Nothing changes shape and nothing is compiled again.

    Args:
        first: step of the first value.
        last: length of the run; up to `first` (0, say) p stays at p_start.
        p_start: exponent before annealing.
        p_end: exponent that is approached.
        updates: number of values, at least 2.
        queue: steps over which the two penalties are compared.
        root: the penalty is the p-th root of the sum; as in the term.
        on_gate: the penalty is taken of relu(score); as in the term.
    """

    first: int = 0
    last: int = 0
    p_start: float = 1.0
    p_end: float = 0.2
    updates: int = 10
    queue: int = 10
    root: bool = False
    on_gate: bool = False
    name = "p_anneal"

    def __post_init__(self) -> None:
        if not 0 < self.p_end <= self.p_start:
            raise ConfigError(f"p falls from p_start to p_end > 0, found {self.p_start} to {self.p_end}")
        if self.updates < 2 or self.queue < 1:
            raise ConfigError(f"p-annealing needs 2 updates and a queue of 1, found {self.updates} and {self.queue}")

    @property
    def axes(self) -> dict[str, str]:
        return {"p": "", "next": "", "factor": "", "seen": ".."}

    def init(self, d_sae: int) -> PyTree:
        start = jnp.float32(self.p_start)
        return {"p": start, "next": start, "factor": jnp.float32(1.0), "seen": jnp.full((self.queue, 2), jnp.nan)}

    def observe(self, out: Out, ctx: Ctx) -> PyTree:
        """The mean penalty at the present and at the next exponent: [2]."""
        own, values = ctx.track[self.name], penalised(out, self.on_gate)
        means = [Mean()(p_sum(values, own[p], self.root), out.rows.mask) for p in ("p", "next")]
        return jnp.stack(means)

    def update(self, own: PyTree, observed: PyTree, ctx: Ctx) -> PyTree:
        seen = jnp.roll(own["seen"], -1, axis=0).at[-1].set(observed)
        if self.last <= self.first:
            return {**own, "seen": seen}
        steps = np.linspace(self.first, self.last, self.updates).astype(np.int32)
        values = jnp.asarray(np.linspace(self.p_start, self.p_end, self.updates), jnp.float32)
        at = jnp.sum(ctx.step >= steps) - 1
        due = jnp.any(ctx.step == steps)
        now, then = jnp.nanmean(seen, axis=0)
        fresh = {
            "p": values[at],
            "next": values[jnp.minimum(at + 1, self.updates - 1)],
            "factor": own["factor"] * now / jnp.maximum(then, TINY),
            "seen": jnp.full_like(seen, jnp.nan),
        }
        kept = {**own, "seen": seen}
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), fresh, kept)

    def review(self, recipe: Any) -> list[str]:
        """Warns when the penalties compared come from before the last change: the queue is longer than a stage."""
        stage = (self.last - self.first) // max(self.updates - 1, 1)
        if 0 < stage < self.queue:
            return [f"p changes every {stage} steps, less than the queue of {self.queue} steps it is scaled by"]
        return []
