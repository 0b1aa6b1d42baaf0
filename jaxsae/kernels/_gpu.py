"""The door to the Mosaic GPU kernels: imported when first used, refused by name where they cannot run.

A program of these kernels is one warpgroup, 128 threads, that holds a row in its registers.  Rows whose width is no
multiple of 128 are covered by two spans that overlap.
"""

import importlib
import re
from collections.abc import Callable
from types import ModuleType

import jax

from jaxsae.kernels._dispatch import Implementation, Shape, device

#: Threads of a warpgroup: the least width of a row.
THREADS = 128
#: Widest row of f32 that a warpgroup holds beside what it fetches without spilling registers.
WIDEST = 8192
#: Oldest jax whose Pallas has what the kernels use.
OLDEST_JAX = (0, 11)


def objection(dtype: str, width: int) -> str | None:
    """Why no kernel can serve rows of this dtype and width or run under this jax, or None.

    Example:
        >>> objection("float16", 512)
        'takes float32 and bfloat16, not float16'
    """
    if dtype not in ("float32", "bfloat16"):
        return f"takes float32 and bfloat16, not {dtype}"
    if not THREADS <= width <= WIDEST:
        return f"takes rows of {THREADS} to {WIDEST} entries, not {width}"
    if jax.__version_info__ < OLDEST_JAX:
        return f"needs jax >= 0.11, this is {jax.__version__}"
    if device()[0] == jax.default_backend() == "gpu" and not _is_hopper():
        return "needs an NVIDIA GPU of compute capability 9.0 or more (Hopper)"
    return None


def _is_hopper() -> bool:
    """Whether the first device is of the oldest generation that Mosaic GPU compiles for, or a younger one."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    number = re.match(r"\d+\.\d+", capability)  # "9.0"; of an AMD GPU "gfx942"
    return number is not None and float(number[0]) >= 9.0


def implementation(run: Callable, refuse: Callable[[Shape, str], str | None] | None = None) -> Implementation:
    """How an op over rows of width E announces a kernel: on GPUs, with a jax whose Pallas it is written for."""
    return Implementation(run, platforms=("gpu",), refuse=refuse or (lambda shape, dtype: objection(dtype, shape["E"])))


def module(op: str) -> ModuleType:
    """The kernels of an op."""
    return importlib.import_module(f"jaxsae.kernels.{op}.pallas_gpu")


def spans(width: int) -> tuple[tuple[int, int, int], ...]:
    """(first, length, new) of the parts a row is held in: every length a multiple of 128, `new` not covered before.

    Example:
        >>> spans(768), spans(576)
        (((0, 768, 768),), ((0, 512, 512), (448, 128, 64)))
    """
    main = width // THREADS * THREADS
    rest = width - main
    return ((0, main, main),) + (((width - THREADS, THREADS, rest),) if rest else ())
