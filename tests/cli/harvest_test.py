"""`jaxsae harvest`: from arguments to a cache with a summary beside it."""

import json

import pytest

from jaxsae import hosts
from jaxsae.cli.harvest import Harvest, run
from jaxsae.cli.main import parse
from jaxsae.data import HarvestConfig, open_cache
from jaxsae.testing.tiny_host import tiny_host

SITE = "blocks.1.hook_resid_post"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"sentence number {i} about nothing" for i in range(40)))
    return str(path)


def config(text, **changes):
    small = {"sites": (SITE,), "context_size": 16, "batch_size": 4, "shuffle_tokens": 256, "documents": "line"}
    return HarvestConfig(**{**small, "corpus": text, "heldout_fraction": 0.2, **changes})


def test_a_cache_a_table_and_a_summary(tmp_path, text, capsys):
    facts = run(config(text), tmp_path / "c", host=tiny_host())
    cache = open_cache(tmp_path / "c")
    assert facts["rows"] == {s: cache.split(s).rows for s in ("train", "heldout")}
    written = json.loads((tmp_path / "c/harvest.json").read_text())
    assert written["rows"] == facts["rows"]
    assert set(written["seconds"]) == {"prepare", "harvest"}
    shown = " ".join(capsys.readouterr().err.split())
    assert "through tiny: about" in shown
    assert "position_0" in shown
    assert SITE in shown


def test_run_again_it_says_the_same(tmp_path, text):
    first, second = (run(config(text), tmp_path / "c", host=tiny_host()) for _ in range(2))
    assert first["rows"] == second["rows"]


def test_only_an_estimate(tmp_path, text, capsys):
    facts = run(config(text), tmp_path / "c", host=tiny_host(), estimate_only=True)
    assert not (tmp_path / "c").exists()
    assert json.loads(capsys.readouterr().out) == facts["estimate"]


def test_the_command_holds_every_option_of_the_configuration(tmp_path, text, monkeypatch):
    monkeypatch.setattr(HarvestConfig, "load_host", lambda self: tiny_host())
    options = {**vars(config(text)), "tokens": 200}
    command = Harvest(out=str(tmp_path / "c"), **options)
    assert command.run()["tokens_run"] == 208


def test_a_host_is_spread_as_it_is_read_where_the_command_asks_for_it(tmp_path, text, monkeypatch, capsys):
    asked = []

    def load(name, dtype, mesh):
        asked.append((name, dtype, dict(mesh(tiny_host().model).shape)))
        return tiny_host(dtype=dtype)

    monkeypatch.setattr(hosts, "load", load)
    options = ["--host", "some", "--host-dtype", "bfloat16", "--mesh.data", "4", "--mesh.latent", "2"]
    options += ["--corpus", text, "--sites", SITE, "--context-size", "16", "--tokens", "64"]
    facts = parse("harvest", [*options, "--out", str(tmp_path / "c")]).run()
    assert asked == [("some", "bfloat16", {"run": 1, "data": 4, "latent": 2})]
    assert facts["tokens_run"] == 64
    shown = " ".join(capsys.readouterr().err.split())
    assert "host on mesh data 4 x latent 2: as the configuration says; whole on each device" in shown


def test_a_cache_begun_in_parts_is_gone_on_with_by_one_call(tmp_path, text):
    """Two processes began it and one goes on: the parts stay what they are."""
    part = run(config(text, part=0, parts=2), tmp_path / "c", host=tiny_host())
    assert not open_cache(tmp_path / "c").done
    facts = run(config(text), tmp_path / "c", host=tiny_host())
    cache = open_cache(tmp_path / "c")
    assert cache.done
    assert cache.manifest.parts == 2
    assert facts["rows"] == {s: cache.split(s).rows for s in ("train", "heldout")}
    assert facts["rows"]["train"] > part["rows"]["train"] > 0
    assert json.loads((tmp_path / "c/harvest.json").read_text())["rows"] == facts["rows"]
