"""The TPU kernel under `encode_topk`: encoder matmul and a running selection per group of columns, in one pass over W.

Column c belongs to group c mod G.  Per row and group the m largest scores seen so far stay in VMEM, sorted: the first
m - 1 with what identifies them, the last as a value only, since its single use is to bound what was dropped.  A new
score walks down the levels: where it is larger it takes the place, and the old entry walks on.  Comparison is strict,
so of equal scores the earlier column stays ahead.

The matmul works on one buffer of pre-activations while the selection reads the other, filled one step earlier.  Both
are written into the same loop body (a strip of columns of the one, a strip of rows of the other), so the compiler can
fill the vector slots that the matmul leaves empty.

At the end of a row tile the G groups are folded, by the same walk, into fewer and deeper ones, so that only a few
hundred candidates per row leave the chip.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxsae.kernels._chip import LANES, SUBLANES
from jaxsae.kernels.encode_topk._tiles import Depth, Tiles

NEG = float("-inf")


def walk(values: list, carried: list[list], new: jax.Array, labels: list[jax.Array]) -> None:
    """Inserts `new` with its labels into sorted levels, in place; the last level of `values` holds no labels."""
    for level in range(len(values) - 1):
        above = new > values[level]
        # max and min, not selects: a NaN then poisons its group for good, and the row fails its certificate.
        values[level], new = jnp.maximum(new, values[level]), jnp.minimum(new, values[level])
        for held, at in zip(carried, range(len(labels)), strict=True):
            held[level], labels[at] = (
                jnp.where(above, labels[at], held[level]),
                jnp.where(above, held[level], labels[at]),
            )
    values[-1] = jnp.maximum(new, values[-1])


def group_filter(
    x: jax.Array,
    W: jax.Array,
    b: jax.Array,
    scale: jax.Array | None,
    dead: jax.Array | None,
    signed: bool,
    tiles: Tiles,
    interpret=False,
) -> list[dict[str, jax.Array]]:
    """Candidates of each list.

    Args:
        x: [B, D] centred rows.
        W: [D, S].
        b: [S] f32.
        scale: [S] f32 factor of the score, or None for 1.
        dead: [S] bool, candidates of the second list; or None if there is one list.
        signed: rank by magnitude.
        tiles: static sizes.
        interpret: for tests on a CPU.

    Returns:
        Per list a dict: "score" [out_levels, B, out_groups] f32; "index" the same int32, column, or with `signed`
        twice the column plus 1 where pre is negative; "pre" the same f32 where `scale` is given; "bound"
        [B, out_groups]: no dropped score is larger than the maximum of its row.  Absent candidates score -inf.
    """
    rows, width = x.shape
    size = W.shape[1]
    R, half = tiles.rows, tiles.columns
    steps = pl.cdiv(size, 2 * half)
    names = ("index", "pre") if scale is not None else ("index",)
    vectors = {"b": (b, 0.0)}
    if scale is not None:
        vectors["scale"] = (scale, 1.0)
    if signed:  # |pre| of a column that does not exist must not win
        vectors["cap 0"] = (jnp.full(size, jnp.inf), NEG)
    if dead is not None:
        vectors["cap 1"] = (jnp.where(dead, jnp.inf, NEG), NEG)
    padded = [jnp.pad(v, (0, steps * 2 * half - size), constant_values=fill)[None] for v, fill in vectors.values()]
    kept_names = tuple(vectors)[1:]
    body = _Body(tiles, signed, scale is not None, size, steps, kept_names)
    column = pl.BlockSpec((1, 2 * half), lambda i, j: (0, j))
    out_specs, out_shape, scratch = [], [], []
    for depth in tiles.lists:
        for n in names:
            dtype = jnp.int32 if n == "index" else jnp.float32
            scratch.append(pltpu.VMEM((depth.levels - 1, R, depth.groups), dtype))
        scratch.append(pltpu.VMEM((depth.levels, R, depth.groups), jnp.float32))
        kept = (depth.out_levels, rows, depth.out_groups)
        block = pl.BlockSpec((depth.out_levels, R, depth.out_groups), lambda i, j: (0, i, 0))
        for n in ("score", *names):
            out_specs.append(block)
            out_shape.append(jax.ShapeDtypeStruct(kept, jnp.int32 if n == "index" else jnp.float32))
        out_specs.append(pl.BlockSpec((R, depth.out_groups), lambda i, j: (i, 0)))
        out_shape.append(jax.ShapeDtypeStruct((rows, depth.out_groups), jnp.float32))
    flops = 2 * rows * size * width
    outs = pl.pallas_call(
        body,
        grid=(pl.cdiv(rows, R), steps),
        in_specs=[
            pl.BlockSpec((R, width), lambda i, j: (i, 0)),
            pl.BlockSpec((width, 2 * half), lambda i, j: (0, j)),
            *[column] * len(padded),
        ],
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[
            *[pltpu.VMEM((R, half), jnp.float32)] * 2,
            *scratch,
            *[pltpu.VMEM((1, half), jnp.float32)] * len(kept_names),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=tiles.vmem
        ),
        cost_estimate=pl.CostEstimate(
            flops=flops,
            bytes_accessed=W.size * W.dtype.itemsize * pl.cdiv(rows, R) + x.size * x.dtype.itemsize,
            transcendentals=0,
        ),
        interpret=interpret,
        name="encode_topk_filter",
    )(x, W, *padded)
    per = len(names) + 2
    keys = ("score", *names, "bound")
    return [dict(zip(keys, outs[n * per : (n + 1) * per], strict=True)) for n in range(len(tiles.lists))]


class _Body:
    """The kernel's body; an object only to name its parts."""

    def __init__(self, tiles: Tiles, signed: bool, scaled: bool, size: int, steps: int, names: tuple[str, ...]):
        self.tiles, self.signed, self.scaled, self.size, self.steps = tiles, signed, scaled, size, steps
        self.n_labels, self.names = 2 if scaled else 1, names

    def __call__(self, x, W, b, *refs):
        tiles, step = self.tiles, pl.program_id(1)
        refs = list(refs)
        vectors = {name: refs.pop(0) for name in self.names}
        per_out, per_state = self.n_labels + 2, self.n_labels + 1
        outs = [[refs.pop(0) for _ in range(per_out)] for _ in tiles.lists]
        buffers = (refs.pop(0), refs.pop(0))
        states = [[refs.pop(0) for _ in range(per_state)] for _ in tiles.lists]
        kept = {name: refs.pop(0) for name in self.names}  # of the columns that the second buffer holds

        @pl.when(step == 0)
        def _():
            buffers[1][...] = jnp.full(buffers[1].shape, NEG, jnp.float32)
            for name, ref in kept.items():
                ref[...] = jnp.full(ref.shape, 1.0 if name == "scale" else NEG, jnp.float32)
            for *labels, values in states:
                values[...] = jnp.full(values.shape, NEG, jnp.float32)
                for a in labels:
                    a[...] = jnp.zeros(a.shape, a.dtype)

        # While the second half of a tile is multiplied, its first half is inserted; the second half waits a step.
        self._strips(x, W, b, states, buffers[0], buffers[1], 0, step, kept)
        self._strips(x, W, b, states, buffers[1], buffers[0], 1, step, vectors)
        for name, ref in kept.items():
            ref[...] = vectors[name][:, tiles.columns :]

        @pl.when(step == self.steps - 1)
        def _():
            def slab(r, c):
                self._insert(states, buffers[1], r * SUBLANES, 1, 2 * step + 1, 1, kept)
                return c

            jax.lax.fori_loop(0, tiles.rows // SUBLANES, slab, 0)
            for state, out, depth in zip(states, outs, tiles.lists, strict=True):
                self._fold(state, out, depth)

    def _strips(self, x, W, b, states, target, source, phase: int, step, vectors) -> None:
        """One buffer is filled, strip of columns by strip of columns, while the rows of the other are inserted."""
        tiles = self.tiles
        n = tiles.columns // tiles.strip
        slabs = tiles.rows // SUBLANES
        precision = jax.lax.Precision.HIGHEST if W.dtype == jnp.float32 else None

        def strip(s, c):
            here = pl.ds(pl.multiple_of(phase * tiles.columns + s * tiles.strip, LANES), tiles.strip)
            there = pl.ds(pl.multiple_of(s * tiles.strip, LANES), tiles.strip)
            pre = jnp.dot(x[...], W[:, here], preferred_element_type=jnp.float32, precision=precision)
            pre = pre + b[:, here]
            if self.size % (2 * tiles.columns):  # columns past the end hold whatever memory held
                first = (2 * step + phase) * tiles.columns + s * tiles.strip
                column = first + jax.lax.broadcasted_iota(jnp.int32, (1, tiles.strip), 1)
                pre = jnp.where(column < self.size, pre, NEG)
            target[:, there] = pre
            # Slabs are dealt out as evenly as they go; the last strip takes what is left over.
            each = slabs // n
            self._insert(states, source, s * each * SUBLANES, each, 2 * step + phase - 1, 1 - phase, vectors)
            return c

        jax.lax.fori_loop(0, n, strip, 0)
        for r in range(slabs // n * n, slabs):
            self._insert(states, source, r * SUBLANES, 1, 2 * step + phase - 1, 1 - phase, vectors)

    def _insert(self, states, source, row, slabs: int, tile, phase: int, vectors) -> None:
        """Inserts slabs of 8 rows of tile number `tile`, held in `source`, into every list."""
        for r in range(slabs):
            rows = pl.ds(pl.multiple_of(row + r * SUBLANES, SUBLANES), SUBLANES)
            for which, (state, depth) in enumerate(zip(states, self.tiles.lists, strict=True)):
                self._insert_slab(which, state, depth, source, rows, tile, phase, vectors)

    def _insert_slab(self, which: int, state, depth: Depth, source, rows, tile, phase: int, vectors) -> None:
        *labels, values = state
        columns = self.tiles.columns
        # With twice as many groups as columns, even tiles feed the first half of the groups and odd tiles the second.
        span, offset = min(depth.groups, columns), phase * columns if depth.groups > columns else 0
        blocks = columns // span
        for g in range(0, span, LANES):
            at = slice(offset + g, offset + g + LANES)
            held = [values[level, rows, at] for level in range(depth.levels)]
            carried = [[a[level, rows, at] for level in range(depth.levels - 1)] for a in labels]
            for block in range(blocks):
                column = block * span + g
                ordinal = tile // 2 if depth.groups > columns else tile * blocks + block
                pre = source[rows, column : column + LANES]
                score, new = self._score(which, pre, column, ordinal, vectors)
                walk(held, carried, score, new)
            for level in range(depth.levels):
                values[level, rows, at] = held[level]
            for a, c in zip(labels, carried, strict=True):
                for level in range(depth.levels - 1):
                    a[level, rows, at] = c[level]

    def _score(self, which: int, pre, column: int, ordinal, vectors) -> tuple[jax.Array, list[jax.Array]]:
        """Score and labels of one block of pre-activations, `column` columns into its buffer."""
        at = slice(column, column + LANES)
        index = jnp.full(pre.shape, ordinal, jnp.int32)
        score = pre
        if self.signed:
            score = jnp.abs(pre)
            negative = jax.lax.shift_right_logical(jax.lax.bitcast_convert_type(pre, jnp.int32), 31)
            index = jnp.full(pre.shape, 2 * ordinal, jnp.int32) + negative
        if self.scaled:
            score = score * vectors["scale"][:, at]
        if f"cap {which}" in vectors:
            score = jnp.minimum(score, vectors[f"cap {which}"][:, at])
        return score, [index, pre][: self.n_labels]

    def _fold(self, state, out, depth: Depth) -> None:
        """Brings the groups of a finished row tile down to fewer, deeper ones."""
        *labels, values = state
        score_out, *labels_out, bound_out = out
        lane = jax.lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 1)

        def slab(r, c):
            rows = pl.ds(pl.multiple_of(r * SUBLANES, SUBLANES), SUBLANES)
            for q in range(0, depth.out_groups, LANES):
                held = [jnp.full((SUBLANES, LANES), NEG) for _ in range(depth.out_levels + 1)]
                carried = [[jnp.zeros((SUBLANES, LANES), a.dtype) for _ in range(depth.out_levels)] for a in labels]
                dropped = jnp.full((SUBLANES, LANES), NEG)
                for g in range(q, depth.groups, depth.out_groups):
                    at = slice(g, g + LANES)
                    for level in range(depth.levels - 1):
                        new = [a[level, rows, at] for a in labels]
                        new[0] = self._column(new[0], lane + g, depth.groups)
                        walk(held, carried, values[level, rows, at], new)
                    dropped = jnp.maximum(dropped, values[depth.levels - 1, rows, at])
                at = slice(q, q + LANES)
                for level in range(depth.out_levels):
                    score_out[level, rows, at] = held[level]
                    for ref, a in zip(labels_out, carried, strict=True):
                        ref[level, rows, at] = a[level]
                bound_out[rows, at] = jnp.maximum(dropped, held[-1])
            return c

        jax.lax.fori_loop(0, self.tiles.rows // SUBLANES, slab, 0)

    def _column(self, label, group, groups: int):
        """From (ordinal of the block, sign) to (column, sign)."""
        if self.signed:
            return ((label >> 1) * groups + group) * 2 + (label & 1)
        return label * groups + group
