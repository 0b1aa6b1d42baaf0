"""Meshes and placements.  Nothing in coders, terms or recipes knows of them."""

from jaxsae.parallel.in_force import shard, sizes, use
from jaxsae.parallel.specs import make_mesh, sharding, spec

__all__ = ["make_mesh", "shard", "sharding", "sizes", "spec", "use"]
