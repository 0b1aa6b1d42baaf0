"""Rows of a dictionary fetched by bursts of DMA, and summed, or multiplied with another row, while they are in VMEM.

One kernel body serves three ops, so that each row is fetched once:

    decode             y_b   = sum_j v_bj W[i_bj]
    dots               p_bj  = <g_b, W[i_bj]>                     the gradient of the values
    decode_and_dots    e_b   = t_b - y_b,   p_bj = <e_b, W[i_bj]>

The K row copies of one token are issued back to back on one semaphore, several tokens ahead, interleaved with the
arithmetic of the token in hand: the scalar unit issues copies while the vector unit multiplies.  K lies on sublanes,
so sums over K, and the K dot products, are whole-register operations.

Layouts of the table, so that a row is one copy and the table itself is not moved:

    f32    [S, E] as it is, E a multiple of 128
    bf16   [S, 1, E/2] uint32, columns c and c + E/2 in one word (`pack`); one row of a [S, E] bf16 array is not
           addressable by DMA, as two rows share each 32-bit word
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxsae.kernels._chip import LANES, SUBLANES

#: Bytes of rows on their way while a token is summed: enough to cover the latency of HBM at 1 to 3 TB/s.
IN_FLIGHT = 1 << 20
#: Entries (token, j) of one grid step: the copies in flight drain once per step, so it must last far longer than that.
ENTRIES = 4096
#: Groups of eight entries per step of the inner loop: more of them hide the latency of the lane reductions.
UNROLL = 2
#: Widest part of a row (32-bit words) summed in one pass, so that sums and loads stay in the 64 vector registers.
PASS = 2048
#: Most bytes of row buffers; longer lists are cut and their results added.
BUFFER = 24 << 20
#: Most tokens ahead.
DEPTH = 32


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def pack(W: jax.Array) -> jax.Array:
    """[S, E] bf16 as [S, 1, E/2] uint32 (E padded to a multiple of 256): column c low, column c + E/2 high."""
    W = jnp.pad(W, ((0, 0), (0, -W.shape[1] % (2 * LANES))))
    low, high = jnp.split(jax.lax.bitcast_convert_type(W, jnp.uint16).astype(jnp.uint32), 2, axis=1)
    return (low | (high << 16))[:, None, :]


def table(W: jax.Array) -> jax.Array:
    """The table as the kernel reads it; bf16 is packed, f32 stays, anything else becomes f32."""
    if W.dtype == jnp.bfloat16:
        return pack(W)
    return jnp.pad(W.astype(jnp.float32), ((0, 0), (0, -W.shape[1] % LANES)))


def _halves(words: jax.Array) -> list[jax.Array]:
    """The f32 columns in a block of words: one part of an f32 table, two parts of a packed one."""
    if words.dtype == jnp.float32:
        return [words]
    low, high = words << 16, words & jnp.uint32(0xFFFF0000)
    return [jax.lax.bitcast_convert_type(x, jnp.float32) for x in (low, high)]


@dataclass(frozen=True)
class Tiling:
    """Static sizes of one call, chosen so that buffers fit VMEM and SMEM on every chip.

    Args:
        batch: tokens in all.
        k: entries per token.
        words: 32-bit words per row.
        parts: f32 columns per word, 1 or 2.
        sums: whether rows are summed.
        dots: whether rows are multiplied with another row.
        width: columns of a row that are not padding; 0 for all.
    """

    batch: int
    k: int
    words: int
    parts: int
    sums: bool
    dots: bool
    width: int = 0

    @property
    def groups(self) -> int:
        """Groups of eight entries, the last one perhaps not full."""
        return -(-self.k // SUBLANES)

    @property
    def lanes(self) -> int:
        """Entries per token, padded to whole registers."""
        return round_up(self.k, LANES)

    @property
    def slot_bytes(self) -> int:
        """Row buffer of one token."""
        return self.groups * SUBLANES * self.words * 4

    @property
    def tokens(self) -> int:
        """Tokens per grid step: a multiple of eight whose [tokens, E] blocks stay within 2 MB each."""
        most = max(SUBLANES, (2 << 20) // (self.words * self.parts * 4))
        return max(SUBLANES, min(ENTRIES // self.k, most, 256, round_up(self.batch, SUBLANES)) // SUBLANES * SUBLANES)

    @property
    def slots(self) -> int:
        """Row buffers: the token in hand, and as many ahead as keep IN_FLIGHT bytes moving."""
        ahead = -(-IN_FLIGHT // (self.k * self.words * 4))
        return max(2, min(1 + ahead, self.tokens, DEPTH, 1 + BUFFER // self.slot_bytes))

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """(start, width) of the parts of a row summed in one pass."""
        width = round_up(-(-self.words // -(-self.words // PASS)), LANES)
        return [(start, min(width, self.words - start)) for start in range(0, self.words, width)]

    @property
    def vmem(self) -> int:
        """Bytes: row buffers, double-buffered blocks, and room for the compiler's own."""
        blocks = (1 + self.dots + (self.dots and self.sums)) * self.tokens * self.words * self.parts * 4
        lists = 2 * self.tokens * self.lanes * 4
        return self.slots * self.slot_bytes + 2 * (blocks + lists) + (8 << 20)


