"""Runs on meshes: a checkpoint of one mesh continues on another, and a config says which."""

import jax
import numpy as np

from jaxsae import parallel, recipes
from jaxsae.data.sources import ArraySource
from jaxsae.testing.conformance import assert_close
from jaxsae.train import CheckpointPolicy, LogPolicy, RunDir, fit

D, B = 16, 64
RECIPE = recipes.topk(d_in=D, d_sae=64, k=4, lr=1e-3, dead_after_tokens=300, k_aux=8)
ROWS = np.random.default_rng(0).standard_normal((512, D), np.float32)
OPTIONS = {"log": LogPolicy(progress=False), "checkpoint": CheckpointPolicy(every_steps=4)}


def run(path, steps, mesh, zero=False):
    with RunDir(path).open() as run_dir:
        source = ArraySource(ROWS, batch_size=B)
        fitted = fit(RECIPE, source, steps, key=jax.random.key(1), mesh=mesh, zero=zero, run_dir=run_dir, **OPTIONS)
    return fitted


def test_a_run_goes_on_where_it_was_on_another_mesh(tmp_path):
    expected = run(tmp_path / "alone", 12, None).state
    meshes = [parallel.make_mesh(2, 4), parallel.make_mesh(1, 8), None, parallel.make_mesh(4, 2)]
    for steps, mesh in zip((4, 8, 10, 12), meshes, strict=True):
        fitted = run(tmp_path / "moved", steps, mesh, zero=steps == 12)
        assert fitted.step == steps
    assert_close(fitted.state.params, expected.params, 2e-5)
    assert_close(fitted.state.opt, expected.opt, 2e-5)
    assert_close(fitted.state.track, expected.track, 2e-5)
    assert fitted.state.params["W_enc"].sharding.mesh.shape["data"] == 4
