"""Row gradients by sorted segments: each pair adds a row that is resident in VMEM to the latent it names.

The pairs (latent, token, value) are sorted by latent, in XLA, stably: the order of every sum is fixed, so two runs
agree bit for bit.  One grid step owns a tile of latents and walks its pairs as one flat stream, without a branch per
latent: the sum restarts where the latent changes and is stored after every pair, the last store of a latent being
its total.  Eight pairs are unrolled, so that their scalar work and loads overlap.

The rows lie in VMEM as [B, 8, w]: a row is whole registers at a dynamic leading index, where a row of a [B, E] array
would be one sublane of many.  The sums have the same form; on the way out eight latents at a time are read with a
stride of eight sublanes, which turns them into [8 latents, columns] blocks of an ordinary [S, E] array, or, transposed
in VMEM, of an ordinary [E, S] one.  The table of weights never changes its layout.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxsae.kernels._chip import LANES, SUBLANES, VMEM_SHARE, vmem_bytes_here

ROW = LANES * SUBLANES
#: Latents per grid step; as many as lanes, so that a transposed block is whole registers.
LATENTS = 128
#: Pairs per block of SMEM.
CHUNK = 1024
#: Pairs unrolled in the inner loop.
UNROLL = 8
#: Share of VMEM for resident rows; wider rows are handled in column blocks, each walking the pairs again.
RESIDENT = 0.6
#: Bytes of VMEM left to the compiler.
SPARE = 8 << 20


def vmem_bytes() -> int:
    """VMEM of one core of the chip being compiled for; the smallest of them where there is none, in the interpreter."""
    try:
        return vmem_bytes_here()
    except ValueError:
        return 64 << 20


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Tiling:
    """Static sizes of one call.

    Args:
        batch: resident rows.
        width: E.
        size: S.
        itemsize: bytes per element of the resident rows.
        memory: bytes of VMEM.
        transposed: whether latents lie on lanes on the way out.
        tables: arrays of which a tile streams in or out.
    """

    batch: int
    width: int
    size: int
    itemsize: int
    memory: int
    transposed: bool = False
    tables: int = 1

    @property
    def latents(self) -> int:
        """Per grid step."""
        return LATENTS if self.transposed else min(LATENTS, round_up(self.size, SUBLANES))

    @property
    def tiles(self) -> int:
        return -(-self.size // self.latents)

    @property
    def columns(self) -> int:
        """Per column block, a multiple of 1024: padding fills whole registers."""
        resident = int(RESIDENT * self.memory) // (self.batch * self.itemsize)
        every = int(VMEM_SHARE * self.memory - SPARE) // (self.batch * self.itemsize + self.tile_bytes)
        most = max(ROW, min(resident, every) // ROW * ROW)
        blocks = -(-self.width // most)
        return round_up(-(-self.width // blocks), ROW)  # evenly, as padding would be walked like the rest

    @property
    def blocks(self) -> int:
        return -(-self.width // self.columns)

    @property
    def registers(self) -> int:
        """Of one row of one column block."""
        return self.columns // ROW

    @property
    def tile_bytes(self) -> int:
        """Per column: sums, twice for what is turned over, and two buffers of every table's tile."""
        return self.latents * 4 * (2 + 2 * self.tables)

    @property
    def vmem(self) -> int:
        """Bytes: resident rows, tiles, room for the compiler's own."""
        return self.columns * (self.batch * self.itemsize + self.tile_bytes) + SPARE


def sort_pairs(values: jax.Array, indices: jax.Array, tiling: Tiling) -> tuple[jax.Array, ...]:
    """The pairs in order of latent, then of token, in blocks for SMEM.

    Returns:
        offsets [tiles + 1] of each tile's first pair, and blocks of CHUNK pairs: [n, 1, 2 CHUNK] int32, the tokens
        followed by the first row of the latent's sum in its tile, and [n, 1, CHUNK] f32 values.
    """
    (batch, k), latents, tiles = indices.shape, tiling.latents, tiling.tiles
    token = jax.lax.broadcasted_iota(jnp.int32, (batch, k), 0)
    flat = (indices.astype(jnp.int32), token, values.astype(jnp.float32))
    latent, token, value = jax.lax.sort(tuple(a.reshape(-1) for a in flat), num_keys=1, is_stable=True)
    offsets = jnp.searchsorted(latent, jnp.arange(tiles + 1, dtype=jnp.int32) * latents).astype(jnp.int32)
    chunks = batch * k // CHUNK + 2  # a step reads the block in which it begins, be it empty, and the next
    block = lambda a: jnp.pad(a, (0, chunks * CHUNK - batch * k)).reshape(chunks, 1, CHUNK)  # noqa: E731
    place = latent % latents * SUBLANES
    return offsets, jnp.concatenate([block(token), block(place)], axis=2), block(value)


