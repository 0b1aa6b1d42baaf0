"""The best of all shards from the best of each: only candidates travel, each twice.

First every device gets the candidates of its share of the rows from all others (all-to-all), and ranks them; then the
winners are handed out (all-gather).  A device receives 2 x B x k entries in all, however many devices there are, where
an all-gather of candidates would bring B x k from each.
"""

import jax
import jax.numpy as jnp

from jaxsae.kernels.topk import xla as topk_xla


def merge(score: jax.Array, parts: tuple[jax.Array, ...], k: int, shards: int) -> tuple[jax.Array, ...]:
    """Inside `shard`: the k best entries of every row over all devices of `latent`.

    Args:
        score: [b, c] of this device's candidates, sorted as `topk` sorts them, c <= k.
        parts: arrays [b, c] that belong to the candidates (values, global indices, ...).
        k: how many, at most c times the number of devices.
        shards: devices along `latent`.

    Returns:
        the parts [b, k] of the winners, score descending, ties by lowest global index: shards hold ascending latents
        and are concatenated in order, so the position among candidates breaks ties as the index would.
    """
    rows = score.shape[0]
    fill = -rows % shards
    padded = [jnp.pad(a, ((0, fill), (0, 0))) for a in (score, *parts)]
    mine = [jax.lax.all_to_all(a, "latent", split_axis=0, concat_axis=1, tiled=True) for a in padded]
    best = topk_xla.topk(mine[0], k)[1]
    won = [jnp.take_along_axis(a, best, axis=1) for a in mine[1:]]
    return tuple(jax.lax.all_gather(a, "latent", axis=0, tiled=True)[:rows] for a in won)
