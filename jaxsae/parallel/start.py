"""Joins the processes of one run, before jax looks at any device.

Where the processes are told of each other by JAXSAE_COORDINATOR, JAXSAE_PROCESS_COUNT and JAXSAE_PROCESS_ID (or by
arguments), these count; else jax's own detection of Cloud TPU slices, GKE and Slurm does.  One process on one machine
needs nothing and gets nothing.
"""

import glob
import hashlib
import inspect
import logging
import os
import pathlib
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from jaxsae.errors import ConfigError, ConfigWarning
from jaxsae.parallel.agree import require_the_same
from jaxsae.parallel.lost import AGAIN, watch

#: Environment variable -> what it says.
COORDINATOR, COUNT, INDEX = "JAXSAE_COORDINATOR", "JAXSAE_PROCESS_COUNT", "JAXSAE_PROCESS_ID"
#: Seconds after which a process that sends no sign of life is given up by the others (jax's default is 100).
HEARTBEAT_SECONDS = 60
#: Seconds for all processes to come together.
START_SECONDS = 300
#: Packages whose versions have to be equal.
PACKAGES = ("jaxsae", "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")
#: Environment variables that change compiled programs.
SETTINGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")
#: What jax calls the clusters that are recognised.
CLUSTERS = {"slurm": "Slurm", "gketpu": "a TPU slice of GKE", "gcetpu": "a Cloud TPU slice"}


@dataclass(frozen=True)
class Place:
    """Which process of a run this is.

    Attributes:
        index: its number, from 0.
        count: of how many.
        told_by: who said so.
    """

    index: int = 0
    count: int = 1
    told_by: str = "one process"


def start(
    coordinator: str | None = None,
    count: int | str | None = None,
    index: int | str | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
) -> Place:
    """Joins the processes of this run; call it before anything touches a device.

    From then on the processes watch each other: where one dies, the others end with a sentence and status 75.  One that
    leaves by `os._exit` counts as dead.

    Args:
        coordinator: host:port of process 0, as all of them reach it; None for the environment's or the cluster's.
        count: how many processes there are.
        index: which one this is.
        facts: plain data that has to be the same on all processes: the command and its configuration.  The versions of
            the packages are compared too.

    Returns:
        Which process this is, and of how many.

    Raises:
        ConfigError: the three are not given together or are impossible; another process has other facts or versions.

    Example:
        >>> start()
        Place(index=0, count=1, told_by='one process')
    """
    place, options = where(coordinator, count, index)
    if place.count == 1 or jax.distributed.is_initialized():
        return place
    _join(place, options)
    watch()
    if place.index:
        warnings.simplefilter("ignore", ConfigWarning)  # process 0 tells
        for name in ("jaxsae", "absl"):
            logging.getLogger(name).setLevel(logging.ERROR)
    require_the_same({**versions(), "processes": place.count, **(facts or {})}, place.index, place.count)
    return place


def where(
    coordinator: str | None = None, count: int | str | None = None, index: int | str | None = None
) -> tuple[Place, dict[str, Any]]:
    """Which process this is, and what jax has to be told to join the others.

    Raises:
        ConfigError: see `start`.
    """
    names = {"coordinator": COORDINATOR, "process count": COUNT, "process id": INDEX}
    given = dict(zip(names, (coordinator, count, index), strict=True))
    given = {k: os.environ.get(names[k]) or None if v is None else v for k, v in given.items()}
    missing = [f"{k} ({names[k]})" for k, v in given.items() if v is None]
    if missing and len(missing) < len(given):
        raise ConfigError(
            f"for a run of several processes, expected coordinator, process count and process id together; missing: "
            f"{', '.join(missing)}"
        )
    if missing:
        found = cluster()
        return (Place(), {}) if found is None else (found, {})
    n, i = _number("process count", given["process count"], 1), _number("process id", given["process id"], 0)
    host, _, port = str(given["coordinator"]).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"the coordinator must be host:port of process 0, found {given['coordinator']!r}")
    if i >= n:
        raise ConfigError(f"the process id must be from 0 to {n - 1} for {n} processes, found {i}")
    address = f"{host}:{port}"
    return Place(i, n, address), {"coordinator_address": address, "num_processes": n, "process_id": i}


def _number(name: str, value: Any, least: int) -> int:
    if (isinstance(value, int) or (isinstance(value, str) and value.strip().isdigit())) and int(value) >= least:
        return int(value)
    raise ConfigError(f"the {name} must be a whole number from {least} on, found {value!r}")


def cluster() -> Place | None:
    """The place in a cluster that jax recognises and that runs several processes; else None."""
    from jax._src import clusters

    for env in clusters.ClusterEnv._cluster_types:
        name = getattr(env, "name", "")
        if name not in CLUSTERS or (name == "gcetpu" and not _has_tpu()):
            continue  # the question whether this is a Cloud TPU VM goes over the network: only where there are chips
        if env.is_env_present() and (count := env.get_process_count()) > 1:
            return Place(env.get_process_id(), count, CLUSTERS[name])
    return None


def _has_tpu() -> bool:
    others = os.environ.get("JAX_PLATFORMS", "tpu")
    return "tpu" in others and bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def _join(place: Place, options: dict[str, Any]) -> None:
    limit = _seconds("JAXSAE_START_SECONDS", START_SECONDS)
    heartbeat = _seconds("JAXSAE_HEARTBEAT_SECONDS", HEARTBEAT_SECONDS)
    options = options | {"initialization_timeout": 2 * limit, "heartbeat_timeout_seconds": heartbeat}
    known = inspect.signature(jax.distributed.initialize).parameters
    before = signal.getsignal(signal.SIGTERM) if threading.current_thread() is threading.main_thread() else None
    with _at_most(limit, place):
        jax.distributed.initialize(**{k: v for k, v in options.items() if k in known})
    if before is not None:  # jax takes SIGTERM over for a service of its own, and then nobody else sees it
        signal.signal(signal.SIGTERM, before)


def _seconds(name: str, otherwise: int) -> int:
    """A limit from the environment."""
    return _number(f"environment variable {name}", os.environ.get(name) or otherwise, 1)


@contextmanager
def _at_most(seconds: int, place: Place) -> Iterator[None]:
    """Ends the process with a sentence where jax would abort it with a stack trace."""

    def give_up() -> None:
        text = (
            f"the {place.count} processes did not all come together within {seconds} s (told by {place.told_by}; this "
            f"is process {place.index}); start each of 0 to {place.count - 1} exactly once, where it reaches process 0"
        )
        os.write(2, f"jaxsae: error: {text}\n".encode())
        os._exit(AGAIN)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def versions() -> dict[str, Any]:
    """Everything besides the configuration that decides which programs a process compiles and which files it writes.

    The files of jaxsae are compared too: a table of kernels tuned on one machine would make its programs differ.
    """
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    digest = hashlib.sha256()
    root = pathlib.Path(__file__).parents[1]
    for file in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".json")):
        digest.update(f"{file.relative_to(root)}".encode() + file.read_bytes())
    found["jaxsae_files"] = digest.hexdigest()[:12]
    return {"version": found, "environment": {name: os.environ.get(name) for name in SETTINGS}}
