"""Choosing implementations: by name, by platform, by the table of measurements."""

import json
import logging

import pytest

from jaxsae.errors import ConfigError
from jaxsae.kernels import _dispatch
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
