"""Pursuit: codes found greedily, one atom at a time, with the dictionary as its own encoder."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.sae.codes import Codes, DenseCodes, SparseCodes
from jaxsae.sae.records import Ctx, Rows, Selection, Want
from jaxsae.sae.slots import Dictionary
from jaxsae.typing import Params, PyTree

#: Longer pursuits return dense codes: merging repeated picks compares every pair of steps.
MAX_SPARSE_STEPS = 128


@register("encode.pursuit")
@dataclass(frozen=True)
class Pursuit:
    """Matching pursuit: r = x - b_pre; repeat i = argmax_j r.d_j, v = r.d_i, code_i += v, r -= v d_i.

    Args:
        d_in: width of x.
        d_sae: number of atoms.
        steps: picks at most.
        b_pre: subtract the decoder bias first or not.
        rectify: v = max(v, 0).  Without it the last resort is a negative v, when every correlation is negative.
        stop_below: a row stops once ||r|| is smaller; 0 never.
        stop_on_repeat: a row stops after a step that added no new atom.

    Atoms are meant to have norm 1 (Costa et al. 2025, "From flat to hierarchical"; MP-SAE of SAELens and overcomplete).
    """

    d_in: int
    d_sae: int
    steps: int
    b_pre: Literal["none", "b_dec"] = "none"
    rectify: bool = True
    stop_below: float = 0.0
    stop_on_repeat: bool = False
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()
    may_miss = False
    forms = ("rank",)

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        return {}

    def can_fuse(self, want: Want) -> bool:
        return False

    def encode(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx, want: Want, fused: bool) -> Selection:
        """Codes of normalised rows x [B, D]."""
        atoms = D.atoms(p)
        r = x - p["b_dec"][None].astype(x.dtype) if self.b_pre == "b_dec" else x
        r, rows = r.astype(jnp.float32), jnp.arange(len(x))
        done = jnp.zeros(len(x), bool) if ctx.rows is None else ctx.rows.mask == 0
        seen = jnp.zeros((len(x), self.d_sae if self.stop_on_repeat else 0), bool)

        def pick(r, done, seen):
            corr = jnp.dot(r.astype(atoms.dtype), atoms.T, preferred_element_type=jnp.float32)
            index = jnp.argmax(jax.nn.relu(corr) if self.rectify else corr, axis=1).astype(jnp.int32)
            value = jnp.take_along_axis(corr, index[:, None], axis=1)[:, 0]
            value = jnp.where(done, 0.0, jax.nn.relu(value) if self.rectify else value)
            r = r - value[:, None] * atoms[index].astype(jnp.float32)
            if self.stop_on_repeat:
                done = done | seen[rows, index] | (value == 0)
                seen = seen.at[rows, index].set(seen[rows, index] | (value != 0))
            if self.stop_below > 0:
                done = done | (jnp.linalg.norm(jax.lax.stop_gradient(r), axis=1) < self.stop_below)
            return (r, done, seen), (value, index)

        def rest(r, done, seen):
            return (r, done, seen), (jnp.zeros(len(r)), jnp.zeros(len(r), jnp.int32))

        def step(carry, _):
            return jax.lax.cond(jnp.all(carry[1]), rest, pick, *carry)

        _, (values, index) = jax.lax.scan(step, (r, done, seen), None, length=self.steps)
        return Selection(_merged(values.T, index.T, self.d_sae))

    def frozen(self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str) -> tuple["Pursuit", Params]:
        return self, {}


def _merged(values: jax.Array, index: jax.Array, d_sae: int) -> Codes:
    """Codes in which every atom stands once: repeated picks are added to the first."""
    codes = SparseCodes(values, index, d_sae)
    if values.shape[1] > MAX_SPARSE_STEPS:
        return DenseCodes(codes.dense())
    same = (index[:, :, None] == index[:, None, :]) & (values != 0)[:, None, :]
    earlier = jnp.any(same & jnp.tril(jnp.ones(same.shape[1:], bool), -1)[None], axis=2)
    total = jnp.sum(jnp.where(same, values[:, None, :], 0.0), axis=2)
    return codes.replace(values=jnp.where(earlier | (values == 0), 0.0, total))  # type: ignore[attr-defined]


@register("encode.orthogonal_pursuit")
@dataclass(frozen=True)
class OrthogonalPursuit:
    """Orthogonal matching pursuit with non-negative codes: after every pick all codes so far are solved for again.

    Each pick is the atom, not picked before, that correlates most with the residual.  The least squares problem over
    the picked atoms takes `solve_steps` steps of projected gradient descent from the codes so far, of length
    1 / ||G||_F with G the Gram matrix of the picked atoms (OMPSAE of overcomplete).  Not meant for training through.
    """

    d_in: int
    d_sae: int
    steps: int
    solve_steps: int = 10
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()
    may_miss = False
    forms = ("rank",)

    def init(self, key: jax.Array, rows: Rows, p: Params, D: Dictionary) -> Params:
        return {}

    def can_fuse(self, want: Want) -> bool:
        return False

    def encode(self, p: Params, x: jax.Array, D: Dictionary, ctx: Ctx, want: Want, fused: bool) -> Selection:
        """Codes of normalised rows x [B, D]."""
        atoms = D.atoms(p)
        x, rows = x.astype(jnp.float32), jnp.arange(len(x))
        index = jnp.zeros((len(x), self.steps), jnp.int32)
        codes = jnp.zeros((len(x), self.steps))
        taken = jnp.zeros((len(x), self.d_sae), bool)
        r = x
        for t in range(self.steps):
            corr = jnp.dot(r.astype(atoms.dtype), atoms.T, preferred_element_type=jnp.float32)
            best = jnp.argmax(jnp.where(taken, -jnp.inf, corr), axis=1).astype(jnp.int32)
            taken, index = taken.at[rows, best].set(True), index.at[:, t].set(best)
            picked = atoms[index[:, : t + 1]].astype(jnp.float32)
            solved = self._solve(picked, x, codes[:, : t + 1])
            codes = codes.at[:, : t + 1].set(solved)
            r = x - jnp.einsum("bk,bkd->bd", solved, picked)
        return Selection(SparseCodes(codes, index, self.d_sae))

    def _solve(self, picked: jax.Array, x: jax.Array, start: jax.Array) -> jax.Array:
        gram = jnp.einsum("bkd,bld->bkl", picked, picked)
        target = jnp.einsum("bkd,bd->bk", picked, x)
        rate = 1 / (jnp.sqrt(jnp.sum(gram**2, axis=(1, 2))) + 1e-8)

        def descend(_, z):
            return jax.nn.relu(z - rate[:, None] * (jnp.einsum("bkl,bl->bk", gram, z) - target))

        return jax.lax.fori_loop(0, self.solve_steps, descend, start)

    def frozen(
        self, p: Params, track: PyTree, hyper: Params, D: Dictionary, form: str
    ) -> tuple["OrthogonalPursuit", Params]:
        return self, {}
