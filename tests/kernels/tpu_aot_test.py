"""The TPU kernels compile for real chips, at the reference shapes, in memory that does not grow with d_sae."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.kernels import encode_topk
from jaxsae.kernels._dispatch import compiling_for
from jaxsae.kernels.encode_topk import pallas_tpu as encode
from jaxsae.kernels.topk import segments
from jaxsae.kernels.topk_mask import pallas_tpu as mask
from jaxsae.testing import tpu_aot

pytestmark = [
    pytest.mark.skipif(tpu_aot.missing() is not None, reason=str(tpu_aot.missing())),
    pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the kernels need jax >= 0.10"),
]

CHIPS = [pytest.param("v5e"), pytest.param("v5p", marks=pytest.mark.slow), pytest.param("v6e", marks=pytest.mark.slow)]


def shapes(B, D, S, dtype):
    make = jax.ShapeDtypeStruct
    f32 = jnp.float32
    return make((B, D), dtype), make((D, S), dtype), make((S,), f32), make((D,), f32), make((S,), jnp.bool_)


def compiled(chip, B, D, S, k, k_aux=0, signed=False, dtype=jnp.bfloat16):
    def run(x, W, b, b_pre, dead):
        return encode.forward(x, W, b, b_pre, None, dead, k, k_aux, signed)

    return tpu_aot.compile_for(chip, run, *shapes(B, D, S, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("chip", tpu_aot.CHIPS)
@pytest.mark.parametrize("shape", tpu_aot.SHAPES)
def test_encode_topk_compiles_at_the_reference_shapes(chip, shape):
    text = compiled(chip, *tpu_aot.SHAPES[shape].values()).as_text()
    assert text.count('"tpu_custom_call"') == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"k_aux": 512}, {"k_aux": 32, "signed": True}, {"dtype": jnp.float32}],
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
        text = tpu_aot.compile_for("v5e", run, *shapes(64, 128, 2048, jnp.bfloat16)).as_text()
    assert '"tpu_custom_call"' in text


@pytest.mark.parametrize("chip", CHIPS)
def test_mask_compiles(chip):
    x = jax.ShapeDtypeStruct((4096, 24576), jnp.float32)
    compiled = tpu_aot.compile_for(chip, lambda x: mask.cut(x, 64), x)
    assert '"tpu_custom_call"' in compiled.as_text()
    assert tpu_aot.temporary_bytes(compiled) < 2**20


@pytest.mark.slow
@pytest.mark.parametrize("chip", tpu_aot.CHIPS)
@pytest.mark.parametrize("size", [65536, 131072])
def test_segments_reach_the_fast_path_of_the_compiler(chip, size):
    x = jax.ShapeDtypeStruct((1024, size), jnp.bfloat16)
    assert "SmallK" in tpu_aot.compile_for(chip, lambda x: segments.topk(x, 64), x).as_text()
