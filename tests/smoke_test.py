"""The shortest way through the core, also run on the oldest supported jax."""

import importlib.metadata

import jax
import numpy as np
import pytest

import jaxsae
from jaxsae.testing.conformance import batches


@pytest.mark.parametrize("name", ["topk", "relu_l1"])
def test_smoke_train_export_save_load(name, tmp_path):
    small = {"topk": {"k": 4, "lr": 1e-2}, "relu_l1": {"lr": 1e-2, "l1_coefficient": 0.1}}
    recipe = getattr(jaxsae.recipes, name)(12, 48, **small[name])
    data = batches(40)
    state = jaxsae.init(recipe, jax.random.key(0), data[0])
    losses = []
    for batch in data:
        state, metrics = jaxsae.step(recipe, state, batch)
        losses.append(float(metrics["mse"]))
    assert losses[-1] < 0.7 * losses[0]
    sae = recipe.export(state)
    jaxsae.save(sae, tmp_path / "sae")
    again = jaxsae.load(tmp_path / "sae")
    np.testing.assert_array_equal(again(data[0]["x"]), sae(data[0]["x"]))
    assert jax.tree.structure(again) == jax.tree.structure(sae)


def test_smoke_front_door():
    assert jaxsae.__version__ == importlib.metadata.version("jaxsae")
    assert all(hasattr(jaxsae, name) for name in jaxsae.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jaxsae.nothing
