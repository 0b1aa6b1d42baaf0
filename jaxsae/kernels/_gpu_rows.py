"""What the Mosaic GPU kernels share: a row of memory in the registers of a warpgroup, and the loop over rows.

Imports Pallas; only kernels import it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxsae.kernels._gpu import THREADS, spans

#: Rows fetched before the first is used, so that their way from memory overlaps.
AHEAD = 4

Row = list[jax.Array]


def layout(length: int, width: int) -> Any:
    """Entries of a span over threads: neighbours to one thread, as many as the length and the alignment allow."""
    per_thread = length // THREADS
    vector = next(v for v in (4, 2, 1) if per_thread % v == 0 and width % v == 0)
    return plgpu.Layout.WG_STRIDED((length,), vec_size=vector)


def zeros(width: int) -> Row:
    """A row of zeros in registers."""
    return [plgpu.layout_cast(jnp.zeros((n,), jnp.float32), layout(n, width)) for _, n, _ in spans(width)]


def load(table: Any, at: Any, start: Any = 0, width: int = 0) -> Row:
    """Row `at` of a table in memory, or `width` entries of it from `start` on, as f32 in registers."""
    width = width or table.shape[1]
    return [
        plgpu.load(table.at[at, pl.ds(start + first, n)], layout=layout(n, width), optimized=False).astype(jnp.float32)
        for first, n, _ in spans(width)
    ]


def store(table: Any, at: Any, row: Row, start: Any = 0, width: int = 0) -> None:
    """Writes a row, or a part of it; where spans overlap both hold the same."""
    for (first, n, _), part in zip(spans(width or table.shape[1]), row, strict=True):
        table[at, pl.ds(start + first, n)] = part


def dot(a: Row, b: Row, width: int) -> jax.Array:
    """The inner product of two rows, every entry counted once."""
    total = jnp.float32(0.0)
    for (_, n, new), x, y in zip(spans(width), a, b, strict=True):
        product = x * y
        if new < n:
            place = plgpu.broadcasted_iota(jnp.int32, (n,), 0, layout=layout(n, width))
            product = jnp.where(place >= n - new, product, 0.0)
        total = total + jnp.sum(product)
    return total


def add(acc: Row, factor: Any, row: Row) -> Row:
    """acc + factor * row."""
    return [a + factor * r for a, r in zip(acc, row, strict=True)]


def over_rows(first: Any, count: Any, fetch: Callable, use: Callable, acc: Row, ahead: int = AHEAD) -> Row:
    """Folds rows first .. first + count - 1 into acc, `ahead` of them fetched at a time.

    Args:
        first, count: ints, or int32 scalars of the kernel.
        fetch: from a row's number to the row.
        use: (acc, number, row) -> acc.
        acc: what it starts from.
        ahead: rows in flight.
    """

    def group(start: Any, acc: Row, n: int) -> Row:
        rows = [fetch(start + u) for u in range(n)]
        for u, row in enumerate(rows):
            acc = use(acc, start + u, row)
        return acc

    whole = count // ahead
    acc = jax.lax.fori_loop(0, whole, lambda j, a: group(first + j * ahead, a, ahead), acc)
    done = first + whole * ahead
    return jax.lax.fori_loop(done, first + count, lambda j, a: group(j, a, 1), acc)


def kernel(body: Callable, out: Any, programs: int, *args: jax.Array) -> Any:
    """Runs `body(number of the program, *refs of args, *refs of out)` once per program, one warpgroup each."""

    def whole(*refs: Any) -> None:
        body(jax.lax.axis_index("program"), *refs)

    params = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)
    return plgpu.kernel(whole, out_type=out, grid=(programs,), grid_names=("program",), compiler_params=params)(*args)


def shaped(*shapes: tuple[Sequence[int], Any]) -> list[jax.ShapeDtypeStruct]:
    """Types of results from (shape, dtype) pairs."""
    return [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
