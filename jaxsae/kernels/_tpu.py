"""The door to the Pallas TPU kernels: imported when first used, refused by name where they cannot run."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
from jax.custom_batching import sequential_vmap

from jaxsae.kernels._dispatch import Implementation, Shape


def implementation(run: Callable) -> Implementation:
    """How an op announces a kernel: on TPUs, with a jax whose Pallas it is written for."""
    return Implementation(run, platforms=("tpu",), refuse=_refuse)


def _refuse(shape: Shape, dtype: str) -> str | None:
    return None if jax.__version_info__ >= (0, 10) else f"needs jax 0.10 or later, found {jax.__version__}"


def module(op: str) -> ModuleType:
    """The kernels of an op."""
    return importlib.import_module(f"jaxsae.kernels.{op}.pallas_tpu")


def run(f: Callable, *args: Any) -> Any:
    """f(*args); under vmap one element after the other, as a kernel takes the whole chip."""
    return sequential_vmap(f)(*args)
