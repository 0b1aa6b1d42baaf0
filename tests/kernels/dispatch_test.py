"""Choosing implementations: by name, by platform, by the table of measurements."""

import json
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import kernels
from jaxsae.errors import ConfigError
from jaxsae.kernels import _dispatch, _gpu
from jaxsae.kernels._dispatch import Implementation, choose, compiling_for

SHAPE = {"B": 8, "S": 64}


def no_bf16(shape, dtype):
    return "takes float32 only" if dtype == "bfloat16" else None


OPS = {
    "pallas_tpu": Implementation(lambda: "tpu", platforms=("tpu",)),
    "strict": Implementation(lambda: "strict", refuse=no_bf16),
    "xla": lambda: "xla",
}


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """An empty folder of tables."""
    monkeypatch.setattr(_dispatch, "TABLES", tmp_path)
    _dispatch.table.cache_clear()
    yield tmp_path
    _dispatch.table.cache_clear()


def measured(folder, kind, *rows):
    keys = ("shape", "dtype", "milliseconds")
    ops = {"op": [dict(zip(keys, row, strict=True)) for row in rows]}
    (folder / f"{kind}.json").write_text(json.dumps({"ops": ops}))


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="a mesh does not tell its devices' platform")
def test_the_devices_of_the_mesh_in_force_decide():
    elsewhere = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=elsewhere)
    with jax.sharding.use_abstract_mesh(mesh):
        assert _dispatch.device() == ("tpu", "TPU v5 lite")
        with compiling_for("gpu", "H100"):
            assert _dispatch.device() == ("gpu", "H100")
    assert _dispatch.device()[0] == "cpu"


def test_without_a_table_the_first_that_can_serve_is_taken(tables):
    assert choose("op", None, OPS, SHAPE, "float32")() == "strict"
    assert choose("op", None, OPS, SHAPE, "bfloat16")() == "xla"
    with compiling_for("tpu", "TPU v5e"):
        assert choose("op", None, OPS, SHAPE, "bfloat16")() == "tpu"


def test_the_nearest_measurement_decides(tables):
    slow_strict, slow_xla = {"strict": 2.0, "xla": 1.0}, {"strict": 1.0, "xla": 2.0, "pallas_tpu": 0.1}
    measured(tables, "cpu", (SHAPE, "float32", slow_strict), ({"B": 8, "S": 256}, "float32", slow_xla))
    assert choose("op", None, OPS, {"B": 8, "S": 80}, "float32")() == "xla"
    assert choose("op", None, OPS, {"B": 8, "S": 200}, "float32")() == "strict"
    # Too far from every measurement, and another dtype: the order of preference.
    assert choose("op", None, OPS, {"B": 8, "S": 10**6}, "float32")() == "strict"
    assert choose("op", None, OPS, SHAPE, "float16")() == "strict"


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("pallas_gpu", "float32", "op: no implementation 'pallas_gpu' here"),
        ("pallas_tpu", "float32", "op: 'pallas_tpu' runs on tpu, this is cpu; possible: strict, xla"),
        ("strict", "bfloat16", "op: 'strict' takes float32 only; possible: xla"),
    ],
)
def test_a_named_implementation_never_falls_back(tables, name, dtype, message):
    with pytest.raises(ConfigError, match=message):
        choose("op", name, OPS, SHAPE, dtype)


def test_a_name_given_around_the_calls_counts_where_they_give_none():
    with _dispatch.using(topk="xla"), _dispatch.using(encode_topk="reference"):
        assert choose("topk", None, OPS, SHAPE, "float32")() == "xla"
        assert choose("topk", "strict", OPS, SHAPE, "float32")() == "strict"
        assert choose("sparse_decode", None, OPS, SHAPE, "float32")() == "strict"
        with pytest.raises(ConfigError, match="encode_topk: no implementation 'reference' here"):
            choose("encode_topk", None, OPS, SHAPE, "float32")
    assert choose("topk", None, OPS, SHAPE, "float32")() == "strict"


def test_refuses_names_for_ops_that_do_not_exist():
    with (
        pytest.raises(ConfigError, match="no op 'encode_topq'; did you mean 'encode_topk'"),
        _dispatch.using(encode_topq="xla"),
    ):
        pass


def test_every_choice_is_logged_once(tables, caplog):
    _dispatch._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "jaxsae.kernels"):
        for _ in range(3):
            choose("op", None, OPS, SHAPE, "float32")
    assert len(caplog.records) == 1
    assert "implementation 'strict' (not measured" in caplog.text


LONG = {
    **OPS,
    "short lists": Implementation(lambda: "short", leaves=lambda shape: "takes few" if shape["S"] > 9 else None),
}


