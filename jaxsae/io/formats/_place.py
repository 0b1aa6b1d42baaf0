"""Arrays from files to devices: one at a time, each device getting only its part."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsae.sae import SAE

#: The mesh axis that shards an axis letter.
LATENT_AXIS = "latent"


def place(sae: SAE, mesh: Mesh | None = None) -> SAE:
    """The dictionary with its numpy arrays handed to jax.

    Without a mesh on CPU the memory that was read into becomes the array's own.  With one, arrays whose axis letters
    include S are split along the mesh axis `latent`, the others are replicated; a split that does not divide evenly
    is replicated too.
    """
    letters = letters_of(sae)
    params = dict(sae.params)
    for name in list(params):
        array = params.pop(name)
        params[name] = jax.device_put(array, None if mesh is None else _sharding(mesh, letters.get(name, ""), array))
        del array
    return replace(sae, params=params)


def letters_of(sae: SAE) -> Mapping[str, str]:
    """Axis letters of every array, as the slots declare them."""
    return {**sae.norm.axes, **sae.encoder.axes, **sae.dictionary.axes, **sae.readout.axes}


def _sharding(mesh: Mesh, letters: str, array: Any) -> NamedSharding:
    size = mesh.shape.get(LATENT_AXIS, 1)
    parts = [LATENT_AXIS if c == "S" and n % size == 0 else None for c, n in zip(letters, array.shape, strict=False)]
    return NamedSharding(mesh, PartitionSpec(*parts) if size > 1 else PartitionSpec())
