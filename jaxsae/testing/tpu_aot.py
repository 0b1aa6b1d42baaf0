"""Compiling for a TPU that is not there: libtpu knows every chip, so a CPU can compile, and measure memory, for one.

Nothing runs: these functions show that a program compiles for a chip, what memory it takes, and what code came out.
They set environment variables of libtpu, which would break a real TPU pod; so only tests and tools may call them.
"""

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsae.errors import ConfigError, closest
from jaxsae.plan.measure import compile_and_read
from jaxsae.plan.topology import tpu_devices

#: The smallest topology of each chip that libtpu opens without a TPU.
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}

#: Shapes at which the kernels are compiled: rows, width, latents and latents kept.
SHAPES = {
    "A": {"B": 8192, "D": 768, "S": 24576, "k": 32},
    "B": {"B": 4096, "D": 2304, "S": 65536, "k": 64},
    "C": {"B": 4096, "D": 4096, "S": 131072, "k": 64},
}


def missing() -> str | None:
    """Why nothing can be compiled for a TPU here, or None if it can.

    Example:
        >>> missing() is None or isinstance(missing(), str)
        True
    """
    if importlib.util.find_spec("libtpu") is None:
        return "libtpu is not installed"
    platforms = getattr(jax.config, "jax_platforms")  # noqa: B009 - an attribute that type stubs lack
    if not platforms or "tpu" in platforms:
        return "JAX_PLATFORMS must name the platforms to use, without tpu (for example cpu)"
    return None


def libtpu_version() -> str:
    """Of the installed compiler."""
    return importlib.metadata.version("libtpu")


@cache
def _devices(topology: str) -> tuple[Any, ...]:
    return tuple(tpu_devices(topology))


def mesh(chip: str, shape: Sequence[int] = (1,), axes: Sequence[str] = ("x",)) -> Mesh:
    """A mesh of devices that exist only for the compiler.

    Args:
        chip: a key of `CHIPS`, for up to four chips, or a topology such as "v5e:16x16".
        shape: of the mesh; the first devices of the topology are taken.
        axes: a name for each dimension of `shape`.

    Raises:
        ConfigError: nothing can be compiled here, an unknown chip, or a topology with too few devices.
    """
    if reason := missing():
        raise ConfigError(f"cannot compile for a TPU: {reason}")
    if ":" not in chip and chip not in CHIPS:
        raise ConfigError(f"unknown chip {chip!r}{closest(chip, CHIPS)}")
    devices = _devices(CHIPS.get(chip, chip))
    need = int(np.prod(shape))
    if need > len(devices):
        raise ConfigError(f"{chip} offers {len(devices)} devices, a mesh of shape {tuple(shape)} needs {need}")
    return Mesh(np.array(devices[:need]).reshape(shape), tuple(axes))


def compile_for(chip: str, f: Callable, *args: Any, donate: tuple[int, ...] = ()) -> Any:
    """`f` compiled for one chip at abstract shapes; an error of the compiler is raised as it is.

    Args:
        chip: a key of `CHIPS`.
        f: function of arrays.
        args: trees of arrays or `jax.ShapeDtypeStruct`.
        donate: positions of arguments whose buffers may be reused.

    Returns:
        The compiled program, with `memory_analysis()`; for its text see `text_for`.
    """
    return lower_for(chip, f, *args, donate=donate).compile()


def text_for(chip: str, f: Callable, *args: Any, donate: tuple[int, ...] = ()) -> tuple[Any, str]:
    """The compiled program and its text, arguments as in `compile_for`: jax cannot print every program itself."""
    return compile_and_read(lower_for(chip, f, *args, donate=donate), "tpu")


def lower_for(chip: str, f: Callable, *args: Any, donate: tuple[int, ...] = ()) -> Any:
    """`f` lowered for one chip, arguments as in `compile_for`; its text names the kernels inside."""
    one = mesh(chip)
    whole = NamedSharding(one, PartitionSpec())
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), args)
    with on_chip(one):
        return jax.jit(f, out_shardings=whole, donate_argnums=donate).lower(*abstract)


def on_chip(one: Mesh) -> contextlib.AbstractContextManager:
    """Tracing inside sees the chips of the mesh, not the CPU that compiles: kernels read memory sizes from it."""
    return jax.sharding.use_abstract_mesh(one.abstract_mesh)


def temporary_bytes(compiled: Any) -> int:
    """Memory that a compiled program needs beside its arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes
