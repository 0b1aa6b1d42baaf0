"""Views: how a batch of a source becomes training rows."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
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


@register("view.scored")
@dataclass(frozen=True)
class Scored:
    """Autoencoding with a number per row: as `Identity`, and batch["score"] [B] in `rows.extra["score"]`."""

    scored = True

    def __call__(self, batch: Batch, frozen: PyTree) -> Rows:
        if "score" not in batch:
            raise ConfigError("the view Scored reads batch['score'] [B]; add it to the source, or use Identity()")
        rows = Identity()(batch, frozen)
        return rows._replace(extra={"score": batch["score"].astype(jnp.float32)})
