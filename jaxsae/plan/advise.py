"""What to change when a step does not fit: each suggestion is compiled before it is made."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxsae import parallel
from jaxsae.optim import halved
from jaxsae.plan.measure import Measured
from jaxsae.plan.topology import Target
from jaxsae.recipes import Recipe
from jaxsae.train import TrainConfig


@dataclass(frozen=True)
class Advice:
    """A change, whether the step fits with it, and the memory it then takes (None if the compiler does not say)."""

    change: str
    fits: bool
    peak: int | None


def advise(
    recipe: Recipe, config: TrainConfig, target: Target, shape: dict[str, int], dtype: str, compile_step: Callable
) -> Iterator[Advice]:
    """Every change that applies, compiled."""
    rows, zero = config.train_batch_size_tokens, config.mesh.zero
    for change, other, (data, latent), size in _changes(recipe, shape, rows):
        mesh = parallel.make_mesh(data, latent, target.devices)
        found: Measured = compile_step(other, mesh, size, dtype, zero)
        yield Advice(change, bool(found.fits), found.peak)


def _changes(recipe: Recipe, shape: dict[str, int], rows: int) -> Iterator[tuple[str, Recipe, tuple[int, int], int]]:
    data, latent = shape["data"], shape["latent"]
    if data > 1 and data % 2 == 0 and recipe.d_sae % (2 * latent) == 0:
        yield f"mesh data {data // 2} x latent {2 * latent}", recipe, (data // 2, 2 * latent), rows
    half = halved(recipe.optimizer)
    if half is not None:
        yield "moments: bfloat16", dataclasses.replace(recipe, optimizer=half), (data, latent), rows
    if rows % (2 * data) == 0:
        yield f"a batch of {rows // 2:,} rows", recipe, (data, latent), rows // 2
    if recipe.precision.compute == "float32":
        precision = dataclasses.replace(recipe.precision, compute="bfloat16")
        yield "bfloat16: true", dataclasses.replace(recipe, precision=precision), (data, latent), rows
