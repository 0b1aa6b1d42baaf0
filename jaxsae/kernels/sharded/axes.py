"""How rows and latents of one op are spread over the mesh in force."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxsae import parallel
from jaxsae.kernels._control import when


@dataclass(frozen=True)
class Split:
    """Devices along the rows and along the latents; 1 where an axis is absent or does not divide."""

    data: int
    latent: int

    @property
    def rows(self) -> str | None:
        return "data" if self.data > 1 else None

    @property
    def latents(self) -> str | None:
        return "latent" if self.latent > 1 else None

    def spec(self, letters: str) -> P:
        """The placement of an operand: "BK", "DS", "S", ... as everywhere, except that these axes surely divide."""
        return P(*({"B": self.rows, "S": self.latents}.get(letter) for letter in letters))

    def specs(self, *letters: str) -> tuple[P, ...]:
        return tuple(self.spec(a) for a in letters)

    def sum_rows(self, a: Any) -> Any:
        """Sum over the devices along the rows, inside `shard`."""
        return jax.lax.psum(a, "data") if self.data > 1 else a

    def sum_latents(self, a: Any) -> Any:
        """Sum over the devices along the latents, inside `shard`."""
        return jax.lax.psum(a, "latent") if self.latent > 1 else a

    def first(self, size: int) -> jax.Array | int:
        """Index of the first latent of this device, inside `shard`; it holds `size` of them."""
        return jax.lax.axis_index("latent") * size if self.latent > 1 else 0


def after(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a`, which now waits for `b`.

    Inside a branch a CPU may start collectives that do not depend on each other in another order on each device, and
    then they wait for ever.  A value of b that never occurs would add nothing that counts; no compiler knows that.
    """
    never = b.ravel()[0].astype(jnp.float32) == jnp.float32(1.2345678e-31)
    return a + jnp.where(never, 1e-38, 0.0).astype(a.dtype)


def split_of(rows: int, latents: int) -> Split | None:
    """How an op with these sizes is spread, or None where there is nothing to spread."""
    sizes = parallel.sizes()
    there = sizes.get("data", 1), sizes.get("latent", 1)
    data, latent = (n if size % n == 0 else 1 for n, size in zip(there, (rows, latents), strict=True))
    return None if there == (1, 1) else Split(data, latent)


def owned(index: jax.Array, first: jax.Array | int, size: int) -> tuple[jax.Array, jax.Array]:
    """(whether this device holds the latent, its place there; 0 where it does not) for global indices."""
    local = index - first
    mine = (local >= 0) & (local < size)
    return mine, jnp.where(mine, local, 0)


def if_live(live: jax.Array | None, compute: Any, args: tuple) -> Any:
    """`compute(*args)`; zeros, at no cost, where `live` is False."""
    return compute(*args) if live is None else when(live, compute, args)
