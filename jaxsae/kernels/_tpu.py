"""The door to the Pallas TPU kernels: imported when first used, refused by name where they cannot run."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from jax.custom_batching import sequential_vmap

from jaxsae.kernels._chip import objection
from jaxsae.kernels._dispatch import Implementation


def implementation(run: Callable) -> Implementation:
    """How an op announces a kernel: on TPUs, with a jax whose Pallas it is written for."""
    return Implementation(run, platforms=("tpu",), refuse=lambda shape, dtype: objection(dtype))


def module(op: str, name: str = "pallas_tpu") -> ModuleType:
    """The kernels of an op."""
    return importlib.import_module(f"jaxsae.kernels.{op}.{name}")


def run(f: Callable, *args: Any) -> Any:
    """f(*args); under vmap one element after the other, as a kernel takes the whole chip."""
    return sequential_vmap(f)(*args)
