"""The kernels whose bundles are counted, at the reference shapes where their speed matters."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.kernels._chip import SUBLANES
from jaxsae.kernels.encode_topk._tiles import SHARE
from jaxsae.testing.bundles import Case, Loop
from jaxsae.testing.tpu_aot import SHAPES

#: VMEM of one core, bytes.
VMEM = {"v5e": 128 * 2**20, "v5p": 64 * 2**20, "v6e": 128 * 2**20}
VREG = 8 * 128

Build = tuple[Callable, Sequence[Any]]
abstract = jax.ShapeDtypeStruct


# The fused encoder: a strip of 512 rows x 256 columns (128 vregs) is multiplied while as many vregs are inserted.


def _filter(chip: str, shape: str, levels: int, groups: int) -> Build:
    from jaxsae.kernels.encode_topk._filter import group_filter
    from jaxsae.kernels.encode_topk._tiles import Depth, Tiles

    width, size = SHAPES[shape]["D"], 8192  # bundles of the loops do not depend on the number of columns
    tiles = Tiles(512, 1024, 256, (Depth(groups, levels, 128, 8),), int(VMEM[chip] * SHARE))
    x, W = abstract((1024, width), jnp.bfloat16), abstract((width, size), jnp.bfloat16)
    return lambda x, W, b: group_filter(x, W, b, None, None, False, tiles), (x, W, abstract((size,), jnp.float32))


def _matmul(chip: str, shape: str) -> Build:
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
            out_shape=abstract((x.shape[0], W.shape[1]), jnp.float32),
            compiler_params=pltpu.CompilerParams(vmem_limit_bytes=int(VMEM[chip] * SHARE)),
            name="strip_matmul",
        )(x, W)

    return f, (abstract((1024, width), jnp.bfloat16), abstract((width, 8192), jnp.bfloat16))


def _strip(loops: list[Loop]) -> float:
    """Of the loops that multiply one strip: the longer one."""
    return max(l.bundles for l in loops if l.depth == 2 and l.slots["MATMUL"]) / (512 * 256 / VREG)


def _insert(loops: list[Loop]) -> float:
    """The loop that only inserts (the last tile): one slab of 8 rows and 1024 columns."""
    inserts = [l for l in loops if l.depth == 2 and not l.slots["MATMUL"]]
    return inserts[0].bundles / (8 * 1024 / VREG)


def _encoder_cases() -> list[Case]:
    name, cases = "encode_topk_filter", []
    for chip, shape, levels, groups in (
        ("v5e", "B", 4, 512),
        ("v5p", "B", 4, 512),
        ("v6e", "B", 4, 512),
        ("v6e", "C", 4, 512),
        ("v6e", "A", 5, 512),  # as planned for k 32
        ("v5e", "C", 6, 512),  # as planned for k 64
        ("v6e", "C", 6, 512),
    ):
        what = f"D {SHAPES[shape]['D']}, bf16, m {levels}, G {groups}"
        at, build = f"{chip}.{shape}.m{levels}", partial(_filter, chip, shape, levels, groups)
        cases.append(Case(f"{name}.with_matmul.{at}", chip, build, name, "vreg", _strip, what + ": with the matmul"))
        if shape == "B":
            cases.append(Case(f"{name}.insertion.{at}", chip, build, name, "vreg", _insert, what + ": insertion alone"))
    for chip, shape in (("v5e", "B"), ("v5e", "C"), ("v5p", "B"), ("v6e", "A"), ("v6e", "B"), ("v6e", "C")):
        what = f"D {SHAPES[shape]['D']}, bf16: the matmul alone"
        build = partial(_matmul, chip, shape)
        cases.append(Case(f"strip_matmul.{chip}.{shape}", chip, build, "strip_matmul", "vreg", _strip, what))
    return cases


# The mask: one of 32 counting passes.


def _mask(size: int, tile: int) -> Build:
    from jaxsae.kernels.topk_mask import pallas_tpu

    return lambda x: pallas_tpu.cut(x, 64, tile=tile), (abstract((64, size), jnp.float32),)


def _pass(loops: list[Loop], tile: int) -> float:
    """The first loop inside another counts one chunk; the one before it only converts."""
    from jaxsae.kernels.topk_mask.pallas_tpu import CHUNK

    return next(l for l in loops if l.depth == 3).bundles / (tile * CHUNK / VREG)


def _mask_cases() -> list[Case]:
    build, count, what = partial(_mask, 65536, 16), partial(_pass, tile=16), "f32, S 65536, 16 rows: a counting pass"
    return [Case(f"topk_mask.{chip}", chip, build, "topk_mask_cut", "vreg", count, what) for chip in VMEM]


# Gathered rows: everything a token costs, over its k rows.


def _gather(shape: str, sums: bool, dots: bool) -> Build:
    from jaxsae.kernels.sparse_decode import pallas_tpu

    width, size, k = (SHAPES[shape][n] for n in "DSk")
    table = abstract((size, 1, width // 2), jnp.uint32)
    v, i, t = abstract((512, k), jnp.float32), abstract((512, k), jnp.int32), abstract((512, width), jnp.float32)

    def f(v, i, t, table):
        return pallas_tpu.gather(v if sums else None, i, t if dots else None, table, width)

    return f, (v, i, t, table)


def _per_row(loops: list[Loop], shape: str) -> float:
    """The second loop of depth 2 walks the tokens that have others behind them; its inner loops walk 16 rows each."""
    from jaxsae.kernels.sparse_decode.pallas_tpu import UNROLL

    k = SHAPES[shape]["k"]
    tokens = [n for n, l in enumerate(loops) if l.depth == 2][1]
    inner = loops[tokens + 1 : next(n for n in range(tokens + 1, len(loops)) if loops[n].depth < 3)]
    return (loops[tokens].own + k // (SUBLANES * UNROLL) * sum(l.bundles for l in inner)) / k


def _gather_cases() -> list[Case]:
    kernels = {"gather_sum": (True, False), "gather_sum_dots": (True, True), "gather_dots": (False, True)}
    wanted = [("gather_sum", c, s) for c, s in (("v5e", "B"), ("v5e", "C"), ("v5p", "C"), ("v6e", "C"))]
    wanted += [
        ("gather_sum_dots", c, s) for c, s in (("v5e", "B"), ("v5e", "C"), ("v5p", "C"), ("v6e", "B"), ("v6e", "C"))
    ]
    wanted += [("gather_dots", "v6e", "C")]
    cases = []
    for name, chip, shape in wanted:
        sums, dots = kernels[name]
        what = f"D {SHAPES[shape]['D']}, packed bf16 rows, k {SHAPES[shape]['k']}"
        build, count = partial(_gather, shape, sums, dots), partial(_per_row, shape=shape)
        quick = (name, chip, shape) == ("gather_sum", "v5e", "C")
        cases.append(Case(f"{name}.{chip}.{shape}", chip, build, name, "row", count, what, quick))
    return cases


# Sorted segments: everything a tile of 128 latents costs, over its pairs; and Adam's pass over the same tile.


def _segments(shape: str, adam: bool) -> Build:
    from jaxsae.kernels.sparse_adam import pallas_tpu as step
    from jaxsae.kernels.sparse_grad import pallas_tpu as grad

    batch, width, size, k = SHAPES[shape].values()
    v, i = abstract((batch, k), jnp.float32), abstract((batch, k), jnp.int32)
    rows, W = abstract((batch, width), jnp.bfloat16), abstract((size, width), jnp.float32)

    def pairs(v, i, rows):
        return grad.sort_pairs(v, i, grad.tiling_of(rows, size, False))

    if not adam:
        return lambda v, i, rows: grad.segment_grad(pairs(v, i, rows), rows, size), (v, i, rows)

    def f(v, i, rows, W, mu, nu, factors):
        return step.segment_adam(W, mu, nu, pairs(v, i, rows), rows, factors, 0.9, 0.999, 1e-8, False)

    return f, (v, i, rows, W, W, W, abstract((2,), jnp.float32))


def _per_pair(loops: list[Loop], shape: str) -> float:
    """Loops of depth 2: eight pairs, single pairs, the same for the next block of pairs, the rest, latents going out.

    Of a tile's pairs 3.5 are left over by eights on average, and again where a tile crosses into the next block.
    """
    from jaxsae.kernels.sparse_grad.pallas_tpu import CHUNK, LATENTS, UNROLL

    batch, _, size, k = SHAPES[shape].values()
    pairs = batch * k * LATENTS / size
    grid, (eight, one, *_, out) = loops[0], [l for l in loops if l.depth == 2]
    left = (UNROLL - 1) / 2 * (1 + pairs / CHUNK)
    walked = (pairs - left) / UNROLL * eight.bundles + left * one.bundles
    return (grid.own + walked + LATENTS // SUBLANES * out.bundles) / pairs


def _per_moved(loops: list[Loop], shape: str) -> float:
    """The last loop moves eight latents of the table."""
    return loops[-1].bundles / (SUBLANES * SHAPES[shape]["D"] / VREG)


def _segment_cases() -> list[Case]:
    cases = []
    for chip, shape in (("v5e", "B"), ("v5p", "B"), ("v6e", "B"), ("v6e", "C")):
        batch, width, size, k = SHAPES[shape].values()
        what = f"D {width}, bf16 rows, {batch * k / size:g} pairs per latent"
        build, count = partial(_segments, shape, False), partial(_per_pair, shape=shape)
        cases.append(Case(f"segment_grad.{chip}.{shape}", chip, build, "segment_grad", "pair", count, what))
    for chip in VMEM:
        build, count = partial(_segments, "B", True), partial(_per_moved, shape="B")
        what = "D 2304, f32 tables: Adam's pass over the sums"
        cases.append(Case(f"segment_adam.{chip}.B", chip, build, "segment_adam", "vreg", count, what))
    return cases


CASES: tuple[Case, ...] = (*_encoder_cases(), *_mask_cases(), *_gather_cases(), *_segment_cases())
