"""The gather-sum on SparseCores: interpreted as one subcore, compiled for chips that have them, refused elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import kernels, recipes
from jaxsae.errors import ConfigError
from jaxsae.kernels._dispatch import compiling_for
from jaxsae.kernels.sparse_decode import reference
from jaxsae.testing import tpu_aot

needs_pallas = pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the kernels need jax >= 0.10")
needs_compiler = pytest.mark.skipif(tpu_aot.missing() is not None, reason=str(tpu_aot.missing()))


@needs_pallas
@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="the interpreter of jax 0.11 wants a device of the chip")
@pytest.mark.parametrize(
    ("batch", "k", "width", "subcore_bytes", "slots"),
    [(3, 8, 128, 2**18, 2), (2, 20, 256, 2**18, 2), (2, 17, 128, 5000, 1), (1, 1, 128, 2**18, 2)],
)
def test_equals_the_reference(batch, k, width, subcore_bytes, slots):
    """One subcore does all tokens; rows come one by one instead of by an indirect copy, all else is the kernel's."""
    check(batch, k, width, subcore_bytes, slots, lambda W, indices: (W, indices.at[:, -1].set(0)))


@needs_pallas
@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="the interpreter of jax 0.11 wants a device of the chip")
def test_an_infinite_row_that_nobody_names_stays_out():
    """17 entries make three chunks of eight; what is missing of the last one is fetched from row 0."""
    check(2, 17, 128, 2**18, 2, lambda W, indices: (W.at[0].set(jnp.inf), jnp.maximum(indices, 1)))


def check(batch, k, width, subcore_bytes, slots, change):
    from jax.experimental.pallas import tpu as pltpu
    from jax.sharding import AbstractDevice, AbstractMesh

    from jaxsae.kernels.sparse_decode import sparsecore

    cores = sparsecore.Cores(1, 1, 8, subcore_bytes)
    assert sparsecore.slots(width, cores) == slots
    rng = np.random.default_rng(k)
    values, W = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((batch, k), (40, width)))
    W, indices = change(W, jnp.asarray(rng.integers(0, 40, (batch, k)), jnp.int32))
    interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    chip = AbstractMesh((1,), ("x",), abstract_device=AbstractDevice("TPU v6 lite", 1, "tpu"))
    with jax.sharding.use_abstract_mesh(chip):
        run = jax.jit(lambda v, i, w: sparsecore.gather_sum(v, i, w, cores, interpret=interpret))
        program = run.trace(values, indices, W).lower(lowering_platforms=("cpu",)).compile()
    expected = reference.sparse_decode(values, indices, W)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(program(values, indices, W), expected, rtol=1e-5, atol=1e-5)


@needs_pallas
def test_chips_with_longer_vectors_are_refused():
    from jaxsae.kernels.sparse_decode import sparsecore

    assert "at most 8 lanes, this one has 16" in sparsecore.refuse(768, "float32", sparsecore.Cores(2, 16, 16, 2**19))
    v6e = sparsecore.Cores(2, 16, 8, 2**18)
    assert "at most 6912 columns" in sparsecore.refuse(7040, "float32", v6e)
    assert sparsecore.refuse(6912, "float32", v6e) is None


def compiled(chip, shape, dtype=jnp.float32):
    sizes = tpu_aot.SHAPES[shape]
    codes = jax.ShapeDtypeStruct((sizes["B"], sizes["k"]), jnp.float32)
    indices = jax.ShapeDtypeStruct(codes.shape, jnp.int32)
    table = jax.ShapeDtypeStruct((sizes["S"], sizes["D"]), dtype)

    def run(values, indices, W):
        return kernels.sparse_decode(values, indices, W, implementation="sparsecore")

    with compiling_for("tpu", tpu_aot.mesh(chip).devices.flat[0].device_kind):
        return tpu_aot.lower_for(chip, run, codes, indices, table)


@needs_pallas
@needs_compiler
@pytest.mark.parametrize("shape", tpu_aot.SHAPES)
@pytest.mark.parametrize("chip", ["v5p", "v6e"])
def test_compiles_and_moves_no_table(chip, shape):
    lowered = compiled(chip, shape)
    assert "sparsecore_gather_sum" in lowered.as_text()
    assert tpu_aot.temporary_bytes(lowered.compile()) < 16 * 2**20


@needs_pallas
@needs_compiler
@pytest.mark.slow
def test_a_training_step_compiles_with_it():
    recipe = recipes.topk(d_in=768, d_sae=24576, k=32)
    batch = {"x": jax.ShapeDtypeStruct((1024, 768), jnp.float32)}
    state = jax.eval_shape(recipe.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
    kind = tpu_aot.mesh("v6e").devices.flat[0].device_kind
    with compiling_for("tpu", kind), kernels.using(decode_residual_sddmm="sparsecore"):
        lowered = tpu_aot.lower_for("v6e", recipe.step, state, batch, donate=(0,))
    assert "sparsecore_gather_sum" in lowered.as_text()
    assert lowered.compile().memory_analysis() is not None


@needs_pallas
@needs_compiler
@pytest.mark.parametrize(
    ("chip", "dtype", "message"),
    [
        ("v5e", jnp.float32, "needs a chip with SparseCores"),
        ("v6e", jnp.bfloat16, "takes float32, not bfloat16"),
    ],
)
def test_is_refused_by_name(chip, dtype, message):
    with pytest.raises(ConfigError, match=f"'sparsecore' {message}"):
        compiled(chip, "A", dtype)
