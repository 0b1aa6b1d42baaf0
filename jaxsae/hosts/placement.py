"""Where a host's weights lie on a mesh: the usual split of a decoder over devices.

Every weight names its axes by letters (`Llama.axes`):

    L  blocks          H  query heads          M  hidden units of the MLP
    D  d_model         G  heads of keys and values          V  vocabulary

H, G, M and V are cut over the mesh axis `latent`, in whole heads, where their number divides by its devices; all else
is whole on each.  So the first matrix of attention and of the MLP is cut along its outputs and the last one along its
inputs, and a block needs two sums over the devices (Shoeybi et al., arXiv:1909.08053).  XLA finds these by itself: the
forward pass is the same code on one device and on many.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from jaxsae import parallel
from jaxsae.hosts.host import Host
from jaxsae.hosts.llama import Llama

#: A mesh, or what gives one as soon as the model is known and before its weights are read; None: the default device.
MeshFor = Mesh | Callable[[Llama], Mesh | None] | None


def cut(model: Llama, devices: int) -> dict[str, bool]:
    """Which letters are cut into so many parts.

    Example:
        >>> model = Llama(n_layers=1, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, vocab_size=257)
        >>> cut(model, 4)
        {'H': True, 'G': False, 'M': True, 'V': False}
    """
    counts = {"H": model.n_heads, "G": model.n_kv_heads, "M": model.d_mlp, "V": model.vocab_size}
    return {letter: devices > 1 and count % devices == 0 for letter, count in counts.items()}


def placements(model: Llama, mesh: Mesh) -> Any:
    """The sharding of every leaf of the parameters: `model.axes()` with shardings in place of letters."""
    spread = cut(model, mesh.shape["latent"])

    def one(letters: str) -> Any:
        return parallel.sharding(mesh, "".join("S" if spread.get(letter) else letter for letter in letters))

    return jax.tree.map(one, model.axes())


def device_bytes(model: Llama, devices: int, itemsize: int) -> int:
    """Bytes of weights on each device, where they are cut into so many parts."""
    spread = cut(model, devices)

    def one(letters: str, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * itemsize // (devices if any(map(spread.get, letters)) else 1)

    return sum(jax.tree.leaves(jax.tree.map(one, model.axes(), model.shapes())))


def mesh_of(mesh: MeshFor, model: Llama) -> Mesh | None:
    """The mesh itself."""
    return mesh if mesh is None or isinstance(mesh, Mesh) else mesh(model)


def place(host: Host, mesh: Mesh) -> Host:
    """The host with its weights on a mesh; weights that lie there already are not moved.

    Args:
        host: the host.
        mesh: with the axes `data` and `latent` (`jaxsae.parallel.make_mesh`).

    Example:
        >>> from jaxsae.testing.tiny_host import tiny_host
        >>> mesh = parallel.make_mesh(1, 1, jax.devices()[:1])
        >>> place(tiny_host(), mesh).params["embed"].sharding.is_fully_replicated
        True
    """
    where = parallel.sharding(mesh, "") if mesh.shape["latent"] == 1 else placements(host.model, mesh)
    return dataclasses.replace(host, params=jax.device_put(host.params, where))
