"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, version 6 and before, finished and in training."""

from pathlib import Path
from typing import Any

from jaxsae.io.formats import _sae_lens_read, _sae_lens_write
from jaxsae.io.formats._base import Config, Notes
from jaxsae.io.formats._listing import Listing
from jaxsae.io.formats._sae_lens_old import modernised
from jaxsae.sae import SAE

NAME = "sae_lens"
TITLE = "SAELens folder (v6; reads v5 and older)"
OPTIONS = ("selection", "norm_scaling_factor", "overrides")
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def recognises(listing: Listing) -> bool:
    """Both file names; the configuration decides the rest."""
    return CONFIG in listing and WEIGHTS in listing


def load(listing: Listing, options: dict[str, Any]) -> SAE:
    """Reads a folder of any version.

    Args:
        listing: the folder.
        options: `selection`, "batch" (what the peer's training class computes) or "threshold" (what it exports), for
            training checkpoints of the batch top-k family; `norm_scaling_factor`, for a folder whose author left the
            factor of expected_average_only_in out of the weights; `overrides`, configuration values that replace
            those of the file.
    """
    config = listing.config(CONFIG)
    if "overrides" in options:
        config = Config(config.file, {**config, **options["overrides"]})
    config = modernised(config, listing.arrays(WEIGHTS))
    return _sae_lens_read.build(listing, config, listing.arrays(WEIGHTS), options)


def save(sae: SAE, path: Path, notes: Notes) -> None:
    """Writes a version 6 folder."""
    _sae_lens_write.write(sae, path, notes)
