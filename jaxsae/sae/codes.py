"""Codes: which latents are on in each row, and how strongly.  Terms, metrics and uses read nothing else.

Both forms have one interface.  In the sparse form an index is always in range, value 0 means absent, and indices may
repeat (a pursuit may pick an atom twice: the values add).  Leading axes may be anything; S is `d_sae`.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct

from jaxsae import kernels


@struct.dataclass
class SparseCodes:
    """values [..., K] f32 and indices [..., K] int32 into 0..d_sae-1."""

    values: jax.Array
    indices: jax.Array
    d_sae: int = struct.field(pytree_node=False)

    def decode(self, W: jax.Array, live: jax.Array | None = None) -> jax.Array:
        """sum_j values_j W[indices_j]: [..., E].  With `live` False the codes count as absent, at no cost."""
        lead, k = self.values.shape[:-1], self.values.shape[-1]
        flat = self.values.reshape(-1, k), self.indices.reshape(-1, k)
        return kernels.sparse_decode(*flat, W, live=live).reshape(*lead, W.shape[1])

    def dense(self) -> jax.Array:
        """[..., S] with zeros where nothing is on."""
        lead, k = self.values.shape[:-1], self.values.shape[-1]
        rows = jnp.arange(math.prod(lead))[:, None]
        zeros = jnp.zeros((math.prod(lead), self.d_sae), self.values.dtype)
        flat = zeros.at[rows, self.indices.reshape(-1, k)].add(self.values.reshape(-1, k))
        return flat.reshape(*lead, self.d_sae)

    def at(self, v: jax.Array) -> jax.Array:
        """A per-latent array [S] read at the entries: [..., K]."""
        return kernels.take(v, self.indices)

    def tally(self, f: Callable, mask: jax.Array | None = None) -> jax.Array:
        """Sum of f(value) over all rows, per latent: [S].  f(0) must be 0; `mask` [...] weighs rows."""
        weight = f(self.values) if mask is None else f(self.values) * mask[..., None]
        return kernels.add_at(weight, self.indices, self.d_sae)

    def l0(self) -> jax.Array:
        """Number of latents on in each row: [...] f32.  Entries, so a repeated index counts twice."""
        return jnp.sum(self.values != 0, axis=-1, dtype=jnp.float32)

    def reshape(self, *lead: int) -> "SparseCodes":
        """The same codes with other leading axes."""
        k = self.values.shape[-1]
        return replace(self, values=self.values.reshape(*lead, k), indices=self.indices.reshape(*lead, k))


@struct.dataclass
class DenseCodes:
    """values [..., S]."""

    values: jax.Array

    @property
    def d_sae(self) -> int:
        return self.values.shape[-1]

    def decode(self, W: jax.Array, live: jax.Array | None = None) -> jax.Array:
        """values @ W: [..., E], summed in f32."""
        values = self.values if live is None else jnp.where(live, self.values, 0.0)
        return jnp.dot(values.astype(W.dtype), W, preferred_element_type=jnp.float32)

    def dense(self) -> jax.Array:
        """values itself."""
        return self.values

    def at(self, v: jax.Array) -> jax.Array:
        """v with leading axes added, so that it multiplies the values: [..., S]."""
        return v.reshape((1,) * (self.values.ndim - 1) + v.shape)

    def tally(self, f: Callable, mask: jax.Array | None = None) -> jax.Array:
        """Sum of f(value) over all rows, per latent: [S]."""
        weight = f(self.values) if mask is None else f(self.values) * mask[..., None]
        return jnp.sum(weight, axis=tuple(range(weight.ndim - 1)))

    def l0(self) -> jax.Array:
        """Number of latents on in each row: [...] f32."""
        return jnp.sum(self.values != 0, axis=-1, dtype=jnp.float32)

    def reshape(self, *lead: int) -> "DenseCodes":
        """The same codes with other leading axes."""
        return replace(self, values=self.values.reshape(*lead, self.d_sae))


Codes = SparseCodes | DenseCodes
