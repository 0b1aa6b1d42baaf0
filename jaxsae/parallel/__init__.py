"""Meshes and placements.  Nothing in coders, terms or recipes knows of them."""

from jaxsae.parallel.choose import Chosen, MeshConfig, Need, choose_mesh
from jaxsae.parallel.in_force import shard, sizes, use
from jaxsae.parallel.specs import AXES, make_mesh, sharding, spec

__all__ = [
    "AXES",
    "Chosen",
    "MeshConfig",
    "Need",
    "choose_mesh",
    "make_mesh",
    "shard",
    "sharding",
    "sizes",
    "spec",
    "use",
]
