"""Views: how a batch of a source becomes training rows."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.sae.records import Rows
from jaxsae.typing import Batch, PyTree


@register("view.identity")
@dataclass(frozen=True)
class Identity:
    """Autoencoding: y = x = batch["x"] [B, D].  `batch["mask"]` [B] marks padded rows with 0."""

    def __call__(self, batch: Batch, frozen: PyTree) -> Rows:
        x = batch["x"]
        mask = batch["mask"] if "mask" in batch else jnp.ones(len(x), jnp.float32)
        return Rows(x, x, mask, None)
