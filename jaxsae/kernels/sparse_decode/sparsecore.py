"""Gather-sum on the SparseCores of a TPU (v5p, v6e): an engine for rows beside the TensorCore, which stays free.

Every vector subcore takes tokens of its own.  The rows a token names come by indirect copies, a chunk of rows each, one
chunk under way while another is summed.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import tpu_sc as plsc

from jaxsae.kernels._chip import LANES

#: Rows of a chunk: as many as an indirect copy of a tiled table takes at least.
CHUNK = 8
#: Share of a subcore's memory for rows; the rest is for codes, sums and the compiler.
SHARE = 0.85


@dataclasses.dataclass(frozen=True)
class Cores:
    """The SparseCores of a chip: how many, their vector subcores, lanes of a vector, and bytes of a subcore."""

    cores: int
    subcores: int
    lanes: int
    bytes: int

    @property
    def workers(self) -> int:
        return self.cores * self.subcores


def cores_here() -> Cores | None:
    """Of the chip that the program is traced for; None where it has none (v5e)."""
    found = pltpu.get_tpu_info().sparse_core
    if found is None:
        return None
    return Cores(found.num_cores, found.num_subcores, found.num_lanes, found.vmem_capacity_bytes)


def refuse(width: int, dtype: str, cores: Cores | None) -> str | None:
    """Why this way cannot serve a table of rows of this width, or None.

    Example:
        >>> refuse(768, "bfloat16", Cores(2, 16, 8, 2**18))
        'takes float32, not bfloat16'
    """
    if cores is None:
        return "needs a chip with SparseCores (v5p, v6e), this one has none"
    if CHUNK % cores.lanes:
        return f"takes chips whose vectors have at most {CHUNK} lanes, this one has {cores.lanes}"
    if dtype != "float32":
        return f"takes float32, not {dtype}"
    if width % LANES:
        return f"takes rows of a multiple of {LANES} columns, not {width}"
    if slots(width, cores) == 0:
        most = int(cores.bytes * SHARE) // (4 * CHUNK) // LANES * LANES
        return f"takes rows of at most {most} columns on this chip, not {width}"
    return None


def slots(width: int, cores: Cores) -> int:
    """Chunks of rows that a subcore holds: two, so that one is fetched while the other is summed, or one, or none."""
    return min(2, int(cores.bytes * SHARE) // (4 * CHUNK * width))


def decode(values: jax.Array, indices: jax.Array, W: jax.Array) -> jax.Array:
    """sum_j values[b, j] W[indices[b, j]]: [B, E]; see `jaxsae.kernels.sparse_decode.api.sparse_decode`."""
    cores = cores_here()
    assert cores is not None, "asked for only where `refuse` has nothing against it"
    return gather_sum(values, indices, W, cores)


def gather_sum(
    values: jax.Array, indices: jax.Array, W: jax.Array, cores: Cores, *, interpret: Any = False
) -> jax.Array:
    """The kernel.  Interpreted, rows are fetched one by one, since the interpreter knows no indirect copies."""
    batch, k = indices.shape
    pad = (0, -batch % cores.workers), (0, -k % CHUNK)  # row 0 is fetched for what is missing of a chunk, and not added
    values, indices = jnp.pad(values.astype(jnp.float32), pad), jnp.pad(indices.astype(jnp.int32), pad)
    rows, entries, k = len(indices), k, indices.shape[1]
    width, held = W.shape[1], slots(W.shape[1], cores)
    mesh = plsc.VectorSubcoreMesh(
        core_axis_name="core", subcore_axis_name="subcore", num_cores=cores.cores, num_subcores=cores.subcores
    )
    tokens = rows // cores.workers
    body = partial(_kernel, tokens=tokens, entries=entries, cores=cores, interpreted=interpret is not False)
    out = pl.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((rows, width), jnp.float32),
        mesh=mesh,
        scratch_types=[
            pltpu.VMEM((k,), jnp.int32),
            pltpu.VMEM((k,), jnp.float32),
            pltpu.VMEM((held, CHUNK, width), jnp.float32),
            pltpu.VMEM((width,), jnp.float32),
            pltpu.SemaphoreType.DMA((held,)),
        ],
        compiler_params=pltpu.CompilerParams(use_tc_tiling_on_sc=True),  # or the table is laid out anew in every call
        name="sparsecore_gather_sum",
        interpret=interpret,
    )(indices, values, W)
    return out[:batch]


def _kernel(
    indices, values, W, out, own_indices, own_values, chunks, total, arrived, *, tokens, entries, cores, interpreted
):
    worker = jax.lax.axis_index(("core", "subcore"))
    held, width, lanes = chunks.shape[0], chunks.shape[2], cores.lanes
    count = own_indices.shape[0] // CHUNK
    columns = partial(pl.loop, 0, width, step=lanes) if interpreted else partial(plsc.parallel_loop, 0, width, lanes)

    def copies(c):
        to, done = chunks.at[c % held], arrived.at[c % held]
        if not interpreted:
            return [pltpu.make_async_copy(W.at[own_indices.at[pl.ds(c * CHUNK, CHUNK)]], to, done)]
        named = own_indices[pl.ds(c * CHUNK, CHUNK)]
        return [pltpu.make_async_copy(W.at[named[j]], to.at[j], done) for j in range(CHUNK)]

    def start(c):
        for copy in copies(c):
            copy.start()

    @pl.loop(0, tokens)
    def _(t):
        token = worker * tokens + t
        pltpu.sync_copy(indices.at[token], own_indices)
        pltpu.sync_copy(values.at[token], own_values)
        start(0)
        for c in range(count):
            if held > 1 and c + 1 < count:
                start(c + 1)
            for copy in copies(c):
                copy.wait()
            _add(own_values, chunks, total, c, min(CHUNK, entries - c * CHUNK), held, lanes, columns)
            if held == 1 and c + 1 < count:
                start(c + 1)
        pltpu.sync_copy(total, out.at[token])


def _add(own_values, chunks, total, c, entries, held, lanes, columns):
    """Adds the entries of a chunk, rows with their weights, to the sum of the token; the first chunk starts it."""
    weights = [own_values[pl.ds(c * CHUNK + q, lanes)] for q in range(0, CHUNK, lanes)]

    @columns()
    def _(at):
        here = pl.ds(at, lanes)
        part = total[here] if c else jnp.zeros((lanes,), jnp.float32)
        for j in range(entries):
            part = part + weights[j // lanes][j % lanes] * chunks[c % held, j, here]
        total[here] = part
