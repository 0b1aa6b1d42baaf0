"""Integers that order as floats do in `lax.top_k`, and the repair of rows that a fast path could not certify."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def total_order(x: jax.Array) -> jax.Array:
    """int32 keys in the order `lax.top_k` uses for f32: -NaN < -inf < ... < -0 < +0 < ... < inf < NaN.

    Args:
        x: f32 (or a narrower float, which f32 holds exactly).

    Example:
        >>> total_order(jnp.array([-1.0, -0.0, 0.0, 2.0])).tolist()
        [-1065353217, -1, 0, 1073741824]
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))


def from_order(key: jax.Array) -> jax.Array:
    """The f32 that `total_order` turned into `key`.

    Example:
        >>> from_order(total_order(jnp.array([-1.5, 3.0]))).tolist()
        [-1.5, 3.0]
    """
    return jax.lax.bitcast_convert_type(key ^ ((key >> 31) & jnp.int32(0x7FFFFFFF)), jnp.float32)


def best_first(score: jax.Array, index: jax.Array, k: int, *others: jax.Array) -> tuple[jax.Array, ...]:
    """The k first of each row by (score descending, index ascending).

    Args:
        score: [B, C] float.
        index: [B, C] int32.
        k: how many.
        others: arrays [B, C] that are put into the same order.

    Returns:
        score, index and the others, [B, k]; the score as f32.

    Example:
        >>> s, i = best_first(jnp.array([[1.0, 2.0, 2.0]]), jnp.array([[4, 9, 5]]), 2)
        >>> s.tolist(), i.tolist()
        ([[2.0, 2.0]], [[5, 9]])
    """
    key, *rest = (a[:, :k] for a in jax.lax.sort((~total_order(score), index, *others), num_keys=2))
    return from_order(~key), *rest


def repair(out: tuple, fine: jax.Array, at_once: int, exactly: Callable[[jax.Array], tuple]) -> tuple:
    """Replaces the rows of `out` that are not `fine`, a few at a time until none is left.

    Args:
        out: arrays [B, ...].
        fine: [B] bool.
        at_once: rows computed in one go; memory grows with it, not with B.
        exactly: indices of rows [at_once] -> arrays like `out` of those rows; an index may lie past the end, in which
            case the result does not matter.

    Example:
        >>> repair((jnp.array([1, 0, 3]),), jnp.array([True, False, True]), 2, lambda rows: (rows + 7,))[0].tolist()
        [1, 8, 3]
    """

    def some(carry):
        todo, out = carry
        rows = jnp.nonzero(todo, size=at_once, fill_value=len(todo))[0]
        out = tuple(a.at[rows].set(new, mode="drop") for a, new in zip(out, exactly(rows), strict=True))
        return todo.at[rows].set(False, mode="drop"), out

    return jax.lax.while_loop(lambda carry: jnp.any(carry[0]), some, (~fine, out))[1]
