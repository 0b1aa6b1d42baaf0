"""The two losses that teach a gate, which the reconstruction cannot: it sees the gate through a step."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.objective.dead_zones import too_heavy
from jaxsae.objective.reducers import Mean, Reducer
from jaxsae.objective.schedules import Constant, Schedule
from jaxsae.sae.records import Ctx, Out


@register("term.gate_l1")
@dataclass(frozen=True)
class GateL1:
    """sum_j relu(score_j), sum over latents, mean over B (Rajamanoharan et al. 2024a, 2404.16014).

    The score is the gate's pre-activation.  Not the codes: these would shrink, which the gate is there to avoid.  With
    `by_norm` each is weighted by the norm of its atom, as SAELens does.
    """

    coefficient: str = "l1_coefficient"
    schedule: Schedule = Constant()
    by_norm: bool = False
    reducer: Reducer = Mean()
    name = "gate_l1"
    needs = ("pre",)
    k_aux = 0

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        pre: Any = out.sel.pre
        gate = jax.nn.relu(pre.score)
        return jnp.sum(gate * out.D.norms(out.p)[None] if self.by_norm else gate, axis=1)

    def review(self, recipe: Any) -> list[str]:
        """Warns of a weight that no latent is worth to the gate's own reconstruction."""
        unit = self.by_norm or getattr(recipe.dictionary, "unit_norm", False)
        return too_heavy(recipe, self.coefficient, "l1") if unit else []


@register("term.gate_aux")
@dataclass(frozen=True)
class GateAux:
    """||y - (relu(score) sg(W_dec) + sg(readout))||^2, sum over E, mean over B (2404.16014; sg: stop gradient).

    Trains the gate and whatever it is made of.  Atoms and readout (b_dec, and x W_skip where there is a linear path)
    are detached, so that the path that no one uses at inference does not train them; W_enc, and b_dec through the
    centring of the input, do get its gradient.
    """

    coefficient: str = ""
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    name = "gate_aux"
    needs = ("pre",)
    k_aux = 0

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        pre: Any = out.sel.pre
        stopped = jax.lax.stop_gradient(out.p)
        W = out.D.atoms(stopped)
        through = jnp.dot(jax.nn.relu(pre.score).astype(W.dtype), W, preferred_element_type=jnp.float32)
        base = stopped["b_dec"][None] if out.readout is None else out.readout.base(stopped, out.rows.x)
        return jnp.sum((out.rows.y - base - through) ** 2, axis=1)
