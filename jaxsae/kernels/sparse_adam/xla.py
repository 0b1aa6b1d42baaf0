"""Adam with the gradient of sparse codes: the gradient, then one elementwise pass; and the lazy form of it."""

import jax
import jax.numpy as jnp

from jaxsae.kernels.sparse_adam.reference import moved
from jaxsae.kernels.sparse_grad.api import sparse_grad


def sparse_adam(W, mu, nu, values, indices, rows, lr, count, b1, b2, eps, transposed, sums="xla"):
    """See `jaxsae.kernels.sparse_adam.api.sparse_adam`; `sums` names the implementation of `sparse_grad`."""
    G = sparse_grad(values, indices, rows, W.shape[1 if transposed else 0], implementation=sums)[0]
    return moved(W, mu, nu, G.T if transposed else G, lr, count, b1, b2, eps)


def lazy_adam(
    W: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    last: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    rows: jax.Array,
    lr: jax.Array,
    count: jax.Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Lazy Adam: only rows that an entry names move.  Different mathematics from Adam, and much less memory traffic.

    Adam moves every row at every step, by what is left of its first moment.  Lazily a row rests while nothing names it
    and no such move is made, now or later.  Its *moments* are exact: when it is named again after dt steps they are
    first multiplied by b1^(dt-1) and b2^(dt-1), as dt - 1 steps with gradient 0 would have.  The cost scales with the
    number of entries B*K instead of the number of rows S; worth it where B*K is much less than S, as on one shard of a
    dictionary spread over many devices.

    Args:
        W, mu, nu: [S, E] f32.
        last: [S] int32, the step at which each row last moved, 0 before the first.
        values, indices, rows, lr, count, b1, b2, eps: as in `sparse_adam`.

    Returns:
        The new W, mu, nu, last.

    Example:
        >>> W, zero, last = jnp.ones((2, 1)), jnp.zeros((2, 1)), jnp.zeros(2, jnp.int32)
        >>> *_, last = lazy_adam(
        ...     W, zero, zero, last, jnp.array([[4.0]]), jnp.array([[1]]), jnp.array([[1.0]]), 0.5, jnp.int32(3)
        ... )
        >>> last.tolist()
        [0, 3]
    """
    size = len(W)
    touched = jnp.unique(indices, size=min(indices.size, size), fill_value=size)  # padded with S, which names no row
    place = jnp.searchsorted(touched, indices.astype(touched.dtype)).astype(jnp.int32)
    G = sparse_grad(values, place, rows, len(touched))[0]
    read = lambda table: table.at[touched].get(mode="fill", fill_value=0)  # noqa: E731
    rested = (count - 1 - read(last)).astype(jnp.float32)[:, None]
    new = moved(read(W), read(mu) * b1**rested, read(nu) * b2**rested, G, lr, count, b1, b2, eps)
    W, mu, nu = (t.at[touched].set(n, mode="drop") for t, n in zip((W, mu, nu), new, strict=True))
    return W, mu, nu, last.at[touched].set(count, mode="drop")
