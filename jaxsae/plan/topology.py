"""Devices to plan for: a TPU slice by its name, which needs libtpu but no TPU, or the devices of this machine."""

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxsae.errors import ConfigError, closest
from jaxsae.parallel import machine_bytes, memory_of
from jaxsae.plan.shapes import check_shape
from jaxsae.train import trace


@dataclass(frozen=True)
class Chip:
    """Data-sheet rates of one device; 0 where unknown.

    Attributes:
        name: as in the topology's name.
        memory: bytes that programs may use.
        flops: bf16 floating point operations per second.
        bandwidth: bytes per second from and to its memory.
        links: bytes per second that its links to other chips receive together.
        clock: cycles per second, as its rate and the shape of its matrix unit imply.
    """

    name: str
    memory: float = 0.0
    flops: float = 0.0
    bandwidth: float = 0.0
    links: float = 0.0
    clock: float = 0.0


#: Vendor pages, and jax's own table of chips; memory as the compiler states it.
CHIPS = {
    "v5e": Chip("v5e", 15.75 * 2**30, 197e12, 819e9, 200e9, 1.5e9),
    "v5p": Chip("v5p", 95.74 * 2**30, 459e12, 2765e9, 600e9, 1.75e9),
    "v6e": Chip("v6e", 31.25 * 2**30, 918e12, 1640e9, 448e9, 1.75e9),
}

#: Lets several processes compile at once, and saves looking for a TPU host.  Set only here, in a command that trains
#: nothing: on a real pod they would hide it.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Target:
    """What a plan is made for.

    Attributes:
        name: of the topology, or "local".
        devices: all it has.
        chip: rates of one.
        shared: bytes of a memory that all devices take theirs from, as CPUs do; 0 where each has its own.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip
    shared: float = 0.0

    def limit(self, used: int) -> float | None:
        """Bytes that programs may take on each of `used` devices; None where nothing tells."""
        return self.chip.memory or self.shared / used or None


def open_target(name: str) -> Target:
    """The devices of a topology.

    Args:
        name: "v5e:16x16", "v5p:2x2x1", "v6e:2x4" and the like, or "local".

    Raises:
        ConfigError: no such topology, or libtpu is missing; what to do is said.

    Example:
        >>> open_target("local").chip.name in ("cpu", "gpu", "tpu")
        True
    """
    if name == "local":
        devices = jax.devices()
        platform, own = devices[0].platform, float(memory_of(devices[0]) or 0)
        shared = float(machine_bytes() or 0) if platform == "cpu" else 0.0
        return Target(name, devices, Chip(platform, own), shared)
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", shape):
        hint = closest(kind, CHIPS) if kind not in CHIPS else ""
        raise ConfigError(
            f"no topology {name!r}{hint}; expected a chip ({', '.join(CHIPS)}) and a shape, such as v5e:16x16 or "
            "v5p:2x2x1, or local"
        )
    check_shape(kind, shape)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"planning for {name!r} needs libtpu (no TPU); pip install libtpu, or plan for local")
    try:
        found = tpu_devices(name)
    except Exception as e:
        why = " ".join(str(e).split())[:160]
        raise ConfigError(f"libtpu did not open {name!r} ({why}); a newer libtpu may") from e
    return Target(name, found, CHIPS[kind])


def tpu_devices(name: str) -> Sequence[Any]:
    """Devices of a topology that exist for libtpu's compiler alone; its errors are raised as they are."""
    from jax.experimental import topologies

    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    _leave_flags_libtpu_knows()
    if jax.default_backend() != "tpu":
        trace.forbid("this process has compiled for a TPU it does not have; train in a process of its own")
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def _leave_flags_libtpu_knows() -> None:
    """Takes those of CPUs and GPUs out of XLA_FLAGS: libtpu reads them when it compiles, and aborts at one it lacks."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    theirs = [f for f in flags if f.startswith(("--xla_cpu_", "--xla_gpu_"))]
    if theirs:
        jax.devices("cpu")  # jax has read the flags for its own compiler from here on
        os.environ["XLA_FLAGS"] = " ".join(f for f in flags if f not in theirs)
