"""Which mesh a host runs on: as configured, and where that is left open, its weights cut no further than need be.

Windows of a batch share nothing, so devices along `data` cost no traffic; cutting the weights costs two sums per block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.hosts.llama import Llama
from jaxsae.hosts.placement import cut, device_bytes
from jaxsae.parallel import Chosen, make_mesh, memory_of
from jaxsae.parallel.choose import USABLE, nearest

#: Bytes of a device that does not tell its memory: those of the smallest accelerators (a core of a TPU v2 or v3).
ASSUMED = 8e9


@register("host_mesh")
@dataclass(frozen=True)
class HostMesh:
    """How a host is spread over the devices of a process; what is left out is chosen, and the reason printed.

    Attributes:
        data: devices along the windows of a batch; None to choose.
        latent: devices over which heads, MLP and vocabulary are cut; None to choose.
    """

    data: int | None = None
    latent: int | None = None

    def __post_init__(self) -> None:
        for name in ("data", "latent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"config key 'mesh.{name}' must be above 0, found {value}")

    @property
    def asks(self) -> bool:
        """Whether a number of devices is asked for."""
        return self.data is not None or self.latent is not None


def choose_mesh(
    config: HostMesh,
    model: Llama,
    dtype: str,
    batch_size: int,
    devices: Sequence[Any] | None = None,
    memory: float | None = None,
) -> Chosen:
    """The mesh of a host.

    The weights are cut over as few devices as leave room for them; the other devices take windows of their own, as far
    as their number divides the batch.

    Args:
        config: what is fixed.
        model: its shape.
        dtype: of the weights.
        batch_size: windows per forward pass.
        devices: which ones; None for all of this process, several CPU devices only where the configuration asks for
            them (they share the cores that one of them uses already).
        memory: bytes of one device; None asks the device.

    Raises:
        ConfigError: the mesh does not match the devices, the batch does not divide by `data`, or neither heads nor MLP
            divide by `latent`.

    Example:
        >>> from jaxsae.testing.tiny_host import tiny_host
        >>> choose_mesh(HostMesh(), tiny_host().model, "float32", 16, jax.devices()[:1]).reason
        'there is one device'
    """
    found = list(jax.local_devices() if devices is None else devices)
    if devices is None and found[0].platform == "cpu" and len(found) > 1 and not config.asks:
        return Chosen(make_mesh(1, 1, found[:1]), "CPU devices share one machine, one of them uses it")
    if len(found) == 1 and not config.asks:
        return Chosen(make_mesh(1, 1, found), "there is one device")
    fixed = (config.data or 1) * (config.latent or 1)
    if len(found) % fixed or (config.data and config.latent and fixed != len(found)):
        make_mesh(config.data or 1, config.latent or 1, found)  # its own sentence says what is wrong
    if config.data and batch_size % config.data:
        raise ConfigError(
            f"batch_size = {batch_size} windows cannot be spread over mesh.data = {config.data} devices; expected a "
            f"multiple, the nearest are {nearest(batch_size, config.data)}"
        )
    latent, reason = _latent(config, model, dtype, len(found), memory or memory_of(found[0]) or ASSUMED)
    rest = len(found) // latent
    data = config.data or max(n for n in _divisors(rest) if batch_size % n == 0)
    if data < rest:
        reason += f"; {len(found) - data * latent} devices are idle, a batch of {batch_size} does not divide by {rest}"
    return Chosen(make_mesh(data, latent, found[: data * latent]), reason + _left_whole(model, latent))


def _latent(config: HostMesh, model: Llama, dtype: str, count: int, memory: float) -> tuple[int, str]:
    """Devices over which the weights are cut, and why."""
    if config.latent or config.data:
        latent = config.latent or count // (config.data or 1)
        if not _useful(model, latent):
            fitting = [n for n in _divisors(count) if _useful(model, n)]
            raise ConfigError(
                f"neither the {model.n_heads} heads nor the MLP of {model.d_mlp} units can be spread over mesh.latent "
                f"= {latent} devices; expected {' or '.join(map(str, fitting))}"
            )
        return latent, "as the configuration says"
    if not hasattr(model, "axes"):
        return 1, "this model does not name the axes of its weights, so that they are whole on each device"
    sizes = [n for n in _divisors(count) if _useful(model, n)]
    need = {n: device_bytes(model, n, np.dtype(dtype).itemsize) for n in sizes}
    fitting = [n for n in sizes if need[n] <= USABLE * memory]
    latent = min(fitting) if fitting else min(sizes, key=lambda n: need[n])
    told = f"{need[latent] / 1e9:.3g} GB of weights on a device of {memory / 1e9:.3g} GB"
    return latent, told if fitting else f"{told}, too much, but no mesh of {count} devices cuts them further"


def _useful(model: Llama, devices: int) -> bool:
    """Whether more than the vocabulary is cut by so many devices."""
    spread = cut(model, devices)
    return devices == 1 or spread["H"] or spread["M"]


def _left_whole(model: Llama, latent: int) -> str:
    if latent == 1:
        return ""
    names = {
        "H": f"{model.n_heads} heads",
        "G": f"{model.n_kv_heads} KV heads",
        "M": f"MLP of {model.d_mlp}",
        "V": f"vocabulary of {model.vocab_size}",
    }
    whole = [names[letter] for letter, spread in cut(model, latent).items() if not spread]
    return f"; whole on each device, as they do not divide by {latent}: {', '.join(whole)}" if whole else ""


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
