"""The whole job on a tiny random host: every stage, every number, and a second call that only reports again."""

import json

import pytest

from jaxsae import hosts
from jaxsae.cli.quickstart import NUMBERS, Quickstart
from jaxsae.data import HarvestConfig
from jaxsae.testing.tiny_cache import sentences
from jaxsae.testing.tiny_host import tiny_host


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    text = tmp_path / "text"
    text.mkdir()
    for i, sentence in enumerate(sentences(60)):
        (text / f"{i:03d}.txt").write_text(f"{sentence} " * 8)
    config = HarvestConfig(
        sites=("blocks.1.hook_resid_post",), corpus=str(text), tokens=16_384, context_size=32, heldout_fraction=0.3
    )
    monkeypatch.setattr(Quickstart, "harvest_config", config)
    monkeypatch.setattr(hosts, "load", lambda *args, **kwargs: tiny_host())
    return Quickstart(out=tmp_path / "out", epochs=1.0, d_sae=64, k=4, train_batch_size_tokens=128, cards=20)


def records(command):
    """What training wrote, without the notes that it was started again."""
    lines = (command.out / "run/log.jsonl").read_text().splitlines()
    return [line for line in lines if json.loads(line)["kind"] != "event"]


def test_it_writes_a_report_with_every_number_and_goes_on_where_it_was(tiny):
    tiny.run()
    report = json.loads((tiny.out / "report.json").read_text())
    assert all(isinstance(report[name], int | float) for name in NUMBERS)
    assert {"tokens_harvested", "tokens_trained", "versions"} <= set(report)
    assert set(report["seconds"]) == {"host", "harvest", "train", "evaluate", "report"}
    assert (tiny.out / "report.html").stat().st_size > 10_000
    log, weights = records(tiny), (tiny.out / "run/sae/sae.safetensors").read_bytes()
    tiny.run()
    assert records(tiny) == log
    assert (tiny.out / "run/sae/sae.safetensors").read_bytes() == weights
    again = json.loads((tiny.out / "report.json").read_text())
    assert {name: again[name] for name in NUMBERS} == {name: report[name] for name in NUMBERS}
