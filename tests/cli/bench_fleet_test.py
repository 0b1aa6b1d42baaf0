"""`jaxsae bench fleet`: one compilation, plausible ratios, wrong calls in one sentence."""

import json

import pytest

from jaxsae.cli.main import parse
from jaxsae.errors import ConfigError

TINY = ("--batch-size", "32", "--d-in", "16", "--d-sae", "64", "--k", "4", "--repeats", "3", "--no-keep-memory")


def test_a_fleet_beside_single_steps(tmp_path):
    out = tmp_path / "fleet.json"
    result = parse("bench fleet", [*TINY, "--members", "2", "--out", str(out)]).run()
    assert json.loads(out.read_text()) == result
    assert result["fleet_compilations"] == 1
    for ratio in (result["fleet_over_singles"], result["fleet_over_singles_processor"]):
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert result["seconds"]["singles"]["median"] > 0


def test_nothing_to_measure_is_refused():
    for arguments, words in ((["--members", "0"], "members must be at least 1"), (["--repeats", "0"], "repeats = 0")):
        with pytest.raises(ConfigError, match=words):
            parse("bench fleet", [*TINY, *arguments]).run()
