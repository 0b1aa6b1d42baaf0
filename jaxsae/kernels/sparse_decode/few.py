"""Long lists that name few latents, as AuxK's list over the dead does: dense products with the named rows alone.

A dictionary with one dead latent in a hundred would otherwise pay for products with all of it, four times a step.
Where the lists do name many latents, everything is as in `xla`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsae.kernels._control import either
from jaxsae.kernels.sparse_decode import xla

#: Lists are worked through by the latents they name while those are at most this part of all, or twice the list.
SHARE = 8


def bound_for(k: int, size: int) -> int:
    """The most latents that count as few beside `size`, for lists of k.

    Example:
        >>> bound_for(256, 8192), bound_for(4, 8)
        (1024, 8)
    """
    return max(2 * k, size // SHARE)


def most(k: int, size: int) -> int:
    """As `bound_for`, but 0 where a list of k gains nothing.

    Example:
        >>> most(256, 8192), most(4, 8192), most(16, 64)
        (1024, 0, 0)
    """
    bound = bound_for(k, size)
    # Not `is_long`: products with few rows gain before those with all rows do, on a CPU too.
    return bound if k * xla.DENSE_RATIO >= size and 2 * bound <= size else 0


def forward(values: jax.Array, indices: jax.Array, W: jax.Array, there: jax.Array | None = None) -> jax.Array:
    """As `xla.forward`: sum_j values[b, j] W[indices[b, j]], [B, E] f32."""
    return _with_named_rows(xla.forward, xla.dense_forward, values, indices, W, there)


def dots(g: jax.Array, indices: jax.Array, W: jax.Array) -> jax.Array:
    """As `xla.dots`: g[b] . W[indices[b, j]], [B, K] f32."""
    return _with_named_rows(xla.dots, xla.dense_dots, g, indices, W)


def _with_named_rows(
    of_any: Callable, dense: Callable, first: jax.Array, indices: jax.Array, W: jax.Array, *rest: jax.Array | None
) -> jax.Array:
    """`dense(first, indices, W, *rest)` with the rows of W that are named; `of_any` of lists that gain nothing."""
    bound = most(indices.shape[1], len(W))
    if not bound:
        return of_any(first, indices, W, *rest)
    columns, place, many = named(indices, len(W), bound)

    def some(first, indices, W, columns, place, *rest):
        return dense(first, place[indices], W.at[columns].get(mode="fill", fill_value=0), *rest)

    def every(first, indices, W, columns, place, *rest):
        return of_any(first, indices, W, *rest)

    return either(many, every, some, (first, indices, W, columns, place, *rest))


def outer_sum(
    values: jax.Array, indices: jax.Array, rows: jax.Array, size: int, start: tuple[jax.Array, jax.Array] | None = None
) -> tuple[jax.Array, jax.Array]:
    """As `xla.outer_sum`: [size, width] and [size], added to `start` where it is given."""
    bound = most(indices.shape[1], size) if len(rows) else 0
    if not bound:
        return xla.outer_sum(values, indices, rows, size, start)
    if start is None:
        start = jnp.zeros((size, rows.shape[1]), jnp.float32), jnp.zeros(size, jnp.float32)
    columns, place, many = named(indices, size, bound)

    def some(values, indices, rows, start, columns, place):
        nothing = jnp.zeros((bound, rows.shape[1]), jnp.float32), jnp.zeros(bound, jnp.float32)
        indices = place.at[indices].get(mode="fill", fill_value=bound)  # what is left out stays so
        sums = xla.dense_outer_sum(values, indices, rows, nothing)
        return tuple(a.at[columns].add(s.astype(a.dtype), mode="drop") for a, s in zip(start, sums, strict=True))

    def every(values, indices, rows, start, *_):
        return xla.outer_sum(values, indices, rows, size, start)

    return either(many, every, some, (values, indices, rows, start, columns, place))


def named(indices: jax.Array, size: int, bound: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The latents that lists name, in order.

    Returns:
        latents [bound] (the rest `size`), the place of every latent among them [size], and whether there are more than
        `bound` of them, [] bool; then the other two mean nothing.

    Example:
        >>> [a.tolist() for a in named(jnp.array([[5, 2], [2, 2]]), 6, 3)]
        [[2, 5, 6], [0, 0, 0, 1, 1, 1], False]
    """
    there = jnp.zeros(size, bool).at[indices.reshape(-1)].set(True)
    columns = jnp.nonzero(there, size=bound, fill_value=size)[0].astype(jnp.int32)
    place = jnp.maximum(jnp.cumsum(there) - 1, 0).astype(jnp.int32)
    return columns, jnp.minimum(place, bound - 1), jnp.sum(there) > bound
