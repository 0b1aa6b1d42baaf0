"""Runs on meshes: a checkpoint of one mesh continues on another, and a config says which."""

import jax
import numpy as np
import pytest

from jaxsae import parallel, recipes
from jaxsae.data.sources import ArraySource
from jaxsae.testing.conformance import assert_close
from jaxsae.testing.members import published
from jaxsae.testing.meshes import BOUND, device_mesh
from jaxsae.train import CheckpointPolicy, LogPolicy, RunDir, fit

D, B = 16, 64
RECIPE = recipes.topk(d_in=D, d_sae=64, k=4, lr=1e-3, dead_after_tokens=300, k_aux=8)
ROWS = np.random.default_rng(0).standard_normal((512, D), np.float32)
OPTIONS = {"log": LogPolicy(progress=False), "checkpoint": CheckpointPolicy(every_steps=4)}


def run(path, steps, mesh, zero=False, recipe=RECIPE):
    with RunDir(path).open() as run_dir:
        source = ArraySource(ROWS, batch_size=B)
        fitted = fit(recipe, source, steps, key=jax.random.key(1), mesh=mesh, zero=zero, run_dir=run_dir, **OPTIONS)
    return fitted


def test_a_run_goes_on_where_it_was_on_another_mesh(tmp_path):
    expected = run(tmp_path / "alone", 12, None).state
    meshes = [parallel.make_mesh(2, 4), parallel.make_mesh(1, 8), None, parallel.make_mesh(4, 2)]
    for steps, mesh in zip((4, 8, 10, 12), meshes, strict=True):
        fitted = run(tmp_path / "moved", steps, mesh, zero=steps == 12)
        assert fitted.step == steps
    assert_close(fitted.state.params, expected.params, BOUND)
    assert_close(fitted.state.opt, expected.opt, BOUND)
    assert_close(fitted.state.track, expected.track, BOUND)
    assert fitted.state.params["W_enc"].sharding.mesh.shape["data"] == 4


@pytest.mark.parametrize("name", ["batch_topk", "jumprelu", "matryoshka"])
def test_any_method_goes_on_on_another_mesh(name, tmp_path):
    recipe = published(d_in=D)[name]
    expected = run(tmp_path / "alone", 8, None, recipe=recipe).state
    run(tmp_path / "moved", 4, device_mesh((1, 8)), recipe=recipe)
    found = run(tmp_path / "moved", 8, device_mesh((2, 4)), recipe=recipe).state
    assert_close((found.params, found.track), (expected.params, expected.track), BOUND)
