"""Meshes, placements and processes.  Nothing in coders, terms or recipes knows of them."""

from jaxsae.parallel.agree import StopVote, total
from jaxsae.parallel.choose import Chosen, MeshConfig, Need, choose_mesh, memory_of
from jaxsae.parallel.in_force import shard, sizes, use
from jaxsae.parallel.lost import lost, peer_lost
from jaxsae.parallel.processes import agree_on, barrier, count, exchange, first, gather, index, on_first, several
from jaxsae.parallel.specs import AXES, make_mesh, mesh_of, sharding, spec
from jaxsae.parallel.start import Place, start
from jaxsae.parallel.whole import machine_bytes, to_host

__all__ = [
    "AXES",
    "Chosen",
    "MeshConfig",
    "Need",
    "Place",
    "StopVote",
    "agree_on",
    "barrier",
    "choose_mesh",
    "count",
    "exchange",
    "first",
    "gather",
    "index",
    "lost",
    "machine_bytes",
    "make_mesh",
    "memory_of",
    "mesh_of",
    "on_first",
    "peer_lost",
    "several",
    "shard",
    "sharding",
    "sizes",
    "spec",
    "start",
    "to_host",
    "total",
    "use",
]