def _issue(t, slot, group, refs, tiling: Tiling, rows):
    """Starts the copies of the given rows of a group of token t."""
    index, table_ref, buffer, sem = refs
    at = t * tiling.k + group * SUBLANES
    for u in rows:
        i = index[0, at + u]
        source = table_ref.at[i] if tiling.parts == 2 else table_ref.at[pl.ds(i, 1)]
        pltpu.make_async_copy(source, buffer.at[slot, group, pl.ds(u, 1)], sem.at[slot]).start()


def _wait(slot, refs, tiling: Tiling):
    """Waits for all rows of one slot."""
    _, _, buffer, sem = refs
    full, rest = divmod(tiling.k, SUBLANES)
    if full:
        whole = buffer.at[slot, pl.ds(0, full)]
        pltpu.make_async_copy(whole, whole, sem.at[slot]).wait()
    for u in range(rest):
        row = buffer.at[slot, full, pl.ds(u, 1)]
        pltpu.make_async_copy(row, row, sem.at[slot]).wait()


def _over_groups(tiling: Tiling, body, carry):
    """body(groups, rows, carry) over the groups of eight, UNROLL of them at a time.

    `rows` lists the rows of each of the groups, all eight but for a short last group; what does not fill a step is
    peeled off.
    """
    full, rest = divmod(tiling.k, SUBLANES)
    steps = full // UNROLL
    whole = [range(SUBLANES)] * UNROLL
    carry = jax.lax.fori_loop(0, steps, lambda s, c: body([s * UNROLL + u for u in range(UNROLL)], whole, c), carry)
    left = list(range(steps * UNROLL, tiling.groups))
    rows = [range(rest if g == full else SUBLANES) for g in left]
    return body(left, rows, carry) if left else carry


