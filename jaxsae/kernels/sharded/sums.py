"""Sums over the entries of sparse codes whose latents this device holds, inside `shard`.

With many shards few of the [b, K] entries are a device's own.  They are then gathered into a list of pairs and worked
through chunk by chunk, for as many chunks as there really are: exact whatever the counts, and the buffers have a fixed
size.  With few shards the entries of others count as absent and the ordinary op does the sum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.kernels.sharded.axes import owned
from jaxsae.kernels.sparse_decode import few
from jaxsae.kernels.sparse_decode import xla as sparse

#: Pairs pay when a device owns at most one entry per this many of its latents.
SPARSE_ENOUGH = 8
#: Bytes of one gathered chunk of rows.
CHUNK_BYTES = 32 * 2**20
LEAST_CHUNK = 256


def pays_in_pairs(entries: int, shards: int, size: int) -> bool:
    """Whether a device owns so few of the entries that a list of pairs is the better way."""
    return shards > 1 and entries // shards * SPARSE_ENOUGH <= size


def chunk_of(entries: int, shards: int, width: int) -> int:
    """Pairs per chunk: twice what a device owns on average, within the byte limit."""
    expected = max(LEAST_CHUNK, 2 * entries // shards)
    return min(entries, expected, max(LEAST_CHUNK, CHUNK_BYTES // (4 * width)))


class Owned:
    """The entries of (values [b, K], global indices [b, K]) that a device with latents first..first+size-1 owns.

    `dead`: the lists are AuxK's and as a rule name few latents.
    """

    def __init__(
        self,
        values: jax.Array,
        index: jax.Array,
        first: Any,
        size: int,
        shards: int,
        chunk: int = 0,
        dead: bool = False,
    ):
        self.sums: Any = few if dead else sparse
        self.mine, self.local = owned(index, first, size)
        self.target = jnp.where(self.mine, self.local, size)  # of a sum: what others own is left out
        self.values = jnp.where(self.mine, values, 0.0)
        self.size, self.shards, self.chunk = size, shards, chunk
        self.entries = values.size
        self.paired = pays_in_pairs(self.entries, shards, size)

    def decode(self, W: jax.Array) -> jax.Array:
        """sum_j values[b, j] W[indices[b, j]] over own entries: [b, E] f32."""
        if not self.paired:
            return self.sums.forward(self.values, self.local, W, self.mine)

        def add(y: jax.Array, at: jax.Array) -> jax.Array:
            row, place, value = self._entry(at)
            row = jnp.where(at < self.entries, row, len(y))  # 0 times a row that is not finite would not be 0
            part = value[:, None] * W[place].astype(jnp.float32)
            return y.at[row].add(part, mode="drop", indices_are_sorted=True)

        start = jnp.zeros((self.values.shape[0], W.shape[1]), jnp.float32)
        return self._chunks(add, start, self.values != 0, W.shape[1])

    def dots(self, g: jax.Array, W: jax.Array) -> jax.Array:
        """g[b] . W[indices[b, j]] of own entries, 0 elsewhere: [b, K] f32."""
        if not self.paired:
            return jnp.where(self.mine, self.sums.dots(g, self.local, W), 0.0)

        def put(out: jax.Array, at: jax.Array) -> jax.Array:
            row, place, _ = self._entry(at)
            found = jnp.sum(g[row] * W[place].astype(jnp.float32), axis=-1)
            return out.at[at].set(found, mode="drop")

        flat = self._chunks(put, jnp.zeros(self.entries, jnp.float32), self.mine, W.shape[1])
        return flat.reshape(self.values.shape)

    def outer_sum(self, rows: jax.Array, dtype: Any = jnp.float32, start: Any = None) -> tuple[jax.Array, jax.Array]:
        """sum values[b, j] e_indices[b, j] (x) rows[b]: [size, width], and the sum of values per latent [size] f32.

        Summed in f32 and rounded to `dtype` once; in the paired way, once for each chunk that holds a part of the
        latent's pairs, which are in the order of latents.  `start`: such a result to add to.
        """
        width = rows.shape[1]
        if start is None:
            start = jnp.zeros((self.size, width), dtype), jnp.zeros(self.size, jnp.float32)
        if not self.paired and sparse.is_long(self.local.shape[1], self.size):  # rounded once for each part of the rows
            return self.sums.outer_sum(self.values, self.target, rows, self.size, start)
        if not self.paired:
            total, count = sparse.outer_sum(self.values, self.target, rows, self.size)
            return start[0] + total.astype(dtype), start[1] + count

        def add(carry: tuple, at: jax.Array) -> tuple:
            row, place, value = self._entry(at)
            place = jnp.where(at < self.entries, place, self.size)
            fresh = jnp.concatenate([jnp.zeros(1, bool), place[1:] != place[:-1]])
            group = jnp.cumsum(fresh)
            sums = jax.ops.segment_sum(
                value[:, None] * rows[row].astype(jnp.float32), group, len(at), indices_are_sorted=True
            )
            owner = jnp.full(len(at), self.size).at[group].set(place)
            total = carry[0].at[owner].add(sums.astype(dtype), mode="drop", indices_are_sorted=True)
            return total, carry[1].at[place].add(value, mode="drop", indices_are_sorted=True)

        return self._chunks(add, start, self.values != 0, width, by_latent=True)

    def _entry(self, at: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(row, latent, value) of the entries at these positions; value 0 past the end."""
        there = jnp.minimum(at, self.entries - 1)
        value = jnp.where(at < self.entries, self.values.reshape(-1)[there], 0.0)
        return there // self.values.shape[1], self.local.reshape(-1)[there], value

    def _chunks(self, fold: Callable, start: Any, wanted: jax.Array, width: int, by_latent: bool = False) -> Any:
        """Folds `fold(carry, positions [chunk])` over the wanted entries; positions past the end are `entries`."""
        chunk = self.chunk or chunk_of(self.entries, self.shards, width)
        position = jnp.where(wanted.reshape(-1), jnp.arange(self.entries, dtype=jnp.int32), self.entries)
        if by_latent:
            key = jnp.where(wanted.reshape(-1), self.local.reshape(-1), self.size)
            order = jax.lax.sort((key, position), num_keys=2)[1]
        else:
            order = jnp.sort(position)
        order = jnp.pad(order, (0, -self.entries % chunk), constant_values=self.entries)
        trips = (jnp.sum(wanted) + chunk - 1) // chunk

        def body(i: jax.Array, carry: Any) -> Any:
            return fold(carry, jax.lax.dynamic_slice(order, (i * chunk,), (chunk,)))

        return jax.lax.fori_loop(0, trips, body, start)
