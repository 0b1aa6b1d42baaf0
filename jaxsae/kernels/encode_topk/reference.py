"""Encoder matmul and selection, plainest form: the specification of the op, differentiable by jax itself."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.kernels._ordered import total_order
from jaxsae.kernels.topk import reference as topk_reference


def encode_topk(*args: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """See `jaxsae.kernels.encode_topk.api.encode_topk`."""
    return lists(*args)[:4]


def lists(
    x: jax.Array,
    W: jax.Array,
    b: jax.Array,
    b_pre: jax.Array,
    scale: jax.Array | None,
    dead: jax.Array,
    k: int,
    k_aux: int,
    signed: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The four results of the op, and which entries of the second list are there."""
    pre = jnp.dot(x - b_pre[None].astype(x.dtype), W, preferred_element_type=jnp.float32) + b[None]
    score = jnp.abs(pre) if signed else pre
    score = jax.lax.stop_gradient(score if scale is None else score * scale[None])
    index = topk_reference.topk(score, k)[1]
    values = jnp.take_along_axis(pre, index, axis=1)
    if not k_aux:
        return values, index, *no_second(len(x), 0)
    best, aux = topk_reference.topk(jnp.where(dead[None], score, -jnp.inf), k_aux)
    aux_values, aux, there = present(best, jnp.take_along_axis(pre, aux, axis=1), aux)
    return values, index, aux_values, aux, there


def present(score: jax.Array, values: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values and indices of a second list, 0 where an entry is absent, and where it is not.

    Absent is what scores -inf or ranks below it (a NaN of negative sign): latents that are alive, and dead ones that
    never can win.

    Example:
        >>> [a.tolist() for a in present(jnp.array([2.0, -jnp.inf]), jnp.array([2.0, 7.0]), jnp.array([5, 4]))]
        [[2.0, 0.0], [5, 0], [True, False]]
    """
    there = total_order(score) > total_order(jnp.float32(-jnp.inf))
    return jnp.where(there, values, 0.0), jnp.where(there, index, 0), there


def no_second(rows: int, k_aux: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A second list without entries."""
    return jnp.zeros((rows, k_aux), jnp.float32), jnp.zeros((rows, k_aux), jnp.int32), jnp.zeros((rows, k_aux), bool)
