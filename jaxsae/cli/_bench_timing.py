"""Timing: calls in turn, medians and spread, bandwidth, and what was measured on."""

import importlib.metadata
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxsae.errors import ConfigError


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest of some measurements."""
    if not values:
        raise ConfigError("repeats = 0 measures nothing; expected 1 or more")
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def in_turn(calls: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, float]]:
    """Every call once per round, so that a slow minute of the machine falls on all of them; seconds by name.

    Args:
        calls: functions that do the work once and return the seconds it took.
        repeats: rounds that count; one more comes first and does not.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            seconds = call()
            if turn:
                found[name].append(seconds)
    return {name: spread(values) for name, values in found.items()}


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """A call for `in_turn` from a function that returns arrays; waits until they are computed."""
    import jax

    def call() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    return call


def streaming_bytes() -> tuple[Callable[[], float], int]:
    """A call that reads and writes a large array on the device in place, and the bytes it moves.

    Accelerators do it several times per call, so that starting a program does not count.
    """
    import jax
    import jax.numpy as jnp

    size, passes = (2**26, 1) if jax.default_backend() == "cpu" else (2**28, 16)
    state = [jnp.zeros(size)]
    scale = jax.jit(lambda a: jax.lax.fori_loop(0, passes, lambda _, a: a * 1.000001, a), donate_argnums=0)

    def run() -> Any:
        state[0] = scale(state[0])
        return state[0]

    return timed(run), 2 * state[0].nbytes * passes


def peak_bytes() -> int:
    """Most memory held so far: of the accelerator, or of this process on a CPU."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", peak_of_process()))


def peak_of_process() -> int:
    """Most bytes of memory that this process has held; macOS counts in bytes, others in kibibytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def environment() -> dict[str, Any]:
    """Device, versions and cores, as every table should state them."""
    import jax

    names = ("jaxsae", "jax", "jaxlib", "numpy")
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": {name: importlib.metadata.version(name) for name in names},
        "date": time.strftime("%Y-%m-%d"),
    }
