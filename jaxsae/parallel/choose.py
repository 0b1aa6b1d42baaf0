"""Which mesh: as configured, and where that is left open, the one that talks least among those that fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jax.sharding import Mesh

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.parallel.processes import require_alike
from jaxsae.parallel.specs import make_mesh

#: Bytes per parameter of a training state in f32 with Adam: weight, two moments and the gradient.
STATE_BYTES = 16
#: Share of a device's memory that these may take; the rest is for codes, rows and the compiler.
USABLE = 0.75


@dataclass(frozen=True)
class Need:
    """What a training step needs a mesh for.

    Attributes:
        d_in: width of a row.
        d_sae: number of latents.
        rows: of a global batch.
        members: runs of a fleet, each with a state of its own.
    """

    d_in: int
    d_sae: int
    rows: int
    members: int = 1

    @property
    def state_bytes(self) -> int:
        return STATE_BYTES * 2 * self.d_in * self.d_sae * self.members

    def traffic(self, data: int, latent: int) -> float:
        """Bytes a device receives per step, by ring sums: gradients over `data`, reconstructions over `latent`."""
        gradients = 2 * (1 - 1 / data) * 8 * self.d_in * self.d_sae / latent
        reconstructions = 2 * (1 - 1 / latent) * 4 * self.d_in * self.rows / data
        return self.members * (gradients + reconstructions)


@register("mesh")
@dataclass(frozen=True)
class MeshConfig:
    """How a run is spread over the devices; what is left out is chosen, and the reason printed.

    Attributes:
        data: devices along the rows of the batch; None to choose.
        latent: devices along the latents; None to choose.
        run: devices along the members of a sweep; None to choose.
        zero: spread the optimiser's moments over the devices of `data` too (ZeRO-1).
    """

    data: int | None = None
    latent: int | None = None
    run: int | None = None
    zero: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "latent", "run"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"config key 'mesh.{name}' must be above 0, found {value}")

    @property
    def asks(self) -> bool:
        """Whether a number of devices is asked for."""
        return self.data is not None or self.latent is not None or (self.run or 1) > 1


@dataclass(frozen=True)
class Chosen:
    """A mesh and why it is this one."""

    mesh: Mesh
    reason: str

    def __str__(self) -> str:
        shape = self.mesh.shape
        run = f"run {shape['run']} x " if shape["run"] > 1 else ""
        return f"mesh {run}data {shape['data']} x latent {shape['latent']}: {self.reason}"


def choose_mesh(config: MeshConfig, need: Need, devices: Sequence[Any], memory: float | None = None) -> Chosen:
    """The mesh of a run.

    Members of a fleet share nothing, so if the devices divide them evenly, each device gets members of its own.

    Args:
        config: what is fixed.
        need: sizes of the training step.
        devices: all devices there are.  Several CPU devices of one process are only used where the configuration asks
            for them: they share the cores that one of them uses already.
        memory: bytes of one device, if known.

    Raises:
        ConfigError: the mesh does not match the devices, or the latents or the batch do not divide by it; the nearest
            sizes are named.

    Example:
        >>> import jax
        >>> found = choose_mesh(MeshConfig(), Need(d_in=8, d_sae=64, rows=32), jax.devices()[:1])
        >>> found.mesh.size, found.reason
        (1, 'there is one device')
    """
    require_alike(devices)
    several = len({d.process_index for d in devices}) > 1
    if several:  # a process holds adjacent rows of a batch, whatever the order of the numbers in the machine
        devices = sorted(devices, key=lambda d: (d.process_index, d.id))
    count = len(devices)
    if count > 1 and devices[0].platform == "cpu" and not config.asks and not several:
        return _checked(1, 1, 1, need, devices[:1], "CPU devices share one machine, one of them uses it", False)
    run = _runs(config, need, count)
    each, need = count // run, replace(need, members=need.members // run)
    if config.data and config.latent:
        return _checked(config.data, config.latent, run, need, devices, "as the configuration says", config.zero)
    require_factor(config, each)
    if each == 1:
        told = "there is one device" if run == 1 else "members of a sweep share nothing but the batch"
        return _checked(1, 1, run, need, devices, told, config.zero)
    possible = [(d, each // d) for d in range(1, each + 1) if each % d == 0 and _divides(d, each // d, config, need)]
    if not possible:
        if config.data or config.latent:  # the fixed factor is to blame: its own check names the nearest sizes
            data = config.data or each // (config.latent or 1)
            return _checked(data, config.latent or each // data, run, need, devices, "", config.zero)
        raise ConfigError(
            f"no mesh of {each} devices divides d_sae = {need.d_sae} and a batch of {need.rows} rows; "
            f"take d_sae = {nearest(need.d_sae, each)}"
        )
    fitting = [m for m in possible if memory is None or need.state_bytes / m[1] <= USABLE * memory] or possible[:1]
    data, latent = min(fitting, key=lambda m: need.traffic(*m))
    return _checked(data, latent, run, need, devices, _reason(need, data, latent, possible, fitting), config.zero)


def require_factor(config: Any, count: int) -> None:
    """What is fixed of data and latent must divide the devices, of which the rest is chosen."""
    for name in ("data", "latent"):
        if count % (getattr(config, name) or 1):
            raise ConfigError(
                f"mesh.{name} = {getattr(config, name)} does not divide the {count} devices; choose a factor of "
                f"{count}, or leave it out"
            )


def _runs(config: MeshConfig, need: Need, count: int) -> int:
    """Devices along the members of a fleet."""
    if config.run is None:
        alone = config.data is None is config.latent and need.members % count == 0
        return count if alone else 1
    if need.members % config.run:
        what = f"the {need.members} runs of this sweep" if need.members > 1 else "one run, which is no sweep,"
        raise ConfigError(
            f"{what} cannot be spread over mesh.run = {config.run} devices; expected a divisor, or leave it out"
        )
    if count % config.run:
        raise ConfigError(f"a mesh with run={config.run} needs a multiple of {config.run} devices, found {count}")
    return config.run


def _divides(data: int, latent: int, config: MeshConfig, need: Need) -> bool:
    fixed = config.data in (None, data) and config.latent in (None, latent)
    return fixed and need.rows % data == 0 and need.d_sae % (latent * (data if config.zero else 1)) == 0


def _reason(need: Need, data: int, latent: int, possible: list, fitting: list) -> str:
    told = f"a device receives about {need.traffic(data, latent) / 1e6:.3g} MB per step, the least of "
    told += f"{len(fitting)} possible meshes"
    if len(fitting) < len(possible):
        told += f"; {len(possible) - len(fitting)} more do not leave room for {need.state_bytes / 1e9:.3g} GB of state"
    return told


def memory_of(device: Any) -> int | None:
    """Bytes that programs may use on a device, where it tells (CPUs do not: they share the machine's)."""
    stats = device.memory_stats() if device.platform in ("gpu", "tpu") else None
    return (stats or {}).get("bytes_limit")


def nearest(size: int, factor: int) -> str:
    """The multiples of `factor` around `size`, for messages."""
    below = size // factor * factor
    return " or ".join(str(n) for n in (below, below + factor) if n > 0)


def _checked(data: int, latent: int, run: int, need: Need, devices: Sequence[Any], reason: str, zero: bool) -> Chosen:
    mesh = make_mesh(data, latent, devices, run)
    check_divides(mesh, need.d_sae, need.rows, zero)
    return Chosen(mesh, reason)


def check_divides(mesh: Mesh, d_sae: int, rows: int, zero: bool = False) -> None:
    """Refuses a mesh whose axes do not divide the latents, the rows of a batch or, with `zero`, the moments.

    Raises:
        ConfigError: which does not divide; the nearest sizes are named.
    """
    data, latent = mesh.shape.get("data", 1), mesh.shape.get("latent", 1)
    if d_sae % latent:
        raise ConfigError(
            f"d_sae = {d_sae} cannot be spread over latent = {latent} devices; expected a multiple, the nearest "
            f"are {nearest(d_sae, latent)}"
        )
    if rows % data:
        raise ConfigError(
            f"a batch of {rows} rows cannot be spread over data = {data} devices; expected a multiple, the "
            f"nearest are {nearest(rows, data)}"
        )
    if zero and d_sae % (latent * data):
        raise ConfigError(
            f"with zero, the moments of d_sae = {d_sae} latents are spread over {latent * data} devices; expected "
            f"a multiple, the nearest are {nearest(d_sae, latent * data)}"
        )
