"""The threshold of the k largest by bisection on ordered integers, one bit per pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.errors import ConfigError
from jaxsae.kernels._ordered import total_order

LOWEST, HIGHEST = -(2**31), 2**31 - 1


def check_dtype(op: str, dtype: Any) -> None:
    """Refuses what f32 does not hold exactly, since entries are compared by the bits of an f32."""
    name = jnp.dtype(dtype).name
    if name not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"{op}: takes float32, bfloat16 or float16, found {name}; cast it where float32 can hold it")


def above(x: jax.Array, least: jax.Array, last: jax.Array) -> jax.Array:
    """The mask that a cut describes: [B, S] bool; compilers fuse it into whatever reads it."""
    key, least, last = total_order(x), least[:, None], last[:, None]
    index = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    return (key > least) | ((key == least) & (index <= last))


def cut(x: jax.Array, k: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the k largest of each row end, in the order (value descending, index ascending).

    Args:
        x: [B, S].
        k: [] or [B].

    Returns:
        least [B] int32, the ordered integer of the k-th largest value, and last [B] int32, the index of the k-th entry:
        the k largest are those above `least`, and those equal to it up to `last`.
    """
    key = total_order(x)
    k = jnp.broadcast_to(jnp.asarray(k, jnp.int32), (len(x),))
    least = largest_with(lambda t: jnp.sum(key >= t[:, None], axis=1), k, jnp.full(len(x), LOWEST, jnp.int32), 32)
    need = k - jnp.sum(key > least[:, None], axis=1)
    index = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    # The last index with fewer than `need` ties before it: bisect on the number of ties at or past an index.
    ties = key == least[:, None]
    before = lambda t: jnp.sum(ties & (index < t[:, None]), axis=1)  # noqa: E731
    bits = max(1, x.shape[1].bit_length())
    last = largest_with(lambda t: need - before(t), jnp.ones_like(k), jnp.zeros(len(x), jnp.int32), bits)
    nothing = k <= 0
    return jnp.where(nothing, HIGHEST, least), jnp.where(nothing, -1, jnp.minimum(last, x.shape[1] - 1))


def largest_with(count: Callable, want: jax.Array, start: jax.Array, bits: int) -> jax.Array:
    """Largest t >= start, built from the highest bit down, with count(t) >= want; count must not grow with t."""

    def step(b, t):
        # From -2^31 the first step of 32 wraps round to 0, which is what the sign bit asks for.
        higher = t + jax.lax.shift_left(jnp.int32(1), jnp.int32(bits - 1) - b)
        return jnp.where(count(higher) >= want, higher, t)

    return jax.lax.fori_loop(0, bits, step, start)
