"""Orthogonality of atoms, in random chunks."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.objective.reducers import Mean, Reducer
from jaxsae.objective.schedules import Constant, Schedule
from jaxsae.sae.geometry import unit
from jaxsae.sae.records import Ctx, Out


@register("term.orthogonality")
@dataclass(frozen=True)
class Orthogonality:
    """How close each atom comes to its nearest neighbour (OrtSAE, Korznikov et al. 2025, 2509.22033).

        L = mean over atoms i of ( max over j != i in the chunk of i of cos(d_i, d_j) )^2

    Every step draws a new partition of the atoms into ceil(S / chunk) chunks of one size (the last may be shorter), so
    that the cost is linear in S.  The largest cosine is signed: antiparallel atoms are not penalised.  The gradient
    reaches both atoms of each pair.  With `every` n the term is computed at every n-th step and weighted n times there.

    Args:
        coefficient: gamma of the paper, 0.25.
        chunk: most atoms compared with each other, 8192 in the paper.
        every: cadence in steps; 5 in the paper's cheaper variant.
    """

    coefficient: str = "orthogonality_coefficient"
    schedule: Schedule = Constant()
    reducer: Reducer = Mean()
    chunk: int = 8192
    every: int = 1
    name = "orthogonality"
    needs = ()
    k_aux = 0

    def __post_init__(self) -> None:
        for name, least in (("chunk", 2), ("every", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"Orthogonality: {name} must be at least {least}, found {getattr(self, name)}")

    def __call__(self, out: Out, ctx: Ctx) -> jax.Array:
        atoms = out.D.atoms(out.p)
        if self.every == 1:
            return self._value(atoms, ctx)
        # The step is shared by all runs of a sweep, so this stays a branch under vmap.
        live = (jnp.asarray(ctx.step) % self.every == 0) | (not ctx.train)
        scale = float(self.every) if ctx.train else 1.0
        return jax.lax.cond(live, lambda a: scale * self._value(a, ctx), lambda a: jnp.float32(0.0), atoms)

    def _value(self, atoms: jax.Array, ctx: Ctx) -> jax.Array:
        n = len(atoms)
        chunks = -(-n // self.chunk)
        size = -(-n // chunks)
        order = jax.random.permutation(ctx.rng("orthogonality"), n)
        order = jnp.concatenate([order, jnp.full(chunks * size - n, n)]).reshape(chunks, size)
        directions = unit(atoms.astype(jnp.float32))
        padded = jnp.concatenate([directions, jnp.zeros((1, atoms.shape[1]))])

        @jax.checkpoint
        def total(members: jax.Array) -> jax.Array:
            d = padded[members]
            # The pair is found without a gradient and its cosine computed again, so the backward pass has no product.
            fixed = jax.lax.stop_gradient(d)
            cosine = jnp.dot(fixed, fixed.T)
            other = (members < n)[None] & ~jnp.eye(size, dtype=bool)
            nearest = jnp.argmax(jnp.where(other, cosine, -jnp.inf), axis=1)
            counts = (members < n) & jnp.any(other, axis=1)  # an atom alone in the last chunk has no neighbour
            return jnp.sum(jnp.where(counts, jnp.sum(d * d[nearest], axis=1) ** 2, 0.0))

        return jnp.sum(jax.lax.map(total, order)) / n
