"""The whole evaluation on a tiny host and cache."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import config, hosts, io, parallel
from jaxsae.errors import ConfigError, DataError
from jaxsae.evals import metrics
from jaxsae.evals.evaluate import EvalConfig, evaluate, windows_of
from jaxsae.evals.reconstruction import _add
from jaxsae.sae import make_sae
from jaxsae.testing.meshes import device_mesh
from jaxsae.testing.tiny_host import tiny_host

CONFIG = EvalConfig(batch_rows=64, ce_tokens=150, bootstrap=50)


@pytest.fixture(scope="module")
def out(coder, cache, tiny):
    return evaluate(coder, cache, tiny, config=CONFIG)


def test_holds_every_number_and_survives_json(out):
    wanted = "clean_ce sae_ce mean_ce zero_ce loss_recovered_mean loss_recovered_zero kl fvu explained_variance l0"
    for name in [*wanted.split(), "dead_share", "cosine", "relative_reconstruction_bias"]:
        assert np.isfinite(out[name]), name
    assert (out["d_in"], out["d_sae"], out["k"], out["form"]) == (32, 96, 6, "rank")
    assert json.loads(json.dumps(out, allow_nan=False)) == out


def test_is_about_the_held_out_rows(out, cache, coder):
    split = cache.split("heldout")
    y = np.asarray(split.read(0, split.rows), np.float64)
    err = y - np.asarray(coder(jnp.asarray(y, jnp.float32)))
    assert out["rows"] == split.rows
    assert out["fvu"] == pytest.approx((err**2).sum() / ((y - y.mean(0)) ** 2).sum(), rel=1e-5)
    assert sum(out["density_histogram"]["counts"]) + out["density_histogram"]["dead"] == 96


def test_windows_are_those_of_the_held_out_documents(cache, tiny):
    data = windows_of(cache.split("heldout"), 10**6)
    held = {i for i in range(24) if i % 4 == 3}
    assert set(data.document.tolist()) == held
    for tokens, length, doc in zip(*data, strict=True):
        text = tiny.tokenizer.decode(tokens[:length])
        assert text in tiny.tokenizer.decode(cache.document(int(doc)))
    few = windows_of(cache.split("heldout"), 40)
    assert len(few.tokens) == 2
    assert (few.tokens == data.tokens[:2]).all()


def test_without_a_host_there_is_no_cross_entropy(coder, cache):
    out = evaluate(coder, cache, config=CONFIG)
    assert "sae_ce" not in out
    assert "fvu" in out


@pytest.mark.parametrize("shape", [(2, 4), (1, 3)])
def test_a_mesh_changes_no_number(out, coder, cache, tiny, shape):
    mesh = device_mesh(shape)
    spread = evaluate(io.place(coder, mesh), cache, hosts.place(tiny, mesh), config=CONFIG)
    differ = {"seconds", "standard_error"}
    for name in spread.keys() - differ:
        close = pytest.approx(out[name], rel=2e-4) if isinstance(out[name], float) else out[name]
        assert spread[name] == close, name


def test_a_dictionary_on_a_mesh_is_ranked_where_its_latents_lie(coder):
    """No device ever sees all latents' pre-activations, nor another's atoms."""
    mesh = device_mesh((1, 8))
    with parallel.use(mesh):
        text = _add.lower(metrics.init(32, 96), io.place(coder, mesh), *rows_of(64)).compile().as_text()
    assert "all-gather" in text  # candidates: at most 8 devices' k = 6 of each row
    assert max(sizes_of("all-gather", text)) <= 64 * 8 * 6


def rows_of(n):
    return np.ones((n, 32), np.float32), None, np.ones(n, np.float32)


def sizes_of(op, text):
    shapes = re.findall(rf"= \w+\[([\d,]*)\]\S* {op}\(", text)
    return [math.prod(int(n) for n in shape.split(",")) for shape in shapes]


def test_a_part_of_the_rows(coder, cache):
    assert evaluate(coder, cache, config=dataclasses.replace(CONFIG, rows=50))["rows"] == 50


def test_config_survives_yaml():
    assert config.from_dict(config.to_dict(CONFIG)) == CONFIG


def test_bad_input_is_named(coder, cache, tiny):
    with pytest.raises(DataError, match="other weights"):
        evaluate(coder, cache, tiny_host(jax.random.key(1), n_layers=2), config=CONFIG)
    with pytest.raises(DataError, match="no site"):
        evaluate(coder, cache, site="blocks.0.hook_resid_post")
    eye = jnp.eye(8)
    other = make_sae({"W_enc": eye, "b_enc": jnp.zeros(8), "W_dec": eye, "b_dec": jnp.zeros(8)})
    with pytest.raises(ConfigError, match="reads width 8"):
        evaluate(other, cache)
    with pytest.raises(ConfigError, match="at least 1"):
        EvalConfig(batch_rows=0)
