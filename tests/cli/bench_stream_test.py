"""`jaxsae bench stream`: plausible numbers, for random rows and for a cache that exists."""

import json

import pytest

from jaxsae.cli.bench_stream import BenchStream, write_random
from jaxsae.data import open_cache
from jaxsae.errors import ConfigError

SMALL = {"d_in": 64, "gigabytes": 0.001, "batch_size": 256, "batches": 5, "repeats": 2}


def test_random_rows(tmp_path, capsys):
    result = BenchStream(**SMALL, out=str(tmp_path / "bench.json")).run()
    for where in ("iterator", "device", "memcpy"):
        assert 0 < result[where]["min"] <= result[where]["median"] <= result[where]["max"]
    assert result["batch_bytes"] == 256 * 64 * 2
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert "GB/s" in capsys.readouterr().err


def test_an_existing_cache(tmp_path):
    write_random(str(tmp_path / "c"), 32, 1000)
    assert open_cache(tmp_path / "c").split("train").rows == 1000
    result = BenchStream(cache=str(tmp_path / "c"), batch_size=128, batches=3, repeats=1).run()
    assert (result["rows"], result["d_in"]) == (1000, 32)


def test_a_named_shape_gives_width_and_batch():
    result = BenchStream(shape="tiny", gigabytes=0.001, batches=2, repeats=1).run()
    assert (result["d_in"], result["batch_bytes"]) == (64, 256 * 64 * 2)
    assert {"device", "platform", "versions", "date"} <= set(result["environment"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"repeats": 0}, "repeats = 0"),
        ({"batches": 0}, "bench stream: batches must be at least 1, found 0"),
        ({"prefetch": 0}, "bench stream: prefetch must be at least 1, found 0"),
        ({"threads": 0}, "bench stream: threads must be at least 1, found 0"),
        ({"d_in": 0}, "bench: d_in must be at least 1, found 0"),
        ({"batch_size": 0}, "bench: batch_size must be at least 1, found 0"),
        ({"gigabytes": 0.0}, "gigabytes = 0.0 hold 0 rows of width 64; expected at least a batch of 256, 3.28e-05"),
        ({"gigabytes": -1.0}, "gigabytes = -1.0 hold 0 rows of width 64"),
        ({"gigabytes": float("nan")}, "gigabytes = nan hold 0 rows of width 64"),
        ({"gigabytes": 1e-5}, "gigabytes = 1e-05 hold 78 rows of width 64"),
        ({"shape": "smoll"}, "no shape 'smoll'; did you mean 'smol'"),
    ],
)
def test_nothing_to_measure(setting, message):
    with pytest.raises(ConfigError, match=message):
        BenchStream(**{**SMALL, **setting}).run()
