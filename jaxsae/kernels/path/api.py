"""Every nested reconstruction of a list of codes, as points on one path of residuals."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsae.kernels._dispatch import axes, choose
from jaxsae.kernels.path import reference, xla


@jax.custom_vjp
def _xla(values, indices, W, e0, main):
    return xla.forward(values, indices, W, e0, main)[:2]


def _fwd(values, indices, W, e0, main):
    sse, chosen, last = xla.forward(values, indices, W, e0, main)
    like_e0 = jnp.zeros((), e0.dtype)  # the dtype of e0 is all the backward pass needs of it
    return (sse, chosen), (values, indices, W, main, last, like_e0)


def _bwd(residuals, cotangents):
    *kept, like_e0 = residuals
    values, _, W, *_ = kept
    d_values, dW, d_e0 = xla.backward(kept, cotangents)
    return d_values.astype(values.dtype), None, dW.astype(W.dtype), d_e0.astype(like_e0.dtype), None


_xla.defvjp(_fwd, _bwd)

IMPLEMENTATIONS: dict[str, Callable] = {"xla": _xla, "reference": reference.path}


def path(
    values: jax.Array,
    indices: jax.Array,
    W: jax.Array,
    e0: jax.Array,
    main: jax.Array,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Walks from the residual e0 along the codes of each row, one entry at a time.

        e_j = e_{j-1} - values[:, j-1] W[indices[:, j-1]]        j = 1..K

    Point j is the residual when only the first j entries are decoded.  In order of rank these are the levels of
    multi-TopK, MSAE and HierarchicalTopK; in order of latent index they hold those of Matryoshka prefixes.  Neither
    the forward nor the backward pass ever holds [B, K, E].

    Args:
        values: [B, K] f32; 0 means absent.
        indices: [B, K] int32, every one in 0..S-1; repeated indices add.
        W: [S, E] dictionary, f32 or bf16; sums are f32.
        e0: [B, E] residual before the first entry.
        main: [B] int32 in 0..K: the point whose residual is wanted in full.
        implementation: None (best here), "xla" or "reference".

    Returns:
        sse [B, K+1] f32, the squared norm (sum over E) of every point, e0 first; and e_main [B, E] f32.

    Raises:
        ConfigError: shapes that do not belong together, or an unknown implementation.

    Example:
        >>> values, indices = jnp.array([[3.0, 1.0]]), jnp.array([[1, 0]])
        >>> sse, e = path(values, indices, jnp.eye(2), jnp.array([[1.0, 5.0]]), jnp.array([1]))
        >>> sse.tolist(), e.tolist()
        ([[26.0, 5.0, 4.0]], [[1.0, 2.0]])
    """
    values, indices, W, e0 = map(jnp.asarray, (values, indices, W, e0))  # numpy's cannot be indexed by what is traced
    operands = {"values": (values, "BK"), "indices": (indices, "BK"), "W": (W, "SE"), "e0": (e0, "BE")}
    shape = axes("path", **operands, main=(main, "B"))
    return choose("path", implementation, IMPLEMENTATIONS, shape, W.dtype)(values, indices, W, e0, main)
