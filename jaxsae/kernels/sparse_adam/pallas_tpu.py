"""Adam on the rows of a table while their gradient is still in VMEM: the gradient never goes to memory.

The segments are summed as in `sparse_grad`; a tile of weights and moments streams through, is moved, and goes back
into the same buffers.  Memory traffic is 24 bytes per weight, where a gradient written and read again makes it 32.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxsae.kernels.sparse_grad import pallas_tpu as segments


def _kernel(offsets, factors, *refs, tiling: segments.Tiling, b1: float, b2: float, eps: float):
    *pairs, rows, W, mu, nu, W_out, mu_out, nu_out, meta, value, sem, sums = refs
    blocks = tuple(zip(pairs[::2], pairs[1::2], strict=True))
    segments.accumulate(offsets, blocks, rows, sums, (meta, value, sem), pl.program_id(1))
    rate, scale = factors[0], factors[1]

    def move(at, g):
        """lr (mu / c1) / (sqrt(nu / c2) + eps) = rate mu / (sqrt(nu scale) + eps)."""
        m = b1 * mu[at] + (1 - b1) * g
        n = b2 * nu[at] + (1 - b2) * g * g
        W_out[at] = W[at] - rate * m / (jnp.sqrt(n * scale) + eps)
        mu_out[at], nu_out[at] = m, n

    if tiling.transposed:
        segments.columns(sums, tiling, W.shape[0], lambda c, wide, g: move((slice(c, c + wide), slice(None)), g))
        return

    def group(latent, blocks):
        for column, wide, g in blocks:
            move((pl.ds(latent, segments.SUBLANES), slice(column, column + wide)), g)

    segments.groups(sums, tiling, W.shape[1], group)


def sparse_adam(
    W, mu, nu, values, indices, rows, lr, count, b1, b2, eps, transposed, *, interpret: Any = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `jaxsae.kernels.sparse_adam.api.sparse_adam`."""
    size = W.shape[1 if transposed else 0]
    pairs = segments.sort_pairs(values, indices, segments.tiling_of(rows, size, transposed))
    t = count.astype(jnp.float32)
    factors = jnp.stack([lr / (1 - b1**t), 1 / (1 - b2**t)]).astype(jnp.float32)
    return segment_adam(W, mu, nu, pairs, rows, factors, b1, b2, eps, transposed, interpret=interpret)


def segment_adam(
    W, mu, nu, pairs, rows, factors, b1, b2, eps, transposed, *, interpret: Any = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The kernel on sorted pairs; factors: [lr / (1 - b1^t), 1 / (1 - b2^t)]."""
    tiling = segments.tiling_of(rows, W.shape[1 if transposed else 0], transposed, tables=6)
    offsets, meta, value = pairs
    spec = segments.table_spec(tiling)
    return pl.pallas_call(
        partial(_kernel, tiling=tiling, b1=b1, b2=b2, eps=eps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(tiling.blocks, tiling.tiles),
            in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *segments.pair_specs(tiling), spec, spec, spec],
            out_specs=[spec, spec, spec],
            scratch_shapes=segments.scratch_shapes(tiling),
        ),
        out_shape=[jax.ShapeDtypeStruct(W.shape, jnp.float32)] * 3,
        input_output_aliases={9: 0, 10: 1, 11: 2},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=tiling.vmem, disable_bounds_checks=True
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * value.size * tiling.width + 12 * W.size, transcendentals=W.size, bytes_accessed=24 * W.size
        ),
        interpret=interpret,
        name="segment_adam",
    )(offsets, factors, meta, value, meta, value, meta, value, segments.resident(rows, tiling), W, mu, nu)
