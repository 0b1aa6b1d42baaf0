"""Programs compile for chips that are not there."""

import jax
import jax.numpy as jnp
import pytest

from jaxsae.errors import ConfigError
from jaxsae.testing import tpu_aot

needs_libtpu = pytest.mark.skipif(tpu_aot.missing() is not None, reason=str(tpu_aot.missing()))


@needs_libtpu
def test_compiles_for_a_chip_and_reports_memory():
    x = jax.ShapeDtypeStruct((256, 512), jnp.float32)
    compiled = tpu_aot.compile_for("v5e", lambda x: jnp.sort(x @ x.T, axis=1), x)
    assert "f32[256,256]" in compiled.as_text()
    assert compiled.memory_analysis().argument_size_in_bytes == 256 * 512 * 4
    assert tpu_aot.temporary_bytes(compiled) >= 0


@needs_libtpu
def test_a_mesh_takes_the_first_devices_of_the_topology():
    mesh = tpu_aot.mesh("v6e", (2, 2), ("data", "latent"))
    assert dict(mesh.shape) == {"data": 2, "latent": 2}
    assert "TPU v6" in mesh.devices.flat[0].device_kind


@needs_libtpu
@pytest.mark.parametrize(("chip", "shape", "says"), [("v5f", (1,), "did you mean"), ("v5e", (3, 3), "needs 9")])
def test_refuses_chips_and_meshes_that_do_not_exist(chip, shape, says):
    with pytest.raises(ConfigError, match=says):
        tpu_aot.mesh(chip, shape, ("a", "b")[: len(shape)])


def test_says_why_nothing_can_be_compiled(monkeypatch):
    monkeypatch.setattr(tpu_aot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="libtpu is not installed"):
        tpu_aot.mesh("v5e")
