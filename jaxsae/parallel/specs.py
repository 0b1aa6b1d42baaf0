"""From axis letters to shardings: the one table that places parameters, moments and trackers.

Mesh axes are `data` (rows of the batch) and `latent` (the dictionary); both are Auto, so that ordinary code runs under
the partitioner.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.errors import ConfigError

#: Which mesh axis an axis letter lies on; every other letter is whole on each device.
MESH_AXIS = {"B": "data", "S": "latent"}


def make_mesh(data: int = 1, latent: int = 1, devices: list | None = None) -> Mesh:
    """A mesh of `data` x `latent` devices.

    Raises:
        ConfigError: it does not match the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data * latent != len(devices):
        raise ConfigError(
            f"a mesh of data={data} x latent={latent} needs {data * latent} devices, found {len(devices)}"
        )
    grid = np.array(devices).reshape(data, latent)
    return Mesh(grid, ("data", "latent"), axis_types=(AxisType.Auto, AxisType.Auto))


def spec(letters: str) -> P:
    """The PartitionSpec of a leaf: `spec("DS")` is `P(None, "latent")`."""
    return P(*(MESH_AXIS.get(letter) for letter in letters))


def sharding(mesh: Mesh, letters: str) -> NamedSharding:
    """The placement of a leaf with these axis letters on a mesh."""
    return NamedSharding(mesh, spec(letters))
