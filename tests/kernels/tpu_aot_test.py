"""Every TPU kernel compiles for real chips at the reference shapes, in memory that does not grow with d_sae."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.errors import ConfigError
from jaxsae.kernels import encode_topk
from jaxsae.kernels._dispatch import compiling_for
from jaxsae.kernels.encode_topk import pallas_tpu as encode
from jaxsae.kernels.encode_topk._tiles import plan
from jaxsae.kernels.topk import segments
from jaxsae.kernels.topk_mask import pallas_tpu as mask
from jaxsae.testing import tpu_aot

pytestmark = [
    pytest.mark.skipif(tpu_aot.missing() is not None, reason=str(tpu_aot.missing())),
    pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the kernels need jax >= 0.10"),
]

if jax.__version_info__ >= (0, 10):
    from jaxsae.kernels.encode_topk._filter import group_filter
    from jaxsae.kernels.sparse_adam import pallas_tpu as adam
    from jaxsae.kernels.sparse_decode import pallas_tpu as rows_of
    from jaxsae.kernels.sparse_grad import pallas_tpu as grad

CHIPS = [pytest.param("v5e"), pytest.param("v5p", marks=pytest.mark.slow), pytest.param("v6e", marks=pytest.mark.slow)]
f32, bf16, i32 = jnp.float32, jnp.bfloat16, jnp.int32
abstract = jax.ShapeDtypeStruct


def shapes(B, D, S, dtype):
    return (
        abstract((B, D), dtype),
        abstract((D, S), dtype),
        abstract((S,), f32),
        abstract((D,), f32),
        abstract((S,), jnp.bool_),
    )


def compiled(chip, B, D, S, k, k_aux=0, signed=False, dtype=bf16):
    def run(x, W, b, b_pre, dead):
        return encode.forward(x, W, b, b_pre, None, dead, k, k_aux, signed)

    return tpu_aot.compile_for(chip, run, *shapes(B, D, S, dtype))


# Kernels alone, without the sorts around them that take the compiler longer: (chip, B, D, S, k) -> function, arguments.


def vmem_of(chip):
    return {"v5e": 128, "v5p": 64, "v6e": 128}[chip] * 2**20


def encoder(chip, B, D, S, k, k_aux=0, dtype=bf16, scaled=False, signed=False):
    tiles = plan(B, D, k, k_aux, scaled, jnp.dtype(dtype).itemsize, vmem_of(chip))
    vectors = abstract((S,), f32), abstract((S,), f32) if scaled else None, abstract((S,), bool) if k_aux else None

    def run(x, W, b, scale, dead):
        return group_filter(x, W, b, scale, dead, signed, tiles)

    return run, (abstract((B, D), dtype), abstract((D, S), dtype), *vectors)


def whole_mask(chip, B, D, S, k):
    return lambda x: mask.cut(x, k), (abstract((B, S), f32),)


def gathered(sums, dots, packed):
    """Rows of an f32 table as it lies, or packed bf16 ones."""

    def make(chip, B, D, S, k):
        table = abstract((S, 1, D // 2), jnp.uint32) if packed else abstract((S, D), f32)

        def run(v, i, rows, table):
            return rows_of.gather(v if sums else None, i, rows if dots else None, table, D)

        return run, (abstract((B, k), f32), abstract((B, k), i32), abstract((B, D), f32), table)

    return make


def pairs(B, S, k):
    """Sorted pairs as `sparse_grad.pallas_tpu.sort_pairs` returns them."""
    tiles, chunks = -(-S // grad.LATENTS), B * k // grad.CHUNK + 2
    blocks = abstract((chunks, 1, 2 * grad.CHUNK), i32), abstract((chunks, 1, grad.CHUNK), f32)
    return (abstract((tiles + 1,), i32), *blocks)


def row_gradient(transposed):
    def make(chip, B, D, S, k):
        run = lambda p, rows: grad.segment_grad(p, rows, S, transposed)  # noqa: E731
        return run, (pairs(B, S, k), abstract((B, D), bf16))

    return make


def moved(chip, B, D, S, k):
    def run(W, mu, nu, p, rows, factors):
        return adam.segment_adam(W, mu, nu, p, rows, factors, 0.9, 0.999, 1e-8, False)

    table = abstract((S, D), f32)
    return run, (table, table, table, pairs(B, S, k), abstract((B, D), bf16), abstract((2,), f32))


KERNELS = {
    "encode_topk_filter": encoder,
    "encode_topk_filter, second list of 512": partial(encoder, k_aux=512),
    "encode_topk_filter, scaled and signed, second list of 512": partial(encoder, k_aux=512, scaled=True, signed=True),
    "encode_topk_filter, f32": partial(encoder, dtype=f32),
    "encode_topk_filter, f32, second list of 512": partial(encoder, k_aux=512, dtype=f32),
    "encode_topk_filter, f32, scaled": partial(encoder, k_aux=512, dtype=f32, scaled=True),
    "encode_topk_filter, f32, signed": partial(encoder, k_aux=512, dtype=f32, signed=True),
    "topk_mask_cut": whole_mask,
    "gather_sum, f32": gathered(True, False, False),
    "gather_sum_dots, f32": gathered(True, True, False),
    "gather_sum_dots, packed bf16": gathered(True, True, True),
    "gather_dots, packed bf16": gathered(False, True, True),
    "segment_grad": row_gradient(False),
    "segment_grad, transposed": row_gradient(True),
    "segment_adam": moved,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("shape", tpu_aot.SHAPES)
@pytest.mark.parametrize("chip", tpu_aot.CHIPS)
def test_every_kernel_compiles_at_the_reference_shapes(chip, shape, name):
    """In the VMEM and SMEM of the chip, which the compiler sees to, and without a copy of a table."""
    sizes = tpu_aot.SHAPES[shape]
    f, args = KERNELS[name](chip, *sizes.values())
    lowered = tpu_aot.lower_for(chip, f, *args, donate=(0, 1, 2) if name == "segment_adam" else ())
    assert f'kernel_name = "{name.split(",")[0]}"' in lowered.as_text()
    used = tpu_aot.temporary_bytes(lowered.compile())
    print(f"{chip}, {shape}, {name}: {used / 2**20:.1f} MiB of temporaries")
    assert used < min(sizes["B"], sizes["D"]) * sizes["S"] * 2


def test_the_encoder_fits_in_float32():
    """What the compiler keeps of an f32 product at the highest precision is counted; v5p has the least VMEM."""
    f, args = encoder("v5p", **tpu_aot.SHAPES["B"], dtype=f32)
    assert tpu_aot.temporary_bytes(tpu_aot.compile_for("v5p", f, *args)) < 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"k_aux": 512}, {"k_aux": 32, "signed": True}, {"dtype": f32}],
    ids=["dead latents", "signed", "f32"],
)
def test_encode_topk_compiles_in_every_form(options):
    compiled("v5e", 1000, 1000, 20000, 32, **options)  # no size is a multiple of a tile


@pytest.mark.slow
@pytest.mark.parametrize("chip", tpu_aot.CHIPS)
def test_temporary_memory_does_not_grow_with_the_latents(chip):
    """The slope over d_sae 16k, 131k, 1M is below the bytes of one column of a row tile."""
    sizes = [16384, 131072, 1048576]
    used = [tpu_aot.temporary_bytes(compiled(chip, 2048, 2304, s, 64)) for s in sizes]
    slope = np.polyfit(sizes, used, 1)[0]
    assert slope < 4 * 512, used


def test_the_kernel_runs_by_name_where_the_program_is_for_a_tpu():
    def run(x, W, b, b_pre, dead):
        return encode_topk(x, W, b, b_pre, None, dead, 8, implementation="pallas_tpu")

    with compiling_for("tpu", "TPU v5 lite"):
        text = tpu_aot.compile_for("v5e", run, *shapes(64, 128, 2048, bf16)).as_text()
    assert '"tpu_custom_call"' in text


@pytest.mark.parametrize(
    ("width", "k_aux", "x_dtype", "why"),
    [
        (400_000, 0, f32, "has no tiles of width 400000 in float32 for k 8 that fit"),
        (26_656, 1024, f32, "has no tiles of width 26656 in float32 for k 8 and k_aux 1024 that fit"),
        (128, 0, bf16, "takes x and W of one dtype, not x bfloat16 and W float32"),
    ],
)
def test_the_kernel_refuses_by_name_what_it_cannot_serve(width, k_aux, x_dtype, why):
    """Before anything is traced: in one sentence that says what can serve the call."""
    x, *rest = shapes(32, width, 2048, f32)

    def run(x, W, b, b_pre, dead):
        return encode_topk(x, W, b, b_pre, None, dead, 8, k_aux, implementation="pallas_tpu")

    with compiling_for("tpu", "TPU v5 lite"), pytest.raises(ConfigError, match=f"'pallas_tpu' {why}.*; possible: xla"):
        tpu_aot.lower_for("v5e", run, abstract(x.shape, x_dtype), *rest)


@pytest.mark.parametrize("chip", CHIPS)
def test_mask_compiles(chip):
    x = abstract((4096, 24576), f32)
    compiled = tpu_aot.compile_for(chip, lambda x: mask.cut(x, 64), x)
    assert '"tpu_custom_call"' in compiled.as_text()
    assert tpu_aot.temporary_bytes(compiled) < 2**20


@pytest.mark.parametrize("size", [8, 130, 2047, 2100])
def test_mask_compiles_for_rows_of_any_length(size):
    x = abstract((64, size), f32)
    assert '"tpu_custom_call"' in tpu_aot.compile_for("v5e", lambda x: mask.cut(x, 8), x).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("chip", tpu_aot.CHIPS)
@pytest.mark.parametrize("size", [65536, 131072])
def test_segments_reach_the_fast_path_of_the_compiler(chip, size):
    x = abstract((1024, size), bf16)
    assert "SmallK" in tpu_aot.text_for(chip, lambda x: segments.topk(x, 64), x)[1]
