"""Encoder matmul and selection, plainest form: the specification of the op, differentiable by jax itself."""

import jax
import jax.numpy as jnp

from jaxsae.kernels.topk import reference as topk_reference


def encode_topk(
    x: jax.Array,
    W: jax.Array,
    b: jax.Array,
    b_pre: jax.Array,
    scale: jax.Array | None,
    dead: jax.Array,
    k: int,
    k_aux: int,
    signed: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """See `jaxsae.kernels.encode_topk.api.encode_topk`."""
    pre = jnp.dot(x - b_pre[None].astype(x.dtype), W, preferred_element_type=jnp.float32) + b[None]
    score = jnp.abs(pre) if signed else pre
    score = jax.lax.stop_gradient(score if scale is None else score * scale[None])
    index = topk_reference.topk(score, k)[1]
    values = jnp.take_along_axis(pre, index, axis=1)
    if not k_aux:
        return values, index, jnp.zeros((len(x), 0), pre.dtype), jnp.zeros((len(x), 0), jnp.int32)
    aux = topk_reference.topk(jnp.where(dead[None], score, -jnp.inf), k_aux)[1]
    aux_values = jnp.where(dead[aux], jnp.take_along_axis(pre, aux, axis=1), 0.0)
    return values, index, aux_values, aux