def _walk(first, stop, start, meta, value, rows, sums, carry):
    """Adds pairs first..stop-1 of one block whose first pair is `start`; carry: (sum per register, its latent)."""
    registers = rows.shape[-1] // LANES
    apart = sums.shape[0] // registers

    def one(at, carry):
        total, latent = carry
        token, place, v = meta[0, at], meta[0, CHUNK + at], value[0, at]
        row = rows[token].astype(jnp.float32)
        fresh = place != latent
        total = tuple(
            jnp.where(fresh, 0.0, total[r]) + v * row[:, r * LANES : (r + 1) * LANES] for r in range(registers)
        )
        for r in range(registers):
            sums[pl.ds(pl.multiple_of(place + r * apart, SUBLANES), SUBLANES), :] = total[r]
        return total, place

    def several(step, carry):
        at = first - start + step * UNROLL
        for u in range(UNROLL):
            carry = one(at + u, carry)
        return carry

    count = jnp.maximum(stop - first, 0)
    full = jax.lax.div(count, UNROLL)
    carry = jax.lax.fori_loop(0, full, several, carry)
    return jax.lax.fori_loop(full * UNROLL, count, lambda i, c: one(first - start + i, c), carry)


def accumulate(offsets, blocks, rows, sums, scratch, tile):
    """Fills `sums` [registers * latents * 8, 128] with the gradient of one tile of latents.

    The two blocks of pairs that the grid has prefetched hold an ordinary tile; where one latent is named so often that
    they do not, the rest is copied block by block.
    """
    (meta_a, value_a), (meta_b, value_b), (meta_hbm, value_hbm) = blocks
    meta_more, value_more, sem = scratch
    sums[...] = jnp.zeros(sums.shape, sums.dtype)
    first, stop = offsets[tile], offsets[tile + 1]
    chunk = jax.lax.div(first, CHUNK)
    start = chunk * CHUNK
    carry = (tuple(jnp.zeros((SUBLANES, LANES), jnp.float32) for _ in range(rows.shape[-1] // LANES)), jnp.int32(-1))
    carry = _walk(first, jnp.minimum(stop, start + CHUNK), start, meta_a, value_a, rows, sums, carry)
    carry = _walk(
        start + CHUNK, jnp.minimum(stop, start + 2 * CHUNK), start + CHUNK, meta_b, value_b, rows, sums, carry
    )

    def rest(c, carry):
        copies = [
            pltpu.make_async_copy(meta_hbm.at[c], meta_more, sem.at[0]),
            pltpu.make_async_copy(value_hbm.at[c], value_more, sem.at[1]),
        ]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.wait()
        return _walk(c * CHUNK, jnp.minimum(stop, (c + 1) * CHUNK), c * CHUNK, meta_more, value_more, rows, sums, carry)

    jax.lax.fori_loop(chunk + 2, jax.lax.div(stop + CHUNK - 1, CHUNK), rest, carry)


def groups(sums, tiling: Tiling, width: int, use) -> None:
    """Calls use(first latent, blocks) for eight latents at a time, in the form of an ordinary [latents, E] tile.

    `blocks` lists (first column, columns, [8, columns] f32) and leaves out the padding beyond `width`.  Sublane s,
    register r and lane l of a sum hold column s * tiling.columns / 8 + r * 128 + l.  The registers of a latent lie
    apart, so that latents are eight sublanes from each other: a load with a longer stride is split into many.
    """

    apart = tiling.latents * SUBLANES

    def group(g, _):
        blocks = []
        for s in range(SUBLANES):
            for r in range(tiling.registers):
                column = s * (tiling.columns // SUBLANES) + r * LANES
                wide = min(LANES, width - column)
                if wide > 0:
                    start = r * apart + g * SUBLANES * SUBLANES + s
                    blocks.append((column, wide, sums[pl.ds(start, SUBLANES, stride=SUBLANES), :][:, :wide]))
        use(pl.multiple_of(g * SUBLANES, SUBLANES), blocks)
        return 0

    jax.lax.fori_loop(0, tiling.latents // SUBLANES, group, 0)


def columns(sums, tiling: Tiling, width: int, use) -> None:
    """Calls use(first column, columns, [columns, latents] f32) over a tile in transposed form."""
    for s in range(SUBLANES):
        for r in range(tiling.registers):
            column = s * (tiling.columns // SUBLANES) + r * LANES
            wide = min(LANES, width - column)
            if wide > 0:
                start = r * tiling.latents * SUBLANES + s
                found = sums[pl.ds(start, tiling.latents, stride=SUBLANES), :]
                use(column, wide, found.T[:wide])


def _kernel(offsets, *refs, tiling: Tiling):
    meta_a, value_a, meta_b, value_b, meta_hbm, value_hbm, rows, out, *scratch = refs
    *scratch, sums = scratch
    blocks = ((meta_a, value_a), (meta_b, value_b), (meta_hbm, value_hbm))
    accumulate(offsets, blocks, rows, sums, scratch, pl.program_id(1))
    if tiling.transposed:

        def put_columns(column, wide, block):
            out[column : column + wide, :] = block

        columns(sums, tiling, out.shape[0], put_columns)
        return

    def put(latent, blocks):
        for column, wide, block in blocks:
            out[pl.ds(latent, SUBLANES), column : column + wide] = block

    groups(sums, tiling, out.shape[1], put)


def resident(rows: jax.Array, tiling: Tiling) -> jax.Array:
    """[B, E] rows as [blocks, B, 8, columns / 8], bf16 or f32."""
    rows = rows if rows.dtype == jnp.bfloat16 else rows.astype(jnp.float32)
    total = tiling.blocks * tiling.columns
    rows = jnp.pad(rows, ((0, 0), (0, total - rows.shape[1])))
    shape = (len(rows), tiling.blocks, SUBLANES, tiling.columns // SUBLANES)
    return rows.reshape(shape).transpose(1, 0, 2, 3)


def pair_specs(tiling: Tiling, smem=pltpu.SMEM) -> list[pl.BlockSpec]:
    """Block specs of the pairs: the block a tile begins in, the next one, and the whole arrays; then the rows."""
    at = lambda c, i, off: jax.lax.div(off[i], CHUNK)  # noqa: E731
    wide = (2 * CHUNK, CHUNK)
    a = [pl.BlockSpec((None, 1, w), lambda c, i, off: (at(c, i, off), 0, 0), memory_space=smem) for w in wide]
    b = [pl.BlockSpec((None, 1, w), lambda c, i, off: (at(c, i, off) + 1, 0, 0), memory_space=smem) for w in wide]
    whole = [pl.BlockSpec(memory_space=pl.ANY)] * 2
    rows = pl.BlockSpec(
        (None, tiling.batch, SUBLANES, tiling.columns // SUBLANES),
        lambda c, i, off: (c, 0, 0, 0),
        pipeline_mode=pl.Buffered(1),
    )
    return [*a, *b, *whole, rows]


def scratch_shapes(tiling: Tiling) -> list[Any]:
    """Room for a block of pairs beyond the prefetched two, and the sums of one tile."""
    return [
        pltpu.SMEM((1, 2 * CHUNK), jnp.int32),
        pltpu.SMEM((1, CHUNK), jnp.float32),
        pltpu.SemaphoreType.DMA((2,)),
        pltpu.VMEM((tiling.latents * tiling.registers * SUBLANES, LANES), jnp.float32),
    ]


def sparse_grad(
    values: jax.Array,
    indices: jax.Array,
    rows: jax.Array,
    size: int,
    transposed: bool = False,
    *,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.sparse_grad.api.sparse_grad`; `transposed` gives dW as [E, S], as an encoder keeps it.

    A batch whose rows do not fit VMEM even in the narrowest column blocks is summed in pieces.
    """
    sums = jnp.zeros(size, jnp.float32).at[indices].add(values.astype(jnp.float32))
    most = most_rows(itemsize_of(rows))

    def piece(start: int) -> jax.Array:
        v, i, r = (a[start : start + most] for a in (values, indices, rows))
        pairs = sort_pairs(v, i, tiling_of(r, size, transposed))
        return segment_grad(pairs, r, size, transposed, interpret=interpret)

    dW = piece(0)
    for start in range(most, len(rows), most):
        dW = dW + piece(start)
    return dW, sums


def most_rows(itemsize: int) -> int:
    """Rows of a batch, of elements of so many bytes, that can be resident at once, in the narrowest column blocks."""
    return max(1, int(RESIDENT * vmem_bytes()) // (ROW * itemsize))


def itemsize_of(rows: jax.Array) -> int:
    """Bytes of an element of the resident rows: bf16 if `rows` are, else f32."""
    return 2 if rows.dtype == jnp.bfloat16 else 4


def tiling_of(rows: jax.Array, size: int, transposed: bool, tables: int = 1) -> Tiling:
    """The sizes of a call."""
    return Tiling(*rows.shape, size, itemsize_of(rows), vmem_bytes(), transposed, tables)


def table_spec(tiling: Tiling) -> pl.BlockSpec:
    """Block spec of a tile of a table, [S, E] or transposed."""
    wide = tiling.width if tiling.blocks == 1 else tiling.columns
    if tiling.transposed:
        return pl.BlockSpec((wide, tiling.latents), lambda c, i, off: (c, i))
    return pl.BlockSpec((tiling.latents, wide), lambda c, i, off: (i, c))


def segment_grad(pairs, rows: jax.Array, size: int, transposed: bool = False, *, interpret: Any = False) -> jax.Array:
    """The kernel on sorted pairs: dW [S, E], or [E, S] if `transposed`."""
    tiling = tiling_of(rows, size, transposed)
    offsets, meta, value = pairs
    shape = (tiling.width, size) if transposed else (size, tiling.width)
    return pl.pallas_call(
        partial(_kernel, tiling=tiling),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(tiling.blocks, tiling.tiles),
            in_specs=pair_specs(tiling),
            out_specs=table_spec(tiling),
            scratch_shapes=scratch_shapes(tiling),
        ),
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=tiling.vmem, disable_bounds_checks=True
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * value.size * tiling.width, transcendentals=0, bytes_accessed=4 * size * tiling.width + rows.nbytes
        ),
        interpret=interpret,
        name="segment_grad",
    )(offsets, meta, value, meta, value, meta, value, resident(rows, tiling))
