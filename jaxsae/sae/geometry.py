"""Vectors as rows of a matrix: norms, directions, and the geometric median of a cloud."""

import jax
import jax.numpy as jnp


def row_norms(w: jax.Array) -> jax.Array:
    """Euclidean norm of each row [..., E] -> [..., 1]."""
    return jnp.linalg.norm(w, axis=-1, keepdims=True)


def unit(w: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Rows scaled to norm 1; a zero row stays zero.

    Example:
        >>> unit(jnp.array([[3.0, 4.0]])).round(2).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    return w / jnp.maximum(row_norms(w), eps)


def remove_parallel(g: jax.Array, w: jax.Array) -> jax.Array:
    """The part of each row of g that is orthogonal to the row of w: g - (g.u) u with u = w/||w||.

    Keeps a step along the unit sphere from being spent on length (Bricken et al. 2023; Gao et al. 2024).
    """
    u = unit(w)
    return g - jnp.sum(g * u, axis=-1, keepdims=True) * u


def geometric_median(x: jax.Array, iterations: int = 64, eps: float = 1e-6) -> jax.Array:
    """The point with the least summed distance to the rows of x, by Weiszfeld's iteration from the mean.

    Gao et al. 2024 (2406.04093) initialise the pre-encoder bias with it: unlike the mean it ignores a few
    enormous rows.

    Args:
        x: [B, D].
        iterations: a fixed number, so that the function can be jitted; 64 is far past convergence in practice.
        eps: least distance, so that a row that is the median divides nothing by 0.

    Returns:
        [D] f32.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [100.0]])
        >>> round(float(geometric_median(x)[0]), 2)
        1.0
    """
    x = x.astype(jnp.float32)

    def body(_, m):
        w = 1.0 / jnp.maximum(jnp.linalg.norm(x - m[None], axis=1), eps)
        return jnp.sum(w[:, None] * x, axis=0) / jnp.sum(w)

    return jax.lax.fori_loop(0, iterations, body, x.mean(0))
