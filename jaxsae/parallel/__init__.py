"""Meshes and placements.  Nothing in coders, terms or recipes knows of them."""

from jaxsae.parallel.specs import make_mesh, sharding, spec

__all__ = ["make_mesh", "sharding", "spec"]
