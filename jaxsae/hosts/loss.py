"""Next-token cross-entropy."""

import jax
import jax.numpy as jnp
from jax import Array, lax


@jax.jit
def cross_entropy(logits: Array, tokens: Array) -> Array:
    """Cross-entropy of each next token: `logsumexp(logits[b, t]) - logits[b, t, tokens[b, t + 1]]`, in nats.

    One window at a time, so that nothing of the size of the logits is made beside them, and their gradient is
    recomputed instead of kept.

    Args:
        logits: [B, T, V].
        tokens: [B, T], the tokens that went in.

    Returns:
        [B, T-1] float32, not reduced: entry t is the loss of predicting token t + 1 from tokens 0 to t.

    Example:
        >>> cross_entropy(jnp.zeros((1, 3, 8)), jnp.zeros((1, 3), int))
        Array([[2.0794415, 2.0794415]], dtype=float32)
    """
    return lax.map(lambda row: _window(*row), (logits, tokens))


@jax.checkpoint
def _window(logits: Array, tokens: Array) -> Array:
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, jnp.roll(tokens, -1)[:, None], axis=-1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=-1) - chosen)[:-1]  # dropped at the end: a slice of the logits is a copy
