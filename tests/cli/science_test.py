"""`jaxsae science`: wrong names and impossible numbers are one sentence, and options reach the studies."""

import json

import pytest

from jaxsae.cli.main import parse
from jaxsae.cli.science import Science
from jaxsae.errors import ConfigError
from jaxsae.science import finding
from jaxsae.science import studies as module
from jaxsae.science.studies import Study


def test_wrong_study_and_too_few_seeds(tmp_path):
    with pytest.raises(ConfigError, match="no study of 'A60'"):
        Science(only=("A60",), out=tmp_path, run_dir=tmp_path / "run").run()
    with pytest.raises(ConfigError, match="at least 2 seeds"):
        Science(seeds=1).run()


def test_the_command_writes_page_and_data(tmp_path, monkeypatch, capsys):
    def body(lab, setting):
        return [finding("x", ("a", [0.0] * len(lab.seeds)), ("b", [1.0] * len(lab.seeds)))]

    monkeypatch.setattr(module, "registered", lambda: {"A6": Study("A6", "m", "p", "c", "S1", body, ({},))})
    args = ["--only", "A6", "--seeds", "3", "--out", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    result = parse("science", args).run()
    assert result["run"]["command"] == "jaxsae science --only A6 --seeds 3"
    assert json.loads((tmp_path / "science.json").read_text())["studies"][0]["verdict"] == "shown"
    assert "| shown |" in (tmp_path / "science.md").read_text()
    assert "A6" in capsys.readouterr().out
