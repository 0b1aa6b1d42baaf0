"""`jaxsae bench stream`: plausible numbers, for random rows and for a cache that exists."""

import json

import pytest

from jaxsae.cli.bench_stream import BenchStream, write_random
from jaxsae.data import open_cache
from jaxsae.errors import ConfigError

SMALL = {"width": 64, "gigabytes": 0.001, "batch_size": 256, "batches": 5, "repeats": 2}


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


def test_nothing_to_measure(tmp_path):
    with pytest.raises(ConfigError, match="repeats = 0"):
        BenchStream(**{**SMALL, "repeats": 0}).run()