def _kernel(*refs, tiling: Tiling):
    """One grid step: `tokens` tokens.  Inputs and outputs in the order of `gather`."""
    refs = list(refs)
    index = refs.pop(0)
    value = refs.pop(0) if tiling.sums else None
    given = refs.pop(0) if tiling.dots else None
    table_ref = refs.pop(0)
    row_out = refs.pop(0) if tiling.sums else None
    dots_out = refs.pop(0) if tiling.dots else None
    buffer, sem = refs
    dma = (index, table_ref, buffer, sem)
    chunks, slots, tokens = tiling.chunks, tiling.slots, tiling.tokens
    passes = len(chunks) * (tiling.sums + tiling.dots)
    diagonal = _iota((SUBLANES, tiling.lanes), 1) - _iota((SUBLANES, tiling.lanes), 0)
    if tiling.k % SUBLANES and tiling.sums:
        # Rows that no copy fills are multiplied with value 0; what memory holds there may be NaN.
        for s in range(slots):
            buffer[s, tiling.groups - 1] = jnp.zeros(buffer.shape[2:], buffer.dtype)

    def token(t, _, ahead: bool):
        slot, far = jax.lax.rem(t, slots), jax.lax.rem(t + slots - 1, slots)

        def issue(group, rows, number):
            """This pass's share of the copies for the token `slots - 1` ahead."""
            share = rows[len(rows) * number // passes : len(rows) * (number + 1) // passes]
            if ahead:
                _issue(t + slots - 1, far, group, dma, tiling, share)

        _wait(slot, dma, tiling)
        if tiling.sums:
            listed = value[pl.ds(t, 1), :]
            column = lambda g: jnp.sum(jnp.where(diagonal == g * SUBLANES, listed, 0.0), 1, keepdims=True)  # noqa: E731
            for number, (start, width) in enumerate(chunks):

                def add(at, rows, carry, number=number, start=start, width=width):
                    weights, sums = carry
                    following = [column(g + UNROLL) for g in at]  # a step early: lane reductions are slow
                    for g, some, weight in zip(at, rows, weights, strict=False):
                        words = buffer[slot, g, :, start : start + width]
                        issue(g, some, number)
                        sums = [s + weight * x for s, x in zip(sums, _halves(words), strict=True)]
                    return following, sums

                zeros = [jnp.zeros((SUBLANES, width), jnp.float32) for _ in range(tiling.parts)]
                _, sums = _over_groups(tiling, add, ([column(g) for g in range(UNROLL)], zeros))
                for part, s in enumerate(sums):
                    first = part * tiling.words + start
                    at = pl.ds(first, width)
                    y = jnp.sum(s, axis=0, keepdims=True)
                    if tiling.dots and 0 < tiling.width < first + width:  # an infinite value makes NaN of padding
                        y = jnp.where(_iota(y.shape, 1) < tiling.width - first, y, 0.0)
                    row_out[pl.ds(t, 1), at] = given[pl.ds(t, 1), at] - y if tiling.dots else y
        if tiling.dots:
            row_ref = row_out if tiling.sums else given
            found = jnp.zeros((SUBLANES, tiling.lanes), jnp.float32)

            def place(found, group, product):
                """Adds the eight products of a group at its eight lanes, one per sublane."""
                return jnp.where(diagonal == group * SUBLANES, found + jnp.sum(product, 1, keepdims=True), found)

            for number, (start, width) in enumerate(chunks, len(chunks) * tiling.sums):

                def dot(at, rows, carry, number=number, start=start, width=width):
                    found, before = carry
                    for u, product in enumerate(before):  # of the previous step: lane reductions are slow
                        found = place(found, at[0] - UNROLL + u, product)
                    products = []
                    for g, some in zip(at, rows, strict=True):
                        words = buffer[slot, g, :, start : start + width]
                        issue(g, some, number)
                        product = jnp.zeros((SUBLANES, LANES), jnp.float32)
                        for part, x in enumerate(_halves(words)):
                            x = x * row_ref[pl.ds(t, 1), pl.ds(part * tiling.words + start, width)]
                            for c in range(0, width, LANES):
                                product = product + x[:, c : c + LANES]
                        products.append(product)
                    return found, products

                nothing = [jnp.zeros((SUBLANES, LANES), jnp.float32)] * UNROLL
                found, last = _over_groups(tiling, dot, (found, nothing))
                for u, product in enumerate(last):
                    found = place(found, tiling.groups - len(last) + u, product)
            dots_out[pl.ds(t, 1), :] = jnp.sum(found, axis=0, keepdims=True)
        return 0

    def prologue(s, _):
        def issue_all(at, rows, carry):
            for g, some in zip(at, rows, strict=True):
                _issue(s, s, g, dma, tiling, some)
            return carry

        return _over_groups(tiling, issue_all, 0)

    jax.lax.fori_loop(0, slots - 1, prologue, 0)
    jax.lax.fori_loop(0, tokens - slots + 1, partial(token, ahead=True), 0)
    jax.lax.fori_loop(tokens - slots + 1, tokens, partial(token, ahead=False), 0)


def _iota(shape, axis):
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def gather(values, indices, rows, W_table, width: int, interpret: Any = False) -> list[jax.Array]:
    """The kernel on a table in its own layout: sums [B, width] if there are values, dots [B, K] if there are rows."""
    batch, k = indices.shape
    parts = 2 if W_table.dtype == jnp.uint32 else 1
    tiling = Tiling(batch, k, W_table.shape[-1], parts, values is not None, rows is not None, width)
    tokens, columns = tiling.tokens, tiling.words * parts
    steps = -(-batch // tokens)
    fit = lambda a, wide: jnp.pad(a, ((0, steps * tokens - batch), (0, wide - a.shape[1])))  # noqa: E731
    block = lambda wide: pl.BlockSpec((tokens, wide), lambda i: (i, 0))  # noqa: E731
    flat = fit(indices.astype(jnp.int32), k).reshape(steps, 1, tokens * k)
    args = [flat]
    specs = [pl.BlockSpec((None, 1, tokens * k), lambda i: (i, 0, 0), memory_space=pltpu.SMEM)]
    shapes, out_specs = [], []
    if tiling.sums:
        args.append(fit(values.astype(jnp.float32), tiling.lanes))
        specs.append(block(tiling.lanes))
        shapes.append(jax.ShapeDtypeStruct((steps * tokens, columns), jnp.float32))
        out_specs.append(block(columns))
    if tiling.dots:
        args.append(fit(rows.astype(jnp.float32), columns))
        specs.append(block(columns))
        shapes.append(jax.ShapeDtypeStruct((steps * tokens, tiling.lanes), jnp.float32))
        out_specs.append(block(tiling.lanes))
    row_bytes = tiling.words * 4
    cost = pl.CostEstimate(
        flops=2 * batch * k * columns * (tiling.sums + tiling.dots),
        transcendentals=0,
        bytes_accessed=batch * k * row_bytes + batch * columns * 4 * len(shapes),
    )
    out = pl.pallas_call(
        partial(_kernel, tiling=tiling),
        grid=(steps,),
        in_specs=[*specs, pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=out_specs,
        out_shape=shapes,
        scratch_shapes=[
            pltpu.VMEM((tiling.slots, tiling.groups, SUBLANES, tiling.words), W_table.dtype),
            pltpu.SemaphoreType.DMA((tiling.slots,)),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=tiling.vmem, disable_bounds_checks=True
        ),
        cost_estimate=cost,
        interpret=interpret,
        name="gather_" + "_".join(["sum"] * tiling.sums + ["dots"] * tiling.dots),
    )(*args, W_table)
    wide = [width] * tiling.sums + [k] * tiling.dots
    return [a[:batch, :w] for a, w in zip(out, wide, strict=True)]


def _cuts(k: int, words: int) -> list[slice]:
    """Pieces of a list of K entries whose row buffers fit VMEM, and whose indices fit SMEM eight tokens at a time."""
    piece = min(ENTRIES, max(SUBLANES, BUFFER // (2 * words * 4) // SUBLANES * SUBLANES))
    return [slice(s, min(s + piece, k)) for s in range(0, k, piece)]


def decode(values: jax.Array, indices: jax.Array, W: jax.Array, *, interpret: Any = False) -> jax.Array:
    """sum_j values[b, j] W[indices[b, j]] in f32: [B, E].  Arguments as in the api."""
    t = table(W)
    cuts = _cuts(indices.shape[1], t.shape[-1])
    pieces = (gather(values[:, c], indices[:, c], None, t, _padded(W, t), interpret)[0] for c in cuts)
    return _unpadded(sum(pieces), W)


def dots(g: jax.Array, indices: jax.Array, W: jax.Array, *, interpret: Any = False) -> jax.Array:
    """g[b] . W[indices[b, j]]: the gradient of the values, [B, K] f32."""
    t = table(W)
    g = _as_columns(g, W, t)
    pieces = [gather(None, indices[:, c], g, t, 0, interpret)[0] for c in _cuts(indices.shape[1], t.shape[-1])]
    return jnp.concatenate(pieces, axis=1)


def decode_and_dots(
    values: jax.Array, indices: jax.Array, W: jax.Array, target: jax.Array, *, interpret: Any = False
) -> tuple[jax.Array, jax.Array]:
    """e = target - sum_j values_j W[i_j], [B, E] f32, and <e_b, W[i_bj]>, [B, K] f32, each row fetched once.

    A list too long for the buffers is decoded and multiplied in two passes.
    """
    t = table(W)
    if len(_cuts(indices.shape[1], t.shape[-1])) > 1:
        e = target.astype(jnp.float32) - decode(values, indices, W, interpret=interpret)
        return e, dots(e, indices, W, interpret=interpret)
    target = _as_columns(target, W, t)
    e, p = gather(values, indices, target, t, W.shape[1], interpret)
    return e, p


def _padded(W, t) -> int:
    return math.prod(t.shape[1:]) * (2 if t.dtype == jnp.uint32 else 1)


def _as_columns(rows, W, t):
    """Rows [B, E] padded as the table's rows are: the two halves of a packed row lie apart."""
    return jnp.pad(rows.astype(jnp.float32), ((0, 0), (0, _padded(W, t) - W.shape[1])))


def _unpadded(y, W):
    return y[:, : W.shape[1]]
