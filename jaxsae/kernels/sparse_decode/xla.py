"""Decoding of sparse codes without [B, K, E]: a scan over the K entries, or a dense matmul when K is large.

A dense product multiplies every row of W with every code, absent ones too, and 0 times infinity is NaN.  What no entry
names must not show, so a result that is not finite is computed again by entries, and rows of the batch that are not
finite are left out of the product and added by entries.  Both cost a look at [B, E], never one at [S, E].
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.kernels._control import unless
from jaxsae.kernels._dispatch import device
from jaxsae.kernels._rows import in_blocks

#: A list longer than d_sae over this is scattered and multiplied: one dense product then costs less than K passes over
#: [B, E].  On two cores forward pass and gradients together cost the same at about d_sae / 32.
DENSE_RATIO, DENSE_RATIO_CPU = 64, 32

#: Entries of a sorted chunk in a sum of outer products.
CHUNK = 2048

#: Bytes of dictionary rows that a block of the batch gathers at once on a CPU: the best of 2^17 to 2^23 on two cores.
CACHED = 2**22

#: Bytes of a long list's dense form [rows, S] in f32; more rows are worked through in parts.
DENSE_BYTES = 2**27


def is_long(k: int, size: int) -> bool:
    """Whether a list is so long that a dense product is faster."""
    return k * dense_ratio() >= size


def dense_ratio() -> int:
    """The entries of a list, times this, that take as long as a dense product with all latents."""
    return DENSE_RATIO_CPU if device()[0] == "cpu" else DENSE_RATIO


def scatter(values: jax.Array, indices: jax.Array, size: int) -> jax.Array:
    """The dense form [B, size] of sparse codes; repeated indices add."""
    rows = jnp.arange(len(values))[:, None]
    return jnp.zeros((len(values), size), values.dtype).at[rows, indices].add(values)


def forward(values: jax.Array, indices: jax.Array, W: jax.Array, there: jax.Array | None = None) -> jax.Array:
    """sum_j values[b, j] W[indices[b, j]] in f32: [B, E].

    `there` [B, K] bool: entries that count; the others have value 0, and the rows they name are not looked at.
    """
    if is_long(indices.shape[1], W.shape[0]):
        return dense_forward(values, indices, W, there)
    return _by_entry(values, indices, W, there)


def _by_entry(values: jax.Array, indices: jax.Array, W: jax.Array, there: jax.Array | None) -> jax.Array:
    """`forward`, one entry of every row at a time."""

    def add(y, entry):
        value, index, *counts = entry
        part = value[:, None] * W[index].astype(jnp.float32)
        return y + (jnp.where(counts[0][:, None], part, 0.0) if counts else part), None

    start = jnp.zeros((len(values), W.shape[1]), jnp.float32)
    entries = values.astype(jnp.float32).T, indices.T, *(() if there is None else (there.T,))
    return jax.lax.scan(add, start, entries)[0]


def dots(g: jax.Array, indices: jax.Array, W: jax.Array) -> jax.Array:
    """g[b] . W[indices[b, j]]: the gradient of the values, [B, K] f32."""
    if is_long(indices.shape[1], W.shape[0]):
        return dense_dots(g, indices, W)
    if device()[0] == "cpu":  # a matrix of rows and a vector: its reduction runs at the speed of vector instructions
        return with_rows(lambda rows, g: jnp.einsum("be,bke->bk", g, rows), W, indices, g)

    def one(_, index):
        return None, jnp.sum(g * W[index].astype(jnp.float32), axis=-1)

    return jax.lax.scan(one, None, indices.T)[1].T


def with_rows(f: Callable, W: jax.Array, indices: jax.Array, *arrays: jax.Array) -> Any:
    """`f(rows, *arrays)`, where rows [b, K, E] f32 are those of W that indices [b, K] name, in blocks of the batch.

    For CPUs: the rows of a block stay in the cache for all that f does with them.
    """
    block = lambda indices, *arrays: f(W[indices].astype(jnp.float32), *arrays)  # noqa: E731
    return in_blocks(block, 4 * indices.shape[1] * W.shape[1], CACHED, indices, *arrays)


def gradients(values: jax.Array, indices: jax.Array, g: jax.Array, W: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the values [B, K] and of W [S, E], from the gradient g [B, E] of the decoded rows."""
    return dots(g, indices, W), outer_sum(values, indices, g, W.shape[0])[0]


