"""From axis letters to shardings: the one table that places parameters, moments and trackers.

Mesh axes are `run` (members of a fleet), `data` (rows of the batch) and `latent` (the dictionary); all are Auto, so
that ordinary code runs under the partitioner.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.errors import ConfigError

#: Names of the mesh axes, outermost first: neighbours along `latent`, which talk most, are neighbours in the machine.
AXES = ("run", "data", "latent")
#: Which mesh axis an axis letter lies on; every other letter is whole on each device.
MESH_AXIS: dict[str, str | tuple[str, ...]] = {"N": "run", "B": "data", "S": "latent"}
#: The same for optimiser moments that are spread over the rows' devices too (ZeRO-1, Rajbhandari et al. 2020).
ZERO_AXIS = {**MESH_AXIS, "S": ("latent", "data")}


def make_mesh(data: int = 1, latent: int = 1, devices: Sequence[Any] | None = None, run: int = 1) -> Mesh:
    """A mesh of `run` x `data` x `latent` devices.

    Args:
        data: devices along the rows of the batch.
        latent: devices along the latents.
        devices: which ones, all of them; None for all there are.
        run: devices along the members of a fleet.

    Raises:
        ConfigError: it does not match the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if run * data * latent != len(devices):
        shape = f"data={data} x latent={latent}" if run == 1 else f"run={run} x data={data} x latent={latent}"
        raise ConfigError(
            f"a mesh of {shape} needs {run * data * latent} devices, found {len(devices)}; choose factors of "
            f"{len(devices)}, or leave them out"
        )
    grid = np.array(devices, dtype=object).reshape(run, data, latent)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh of several devices that the arrays of a tree lie on, or None.

    Example:
        >>> mesh_of({"w": np.ones(2)}) is None
        True
    """
    for leaf in jax.tree.leaves(tree):
        where = getattr(leaf, "sharding", None)
        if isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh) and where.mesh.size > 1:
            return where.mesh
    return None


def spec(letters: str, zero: bool = False) -> P:
    """The PartitionSpec of a leaf: `spec("DS")` is `P(None, "latent")`; with `zero` that of its moments."""
    return P(*((ZERO_AXIS if zero else MESH_AXIS).get(letter) for letter in letters))


def sharding(mesh: Mesh, letters: str, zero: bool = False) -> NamedSharding:
    """The placement of a leaf with these axis letters on a mesh."""
    return NamedSharding(mesh, spec(letters, zero))
