"""The threshold of the k largest on a TPU: a few rows stay on the chip for all passes of the bisection."""

import functools

import jax
import jax.numpy as jnp

from jaxsae.kernels._chip import LANES, SUBLANES, VMEM_SHARE, objection, vmem_bytes_here
from jaxsae.kernels.topk_mask.xla import HIGHEST, LOWEST, largest_with

#: Columns of one step of a counting pass.
CHUNK = 2048


def refuse(shape, dtype: str) -> str | None:
    """Why the kernel cannot serve a call, or None; asked on a TPU only."""
    if why := objection(dtype):
        return why
    if tile_rows(shape["B"], shape["S"], vmem_bytes_here()) is None:
        return f"cannot keep 8 rows of {shape['S']} on this chip"
    return None


def tile_rows(rows: int, size: int, vmem: int) -> int | None:
    """Rows of a tile: two copies of the input and one of its keys must fit; None if not even 8 rows do."""
    per_row = 3 * 4 * (-(-size // CHUNK) * CHUNK)
    fits = [r for r in (32, 16, 8) if r * per_row <= vmem * VMEM_SHARE]
    return min(fits[0], -(-rows // SUBLANES) * SUBLANES) if fits else None


def cut(x: jax.Array, k: int | jax.Array, *, tile: int | None = None, interpret=False) -> tuple[jax.Array, jax.Array]:
    """See `jaxsae.kernels.topk_mask.xla.cut`.

    Args:
        tile: rows of a tile; None computes them for this chip.
        interpret: for tests on a CPU.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    rows, size = x.shape
    vmem = None if tile else vmem_bytes_here()
    R = tile or tile_rows(rows, size, vmem)
    assert R is not None  # `refuse` has seen that a tile fits
    chunks, tiles = -(-size // CHUNK), pl.cdiv(rows, R)
    # One number per row lies along the lanes: as a column [rows, 1] it would be padded to 128 numbers a row in memory.
    k = jnp.broadcast_to(jnp.asarray(k, jnp.int32), (rows,))
    k = jnp.pad(k, (0, tiles * R - rows)).reshape(tiles, 1, R)
    narrow = pl.BlockSpec((None, 1, R), lambda i: (i, 0, 0))
    least, last = pl.pallas_call(
        functools.partial(_body, size=size, chunks=chunks),
        grid=(tiles,),
        in_specs=[pl.BlockSpec((R, size), lambda i: (i, 0)), narrow],
        out_specs=[narrow, narrow],
        out_shape=[jax.ShapeDtypeStruct((tiles, 1, R), jnp.int32)] * 2,
        scratch_shapes=[pltpu.VMEM((R, chunks * CHUNK), jnp.int32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=vmem and int(vmem * VMEM_SHARE)
        ),
        cost_estimate=pl.CostEstimate(flops=34 * x.size, bytes_accessed=4 * x.size, transcendentals=0),
        interpret=interpret,
        name="topk_mask_cut",
    )(x.astype(jnp.float32), k)
    return least.reshape(-1)[:rows], last.reshape(-1)[:rows]


def _body(x, k, least_out, last_out, keys, *, size: int, chunks: int):
    from jax.experimental import pallas as pl

    from jaxsae.kernels._ordered import total_order

    R, tail = x.shape[0], size % CHUNK
    own = jax.lax.broadcasted_iota(jnp.int32, (R, R), 0) == jax.lax.broadcasted_iota(jnp.int32, (R, R), 1)

    def down(row):
        """[1, R] along lanes to [R, 1]."""
        return jnp.sum(jnp.where(own, row, 0), axis=1, keepdims=True)

    def along(column):
        """[R, 1] to [1, R] along lanes."""
        return jnp.sum(jnp.where(own, column, 0), axis=0, keepdims=True)

    k = down(k[...])

    def convert(c, carry):
        here = pl.ds(pl.multiple_of(c * CHUNK, LANES), CHUNK)
        keys[:, here] = total_order(x[:, here])
        return carry

    if size >= CHUNK:  # a narrower row has no whole chunk to read
        jax.lax.fori_loop(0, size // CHUNK, convert, 0)
    if tail:  # what fills the chunk is below every real key but a NaN of negative sign, which has a lower index
        keys[:, size - tail : size] = total_order(x[:, size - tail :])
        keys[:, size:] = jnp.full((R, CHUNK - tail), LOWEST, jnp.int32)

    def wide(t):
        """A threshold per row, over the lanes once and not at every step of a pass."""
        return jnp.broadcast_to(t, (R, LANES))

    def count(holds, t):
        """[R, 1]: entries for which holds(128 columns of keys, their first column, t over the lanes) is true."""
        t = wide(t)

        def chunk(c, found):
            first = pl.multiple_of(c * CHUNK, LANES)
            block = keys[:, pl.ds(first, CHUNK)]
            lanes = range(0, CHUNK, LANES)
            parts = [holds(block[:, at : at + LANES], first + at, t).astype(jnp.int32) for at in lanes]
            while len(parts) > 1:  # a tree: a chain of additions would wait for each one's latency
                parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
            return found + parts[0]

        found = jax.lax.fori_loop(0, chunks, chunk, jnp.zeros((R, LANES), jnp.int32))
        return jnp.sum(found, axis=1, keepdims=True)

    def at_least(t):
        return count(lambda key, _, t: key >= t, t)

    least = largest_with(at_least, k, jnp.full((R, 1), LOWEST, jnp.int32), 32)
    need = k - count(lambda key, _, t: key > t, least)
    least_out[...] = along(jnp.where(k <= 0, HIGHEST, least))
    last_out[...] = along(jnp.where(k <= 0, -1, size - 1))
    spare = count(lambda key, _, t: key == t, least) > need

    @pl.when(jnp.max(spare.astype(jnp.int32)) > 0)  # ties across the boundary, in some row of the tile
    def _():
        column, tied = jax.lax.broadcasted_iota(jnp.int32, (R, LANES), 1), wide(least)

        def room(t):
            """Ties still wanted, once those in front of column t are taken."""
            return need - count(lambda key, first, t: (key == tied) & (column + first < t), t)

        last = largest_with(room, jnp.ones_like(k), jnp.zeros_like(k), max(1, size.bit_length()))
        last_out[...] = along(jnp.where(k <= 0, -1, jnp.minimum(last, size - 1)))