def outer_sum(
    values: jax.Array,
    indices: jax.Array,
    rows: jax.Array,
    size: int,
    start: tuple[jax.Array, jax.Array] | None = None,
    order: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """sum_b,j values[b, j] e_indices[b, j] (x) rows[b]: [size, width] f32, and the sum of values per index [size].

    Both are added to `start` where it is given, in its dtypes.  Entries of index `size` are left out.  `order` is what
    `order_for` gives.
    """
    if start is None:
        start = jnp.zeros((size, rows.shape[1]), jnp.float32), jnp.zeros(size, jnp.float32)
    if not values.size:  # there is not even a first entry for a loop without a turn to name
        return start
    if is_long(indices.shape[1], size):
        return dense_outer_sum(values, indices, rows, start)
    if values.size % CHUNK:
        return _by_rank(values, indices, rows, start)
    return _by_latent(values, indices, rows, start, order)


def order_for(indices: jax.Array, size: int) -> tuple[jax.Array, ...]:
    """What `outer_sum` sorts by, for more than one sum over the same entries; nothing where it does not sort.

    Example:
        >>> order_for(jnp.zeros((2, 3), jnp.int32), 9)
        ()
    """
    sorts = indices.size and not indices.size % CHUNK and not is_long(indices.shape[1], size)
    return (by_latent(indices.reshape(-1), size, CHUNK),) if sorts else ()


def dense_forward(values: jax.Array, indices: jax.Array, W: jax.Array, there: jax.Array | None = None) -> jax.Array:
    """`forward` by way of the dense form of the codes, which is rounded to the dtype of W."""

    def dense(part):
        codes = scatter(part[0], part[1], W.shape[0])
        return jnp.dot(codes.astype(W.dtype), W, preferred_element_type=jnp.float32)

    y = _in_parts(dense, (values, indices), W.shape[0])
    # A row of W that is not finite shows in all of y, whoever names it.
    return unless(jnp.isfinite(y).all(), y, _by_entry, (values, indices, W, there))


def dense_dots(g: jax.Array, indices: jax.Array, W: jax.Array) -> jax.Array:
    """`dots` from the products with all rows of W, to whose dtype g is rounded."""

    def dense(part):
        full = jnp.dot(part[0].astype(W.dtype), W.T, preferred_element_type=jnp.float32)
        return jnp.take_along_axis(full, part[1], axis=1)

    return _in_parts(dense, (g, indices), W.shape[0])


def dense_outer_sum(
    values: jax.Array, indices: jax.Array, rows: jax.Array, start: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """`outer_sum` by way of the dense form of the codes."""
    size = len(start[1])
    finite = jnp.isfinite(rows).all(axis=1)

    def add(total, part):
        values, indices, rows, finite = part
        values, rows = (jnp.where(finite[:, None], a, 0) for a in (values, rows))  # here: no copy of all of them
        dense = scatter(values, indices, size)
        new = total[0] + jnp.dot(dense.T, rows.astype(dense.dtype)), total[1] + dense.sum(0)
        return jax.tree.map(lambda a, old: a.astype(old.dtype), new, total), None

    found = jax.lax.scan(add, start, _split((values, indices, rows, finite), size))[0]
    others = jnp.nonzero(~finite, size=len(rows), fill_value=0)[0]

    def add_row(i, found):
        (total, count), b = found, others[i]
        part = values[b][:, None] * rows[b][None].astype(jnp.float32)
        return total.at[indices[b]].add(part.astype(total.dtype)), count.at[indices[b]].add(
            values[b].astype(count.dtype)
        )

    return jax.lax.fori_loop(0, jnp.sum(~finite), add_row, found)  # as a rule without a turn


def parts_of(rows: int, size: int) -> int:
    """Into how many parts a long list's rows are cut: the fewest that divide them and keep the dense form in bounds.

    Example:
        >>> parts_of(4096, 65536), parts_of(64, 1024)
        (8, 1)
    """
    least = -(-rows * size * 4 // DENSE_BYTES)
    return next((n for n in range(least, rows + 1) if rows % n == 0), 1) if least > 1 else 1


def _split(arrays: tuple, size: int) -> tuple:
    """Arrays [B, ...] as [parts, B / parts, ...]."""
    n = parts_of(len(arrays[0]), size)
    return tuple(a.reshape(n, len(a) // n, *a.shape[1:]) for a in arrays)


def _in_parts(f: Callable, arrays: tuple, size: int) -> jax.Array:
    """f over parts of the rows, one after another."""
    out = jax.lax.map(f, _split(arrays, size))
    return out.reshape(-1, *out.shape[2:])


def _by_rank(values, indices, rows, start):
    """One entry of every row at a time."""

    def add(carry, entry):
        total, count = carry
        value, index = entry
        total = total.at[index].add(value[:, None] * rows.astype(jnp.float32))
        return (total, count.at[index].add(value)), None

    return jax.lax.scan(add, start, (values.astype(jnp.float32).T, indices.T))[0]


def by_latent(indices: jax.Array, size: int, whole: int = 1) -> jax.Array:
    """An order of [P] entries by latent, at most `size`, in which the entries of a latent keep theirs: [P] int32.

    On a CPU a sort of single integers, latent and place in one, takes a fifth of the time of a sort with two operands.
    Where an int32 is too small for both, the entries are sorted in equal groups, one behind the other; a sum that is
    made in that order adds the same terms in the same order for every latent.

    Args:
        indices: [P].
        size: S.
        whole: entries that no border of groups may cut, a divisor of P.

    Example:
        >>> by_latent(jnp.array([2, 0, 2, 1]), 3).tolist(), by_latent(jnp.array([2, 0, 2, 1]), 2**30 - 1).tolist()
        ([1, 3, 0, 2], [1, 0, 3, 2])
    """
    entries = len(indices)
    fits = lambda n: (size + 1) * (entries // n) <= 2**31  # noqa: E731
    units = entries // whole
    groups = next((n for n in range(1, units + 1) if units % n == 0 and fits(n)), 0)
    if not groups:
        return jnp.argsort(indices, stable=True)
    each = entries // groups
    place = jnp.arange(each, dtype=jnp.int32)[None]
    order = jnp.sort(indices.reshape(groups, each) * each + place, axis=1) % each
    return (order + each * jnp.arange(groups, dtype=jnp.int32)[:, None]).reshape(-1)


def _by_latent(values, indices, rows, start, order):
    row = jnp.broadcast_to(jnp.arange(len(values), dtype=jnp.int32)[:, None], indices.shape)
    return _sorted_sum(values, indices, row, rows, start, order)


def entry_sum(values: jax.Array, indices: jax.Array, row: jax.Array, rows: jax.Array, size: int) -> jax.Array:
    """As `outer_sum` for entries that each name the row they multiply: sum of values e_indices (x) rows[row].

    Args:
        values, indices, row: [B, K].
        rows: [any, width].
        size: S; entries of that index are left out.

    Returns:
        [size, width] f32.

    Example:
        >>> one = jnp.array([[0, 1]])
        >>> entry_sum(jnp.array([[2.0, 3.0]]), one * 0, one, jnp.eye(2), 2).tolist()
        [[2.0, 3.0], [0.0, 0.0]]
    """
    start = jnp.zeros((size, rows.shape[1]), jnp.float32), jnp.zeros(size, jnp.float32)
    return _sorted_sum(values, indices, row, rows, start)[0] if values.size else start[0]


def _sorted_sum(values, indices, row, rows, start, order=None):
    """Entries sorted by latent, a chunk at a time: additions to one row of the sum find it in cache."""
    size, fill = len(start[1]), -values.size % CHUNK
    flat = zip((values.astype(jnp.float32), indices, row), (0, size, 0), strict=True)
    value, index, row = (jnp.pad(a.reshape(-1), (0, fill), constant_values=c) for a, c in flat)
    order = by_latent(index, size, CHUNK) if order is None else order
    chunks = tuple(a[order].reshape(-1, CHUNK) for a in (value, index, row))

    def add(carry, entry):
        total, count = carry
        value, index, row = entry
        total = total.at[index].add(value[:, None] * rows[row].astype(jnp.float32), indices_are_sorted=True)
        return (total, count.at[index].add(value, indices_are_sorted=True)), None

    return jax.lax.scan(add, start, chunks)[0]