def test_calls_that_an_implementation_leaves_to_others(caplog):
    """Named in the call they are refused; a name around a whole step does not stand in their way."""
    _dispatch._log_once.cache_clear()
    with pytest.raises(ConfigError, match="op: 'short lists' takes few; possible: strict, xla"):
        choose("op", "short lists", LONG, SHAPE, "float32")
    with _dispatch.using(topk="short lists"), caplog.at_level(logging.INFO, "jaxsae.kernels"):
        assert choose("topk", None, LONG, {"B": 8, "S": 9}, "float32")() == "short"
        assert choose("topk", None, LONG, SHAPE, "float32")() == "strict"
    assert "implementation 'strict' ('short lists' takes few)" in caplog.text


def test_a_name_around_the_calls_is_passed_on_for_no_other_reason():
    elsewhere = {**OPS, "gpu": Implementation(lambda: "gpu", ("gpu",), leaves=lambda shape: "takes few")}
    with _dispatch.using(topk="gpu"), pytest.raises(ConfigError, match="'gpu' runs on gpu, this is cpu"):
        choose("topk", None, elsewhere, SHAPE, "float32")


@pytest.fixture
def hopper(monkeypatch):
    """Choices are made as for a GPU that the kernels are written for; what they choose is computed here."""
    monkeypatch.setattr(_gpu, "OLDEST_JAX", (0, 1))
    with compiling_for("gpu", "a GPU"):
        yield


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("op", ["sparse_decode", "decode_residual_sddmm"])
def test_long_lists_are_no_work_of_the_gpu_kernels(op):
    """20 of 1024 latents is long, and dense: refused by name, XLA's where nothing or a whole step is named."""
    rng = np.random.default_rng(0)
    values, W = jnp.asarray(rng.integers(-3, 4, (5, 20)), jnp.float32), jnp.asarray(rng.integers(-3, 4, (1024, 128)))
    indices, e0 = jnp.asarray(rng.integers(0, 1024, (5, 20))), jnp.zeros((5, 128))
    args = (values, indices, W.astype(jnp.float32), *((e0,) if op.startswith("decode") else ()))
    y = np.einsum("bk,bke->be", values, np.asarray(W)[np.asarray(indices)])
    call = getattr(kernels, op)
    with pytest.raises(
        ConfigError, match="'pallas_gpu' takes lists of fewer than 16 of 1024 latents, not 20; possible: xla"
    ):
        call(*args, implementation="pallas_gpu")
    with kernels.using(**{op: "pallas_gpu"}):
        found = call(*args), call(*args, implementation="xla")
    for out in (*found, call(*args)):
        np.testing.assert_array_equal(out if op == "sparse_decode" else -out[1], y)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("name", ["xla", "pallas_gpu"])
def test_the_adam_step_takes_its_gradient_from_what_was_named(name, monkeypatch):
    asked = []

    def kernel(values, indices, rows, size):
        asked.append("kernel")
        return jnp.ones((size, rows.shape[1])), jnp.zeros(size)

    monkeypatch.setattr(_gpu, "module", lambda op: types.SimpleNamespace(sparse_grad=kernel))
    W, codes, rows = jnp.ones((9, 128)), (jnp.ones((2, 1)), jnp.zeros((2, 1), jnp.int32)), jnp.ones((2, 128))
    _, mu, _ = kernels.sparse_adam(W, 0 * W, 0 * W, *codes, rows, 0.1, jnp.int32(1), implementation=name)
    assert asked == ["kernel"] * (name == "pallas_gpu")
    expected = np.full((9, 128), 0.1) if name == "pallas_gpu" else np.where(np.arange(9)[:, None] == 0, 0.2, 0.0)
    np.testing.assert_allclose(mu, np.broadcast_to(expected, (9, 128)), rtol=1e-6)


@pytest.mark.parametrize(
    ("capability", "can"), [("9.0", True), ("10.0a", True), ("8.9", False), ("gfx942", False), (None, False)]
)
def test_gpus_of_other_kinds_get_xla(capability, can, monkeypatch):
    """Among them AMD's, whose capability is no number."""
    here = types.SimpleNamespace(
        platform="gpu", device_kind="a GPU", **({"compute_capability": capability} if capability else {})
    )
    monkeypatch.setattr(_gpu, "OLDEST_JAX", (0, 1))
    monkeypatch.setattr(_gpu.jax, "devices", lambda *_: [here])
    monkeypatch.setattr(_gpu.jax, "default_backend", lambda: "gpu")
    with compiling_for("gpu", "a GPU"):
        assert (_gpu.objection("float32", 512) is None) == can
        chosen = choose(
            "op",
            None,
            {"pallas_gpu": _gpu.implementation(lambda: "kernel"), "xla": lambda: "xla"},
            {"E": 512},
            "float32",
        )
        assert chosen() == ("kernel" if can else "xla")
