"""The k largest entries, approximately: one best per bin of columns.  Never a default; ask for it by name."""

import jax
import jax.numpy as jnp

from jaxsae.errors import ConfigError
from jaxsae.kernels._dispatch import check_k


def approx_topk(x: jax.Array, k: int, recall: float = 0.95) -> tuple[jax.Array, jax.Array]:
    """Most of the k largest entries per row, value descending, by `jax.lax.approx_max_k`.

    On a TPU each of L bins of strided columns keeps its maximum, and the best k of those are returned; an entry is
    lost where a larger one shares its bin.  L is chosen so that the expected share found is at least `recall` for
    entries spread evenly over the columns (Chern et al. 2022, "TPU-KNN"); `measured_recall` says what it was on
    data.  On other platforms jax computes the exact answer.

    Args:
        x: [B, S] real.
        k: how many.
        recall: expected share of the true k that is wanted, below 1.

    Returns:
        values [B, k] in the dtype of x, indices [B, k] int32.

    Raises:
        ConfigError: k or recall out of range.

    Example:
        >>> v, i = approx_topk(jnp.array([[1.0, 3.0, 2.0]]), 2)
        >>> i.tolist()
        [[1, 2]]
    """
    check_k("approx_topk", k, x.shape[-1])
    if not 0 < recall < 1:
        raise ConfigError(f"approx_topk: recall is a share between 0 and 1, found {recall}; topk finds all")
    return jax.lax.approx_max_k(x, k, recall_target=recall)


def expected_recall(k: int, bins: int) -> float:
    """Expected share of the k best that are the maximum of their bin, for entries spread evenly.

    The j-th best survives if none of the j - 1 better ones shares its bin: mean over j of (1 - 1/L)^(j - 1).

    Example:
        >>> round(expected_recall(32, 768), 3)
        0.98
    """
    return sum((1 - 1 / bins) ** j for j in range(k)) / k


def measured_recall(found: jax.Array, exact: jax.Array) -> jax.Array:
    """Share of `exact` indices [B, k] that occur in the same row of `found`: [].

    Example:
        >>> float(measured_recall(jnp.array([[1, 2]]), jnp.array([[2, 5]])))
        0.5
    """
    return jnp.mean(jnp.any(exact[:, :, None] == found[:, None, :], axis=2))
