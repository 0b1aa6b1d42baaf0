"""`jaxsae bench methods` times methods beside topk, whatever their slots."""

import json

import pytest

from jaxsae.cli.bench_methods import BenchMethods
from jaxsae.cli.main import parse
from jaxsae.errors import ConfigError

TINY = ["--rows", "16", "--d-in", "8", "--d-sae", "16", "--k", "2", "--repeats", "2", "--warm-up", "1"]


def test_topk_is_the_measure(tmp_path):
    out = tmp_path / "result.json"
    result = parse("bench methods", [*TINY, "--only", "feature_choice,relu_l1", "--out", str(out)]).run()
    assert json.loads(out.read_text()) == result
    assert {"device", "cores", "versions"} <= set(result["environment"])
    assert list(result["methods"]) == ["topk", "feature_choice", "relu_l1"]
    assert result["methods"]["topk"]["factor"] == 1
    assert all(r["min"] <= r["median"] <= r["max"] for r in result["methods"].values())


def test_an_unknown_method_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match="no method 'topkk'; did you mean 'topk'"):
        parse("bench methods", [*TINY, "--only", "topkk"]).run()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rows", "0"], "rows must be at least 1, found 0"),
        (["--repeats", "0"], "repeats = 0 measures nothing"),
        (["--out", "/dev/null/a.json"], "cannot be made"),
    ],
)
def test_what_would_end_in_nothing_is_refused_before_anything_is_compiled(more, message, monkeypatch):
    monkeypatch.setattr(BenchMethods, "_ready", None)
    with pytest.raises(ConfigError, match=message):
        parse("bench methods", [*TINY, *more]).run()
