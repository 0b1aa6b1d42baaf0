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
        parts: arrays [b, c] that belong to the candidates (values, global indices, ...); 32 bits wide.
        k: how many, at most c times the number of devices.
        shards: devices along `latent`.

    Returns:
        the parts [b, k] of the winners, score descending, ties by lowest global index: shards hold ascending latents
        and are concatenated in order, so the position among candidates breaks ties as the index would.
    """
    rows = score.shape[0]
    fill = -rows % shards
    # As words of 32 bits in one array, so that there is one exchange each way and no question of their order.
    score = score if score.dtype.itemsize == 4 else score.astype(jnp.float32)
    words = jnp.stack([jax.lax.bitcast_convert_type(a, jnp.uint32) for a in (score, *parts)])
    padded = jnp.pad(words, ((0, 0), (0, fill), (0, 0)))
    mine = jax.lax.all_to_all(padded, "latent", split_axis=1, concat_axis=2, tiled=True)
    best = topk_xla.topk(jax.lax.bitcast_convert_type(mine[0], score.dtype), k)[1]
    won = jnp.take_along_axis(mine[1:], best[None], axis=2)
    out = jax.lax.all_gather(won, "latent", axis=1, tiled=True)[:, :rows]
    return tuple(jax.lax.bitcast_convert_type(a, p.dtype) for a, p in zip(out, parts, strict=True))
