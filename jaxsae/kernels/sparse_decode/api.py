"""Decoding of sparse codes: a weighted sum of K dictionary rows per row of the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsae.kernels._control import when
from jaxsae.kernels._dispatch import choose
from jaxsae.kernels.sparse_decode import reference, xla


@jax.custom_vjp
def _xla(values, indices, W, live):
    return _forward(values, indices, W, live)


def _forward(values, indices, W, live):
    return xla.forward(values, indices, W) if live is None else when(live, xla.forward, (values, indices, W))


def _fwd(values, indices, W, live):
    return _forward(values, indices, W, live), (values, indices, W, live)


def _bwd(residuals, g):
    values, indices, W, live = residuals

    def grads(values, indices, W, g):
        return xla.dots(g, indices, W), xla.outer_sum(values, indices, g, W.shape[0])[0]

    args = (values, indices, W, g)
    d_values, dW = grads(*args) if live is None else when(live, grads, args)
    return d_values.astype(values.dtype), None, dW.astype(W.dtype), None


_xla.defvjp(_fwd, _bwd)


def _reference(values, indices, W, live):
    out = reference.sparse_decode(values, indices, W)
    return out if live is None else jnp.where(live, out, 0.0)


IMPLEMENTATIONS: dict[str, Callable] = {"xla": _xla, "reference": _reference}


def sparse_decode(
    values: jax.Array,
    indices: jax.Array,
    W: jax.Array,
    *,
    live: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """y[b] = sum_j values[b, j] W[indices[b, j]], summed in f32.

    Args:
        values: [B, K] f32; 0 means absent.
        indices: [B, K] int32, every one in 0..S-1; repeated indices add.
        W: [S, E] dictionary, f32 or bf16.
        live: [] bool; when False the codes count as absent: the result and every gradient are 0, at no cost.
        implementation: None (best here), "xla" or "reference".

    Returns:
        [B, E] f32.

    Example:
        >>> W = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> sparse_decode(jnp.array([[3.0, 1.0]]), jnp.array([[1, 0]]), W).tolist()
        [[1.0, 6.0]]
    """
    return choose("sparse_decode", implementation, IMPLEMENTATIONS)(values, indices, W, live)
