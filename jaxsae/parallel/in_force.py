"""The mesh in force: set by whoever runs a program, looked at by the kernels, and by nobody in between.

The one file that knows how jax's mesh API changed between the versions we support.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh


def use(mesh: Mesh | None) -> Any:
    """A context in which `mesh` is in force; None changes nothing.

    Trace and call compiled programs inside it: the mesh is part of what `jit` caches by.

    Example:
        >>> from jaxsae.parallel import make_mesh, sizes
        >>> with use(make_mesh(1, 1, jax.devices()[:1])):
        ...     sizes()
        {}
    """
    if mesh is None:
        return contextlib.nullcontext()
    set_mesh: Any = getattr(jax, "set_mesh", None) or jax.sharding.use_mesh  # type: ignore[attr-defined]
    return set_mesh(mesh)


def sizes() -> dict[str, int]:
    """Axes of the mesh in force that have more than one device and are the partitioner's: {axis: devices}.

    Inside a `shard_map` its axes are manual, so an op that is called there does not wrap itself once more.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh is None or mesh.empty:
        return {}
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in axes if kind == AxisType.Auto and size > 1}


def device() -> tuple[str, str] | None:
    """(platform, kind) of the devices of the mesh in force; None without a mesh, or where this jax does not tell."""
    mesh = jax.sharding.get_abstract_mesh()
    told: Any = None if mesh is None or mesh.empty else getattr(mesh, "abstract_device", None)
    return (told.platform, told.device_kind) if hasattr(told, "platform") else None


def shard(f: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`f` run on every device of the mesh in force on its own parts; collectives inside go by axis name.

    One program, also where nobody compiles the caller: `shard_map` alone would then compile every operation inside `f`
    by itself, for all devices, and those in branches and loops again at every call.  Inside `jit` it changes nothing.
    """
    return jax.jit(jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False), inline=True)
