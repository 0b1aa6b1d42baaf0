"""The kernels whose bundles are counted; each op adds its own cases here."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.kernels._chip import VMEM_SHARE
from jaxsae.testing.bundles import Case, Loop
from jaxsae.testing.tpu_aot import SHAPES

#: VMEM of one core, bytes.
VMEM = {"v5e": 128 * 2**20, "v5p": 64 * 2**20, "v6e": 128 * 2**20}
VREG = 8 * 128


def _strip_tiles(chip: str, levels: int, groups: int):
    from jaxsae.kernels.encode_topk._tiles import Depth, Tiles

    return Tiles(512, 1024, 256, (Depth(groups, levels, 128, 8),), int(VMEM[chip] * VMEM_SHARE))


def _filter(chip: str, shape: str, levels: int, groups: int) -> tuple[Callable, Sequence[Any]]:
    from jaxsae.kernels.encode_topk._filter import group_filter

    width, size = SHAPES[shape]["D"], 8192  # bundles of the loops do not depend on the number of columns
    tiles = _strip_tiles(chip, levels, groups)
    args = (
        jax.ShapeDtypeStruct((1024, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((width, size), jnp.bfloat16),
        jax.ShapeDtypeStruct((size,), jnp.float32),
    )
    return lambda x, W, b: group_filter(x, W, b, None, None, False, tiles), args


def _matmul(chip: str, shape: str) -> tuple[Callable, Sequence[Any]]:
    """The strip's matmul alone, in the same loop: what the overlap is measured against."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    width = SHAPES[shape]["D"]

    def body(x, W, out):
        def strip(s, c):
            here = pl.ds(pl.multiple_of(s * 256, 128), 256)
            out[:, here] = jnp.dot(x[...], W[:, here], preferred_element_type=jnp.float32)
            return c

        jax.lax.fori_loop(0, 8, strip, 0)

    def f(x, W):
        return pl.pallas_call(
            body,
            grid=(x.shape[0] // 512, W.shape[1] // 2048),
            in_specs=[
                pl.BlockSpec((512, width), lambda i, j: (i, 0)),
                pl.BlockSpec((width, 2048), lambda i, j: (0, j)),
            ],
            out_specs=pl.BlockSpec((512, 2048), lambda i, j: (i, j)),
            out_shape=jax.ShapeDtypeStruct((x.shape[0], W.shape[1]), jnp.float32),
            compiler_params=pltpu.CompilerParams(vmem_limit_bytes=int(VMEM[chip] * VMEM_SHARE)),
            name="strip_matmul",
        )(x, W)

    x = jax.ShapeDtypeStruct((1024, width), jnp.bfloat16)
    return f, (x, jax.ShapeDtypeStruct((width, 8192), jnp.bfloat16))


def _mask(size: int, tile: int) -> tuple[Callable, Sequence[Any]]:
    from jaxsae.kernels.topk_mask import pallas_tpu

    return lambda x: pallas_tpu.cut(x, 64, tile=tile), (jax.ShapeDtypeStruct((64, size), jnp.float32),)


def _strip(loops: list[Loop]) -> float:
    """Of the loops that multiply one strip of 512 x 256 (128 vregs) and insert as many: the longer one, per vreg."""
    return max(l.own for l in loops if l.depth == 2 and l.slots["MATMUL"]) / (512 * 256 / VREG)


def _insert(loops: list[Loop], groups: int) -> float:
    """The loop that only inserts (the last tile): one slab of 8 rows and 1024 columns."""
    inserts = [l for l in loops if l.depth == 2 and not l.slots["MATMUL"]]
    return inserts[0].own / (8 * 1024 / VREG)


def _pass(loops: list[Loop], tile: int) -> float:
    """The shortest inner loop counts one chunk of 2048 columns."""
    return min(l.own for l in loops if l.depth >= 2 and l.slots["VLOAD"] >= tile) / (tile * 2048 / VREG)


def _filter_cases() -> list[Case]:
    cases = []
    for chip, shape, levels, groups in (("v5e", "B", 4, 512), ("v5p", "B", 4, 512), ("v6e", "B", 4, 512)):
        at = f"{chip}.{shape}.m{levels}"
        what = f"D {SHAPES[shape]['D']}, bf16, 512 x 1024 tiles, m {levels}, G {groups}"
        build = partial(_filter, chip, shape, levels, groups)
        name = "encode_topk_filter"
        insert = partial(_insert, groups=groups)
        cases += [
            Case(f"{name}.with_matmul.{at}", chip, build, name, "vreg", _strip, what + ": matmul and insertion"),
            Case(f"{name}.insertion.{at}", chip, build, name, "vreg", insert, what + ": insertion alone"),
        ]
    for chip in ("v5e", "v6e"):
        what = f"D {SHAPES['B']['D']}, bf16, 512 x 256: the matmul of a strip alone"
        cases.append(
            Case(f"strip_matmul.{chip}.B", chip, partial(_matmul, chip, "B"), "strip_matmul", "vreg", _strip, what)
        )
    return cases


CASES: tuple[Case, ...] = (
    *_filter_cases(),
    Case(
        "topk_mask_cut.v5e",
        "v5e",
        partial(_mask, 65536, 16),
        "topk_mask_cut",
        "vreg",
        partial(_pass, tile=16),
        "f32, S 65536, 16 rows: one of the 32 counting passes",
    ),
    Case(
        "topk_mask_cut.v6e",
        "v6e",
        partial(_mask, 65536, 16),
        "topk_mask_cut",
        "vreg",
        partial(_pass, tile=16),
        "f32, S 65536, 16 rows: one of the 32 counting passes",
    ),
)
