"""The kernels over rows compile for real chips at real shapes, and move no table."""

import jax
import jax.numpy as jnp
import pytest

from jaxsae import kernels
from jaxsae.kernels._dispatch import compiling_for
from jaxsae.testing import tpu_aot

pytestmark = pytest.mark.skipif(
    tpu_aot.missing() is not None or jax.__version_info__ < (0, 10), reason=f"{tpu_aot.missing()} or jax before 0.10"
)


def abstract(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def text_for(chip, f, *args, **options):
    """The choice of kernels, too, is made for the chip."""
    with compiling_for("tpu", tpu_aot.mesh(chip).devices.flat[0].device_kind):
        return tpu_aot.text_for(chip, f, *args, **options)


def codes(batch, k):
    return abstract(batch, k), abstract(batch, k, dtype=jnp.int32)


@pytest.mark.parametrize("chip", ["v5e", *(pytest.param(c, marks=pytest.mark.slow) for c in ("v5p", "v6e"))])
def test_an_f32_table_is_read_where_it_lies(chip):
    f = lambda v, i, W, t: kernels.decode_residual_sddmm(v, i, W, t, implementation="pallas_tpu")  # noqa: E731
    compiled, text = text_for(chip, f, *codes(512, 32), abstract(24576, 768), abstract(512, 768))
    assert "gather_sum" in text
    assert "tpu_custom_call" in text
    assert tpu_aot.temporary_bytes(compiled) < 24576 * 768 * 4 / 8


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_whole_gradient_compiles_at_odd_sizes(chip, dtype):
    """Decode, residual, products and sorted row gradients in one program, vmapped over two runs."""

    def loss(v, i, W, t):
        sse, _ = kernels.decode_residual_sddmm(v, i, W, t, implementation="pallas_tpu")
        y = kernels.sparse_decode(v, i, W, implementation="pallas_tpu")
        return jnp.sum(sse) + jnp.sum(y**3)

    gradient = jax.vmap(jax.grad(loss, argnums=(0, 2, 3)))
    two = lambda *shape, dtype=jnp.float32: abstract(2, *shape, dtype=dtype)  # noqa: E731
    args = two(50, 5), two(50, 5, dtype=jnp.int32), two(1001, 300, dtype=dtype), two(50, 300)
    _, text = text_for(chip, gradient, *args)
    assert all(name in text for name in ("gather_sum_dots", "gather_dots", "segment_grad"))


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_fused_step_updates_its_tables_in_place(chip, transposed):
    size, width = (24576, 768) if not transposed else (768, 24576)
    f = lambda W, mu, nu, *rest: kernels.sparse_adam(  # noqa: E731
        W, mu, nu, *rest, transposed=transposed, implementation="pallas_tpu"
    )
    tables = [abstract(size, width)] * 3
    rest = (*codes(1024, 32), abstract(1024, 768), abstract(), abstract(dtype=jnp.int32))
    compiled, text = text_for(chip, f, *tables, *rest, donate=(0, 1, 2))
    assert "segment_adam" in text
    assert tpu_aot.temporary_bytes(compiled) < 24576 * 768 * 4 / 4
    assert compiled.memory_analysis().alias_size_in_bytes >= 3 * 24576 * 768 * 4
