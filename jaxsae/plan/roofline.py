"""How long a step must take at least: each part's work over the device's data-sheet rate.

Nothing here is measured on a device.  The compiler's own estimate is not used: it sees the bytes of a selection, not
its passes, and nothing of a custom kernel.
"""

from dataclasses import dataclass
from typing import Any

from jaxsae.plan.measure import Measured
from jaxsae.plan.topology import Chip
from jaxsae.recipes import Recipe

#: The TPU compiler's exact top-k reads a row block once per k: cycles per 1,024 entries and k, counted in its output.
TOPK_CYCLES = 4.2


@dataclass(frozen=True)
class Part:
    """One part of the step: its work, the resource that bounds it, and the least time."""

    name: str
    work: str
    resource: str
    seconds: float


def roofline(recipe: Recipe, runs: int, rows: int, shape: dict[str, int], measured: Measured, chip: Chip) -> list[Part]:
    """Least times of the parts of a step on one device; empty for a device whose rates are unknown.

    Args:
        recipe: the method.
        runs: of it that are stepped together.
        rows: of the global batch.
        shape: devices by mesh axis.
        measured: the compiled step.
        chip: rates.
    """
    if not chip.flops:
        return []
    rows, latents = rows // shape.get("data", 1), recipe.d_sae // shape.get("latent", 1)
    runs = runs // shape.get("run", 1)  # on each device; what is counted of the compiled step has all of them
    flops = 2.0 * runs * rows * recipe.d_in * latents
    state = sum(n for name, n in measured.parts.items() if name in ("parameters", "moments", "running mean"))
    parts = [
        Part("encoder product", f"{flops:.3g} flops", "matrix unit", flops / chip.flops),
        Part("optimiser", f"{2 * state / 1e9:.3g} GB read and written", "memory", 2 * state / chip.bandwidth),
    ]
    cap: Any = getattr(getattr(recipe.encoder, "selector", None), "cap", None)
    if cap:
        pairs = runs * rows * cap / shape.get("latent", 1)
        moved = pairs * 4 * (2 * recipe.d_in + 2 * recipe.dictionary.d_out)
        parts.append(Part("rows of chosen latents", f"{moved / 1e9:.3g} GB", "memory", moved / chip.bandwidth))
        if measured.topk_calls:
            cycles = TOPK_CYCLES * runs * rows * latents / 1024 * cap
            parts.append(
                Part("exact top-k by the compiler", f"{cycles:.3g} cycles", "vector unit", cycles / chip.clock)
            )
    else:
        dense = 4 * flops
        parts.append(Part("dense decode and gradients", f"{dense:.3g} flops", "matrix unit", dense / chip.flops))
    received = measured.received()
    parts.append(Part("collectives", f"{received / 1e6:.4g} MB received", "links", received / chip.links))
    return parts


def bounds(parts: list[Part]) -> tuple[float, float]:
    """(least seconds with perfect overlap of resources, seconds with none)."""
    by: dict[str, float] = {}
    for p in parts:
        by[p.resource] = by.get(p.resource, 0.0) + p.seconds
    return max(by.values()), sum(by.values())
