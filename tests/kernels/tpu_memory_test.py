"""What a whole training step needs beside its state on a TPU, by the compiler's own account, as d_sae grows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import kernels
from jaxsae.kernels._dispatch import compiling_for
from jaxsae.recipes import topk
from jaxsae.testing import tpu_aot

pytestmark = [
    pytest.mark.skipif(tpu_aot.missing() is not None, reason=str(tpu_aot.missing())),
    pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the kernels need jax >= 0.10"),
]

ROWS, WIDTH, K = 4096, 768, 64


def temporaries(chip, d_sae, aux=0.0, **names):
    """Bytes beside parameters, moments and batch of a step of `topk` with the kernels named."""
    recipe = topk(d_in=WIDTH, d_sae=d_sae, k=K, aux_loss_coefficient=aux)
    batch = {"x": jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)}
    state = jax.eval_shape(recipe.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
    device = tpu_aot.mesh(chip).devices.flat[0]
    with compiling_for(device.platform, device.device_kind), kernels.using(**names):
        program = tpu_aot.compile_for(chip, recipe.step, state, batch, donate=(0,))
    return tpu_aot.temporary_bytes(program)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5p", "v6e"])  # a million latents do not fit the 16 GB of v5e
def test_a_step_needs_its_gradients_and_nothing_that_grows_as_rows_times_latents(chip):
    """Slope over d_sae: both gradients in f32 and less than one column of a row tile; B x d_sae would be 16 KiB."""
    sizes = [16384, 131072, 1048576]
    names = {"encode_topk": "pallas_tpu", "decode_residual_sddmm": "pallas_tpu"}
    used = [temporaries(chip, s, **names) for s in sizes]
    slope = np.polyfit(sizes, used, 1)[0]
    print(chip, dict(zip(sizes, used, strict=True)), f"{slope:.0f} bytes per latent")
    assert slope < 2 * 4 * WIDTH + 4 * 512 < 4 * ROWS


@pytest.mark.slow
def test_forms_that_write_pre_activations_write_a_tile_of_them():
    """What runs on a TPU without a name: from 4,096 x 131,072 on, more latents cost their gradients only."""
    sizes = [131072, 1048576]
    used = [temporaries("v6e", s) for s in sizes]
    slope = (used[1] - used[0]) / (sizes[1] - sizes[0])
    print(dict(zip(sizes, used, strict=True)), f"{slope:.0f} bytes per latent")
    assert slope < 2 * 4 * WIDTH + 4 * 512
