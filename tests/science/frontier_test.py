"""The frontier: every point kept, nothing trained twice, on a tiny host."""

import json

import pytest

from jaxsae.errors import ConfigError
from jaxsae.science import frontier
from jaxsae.testing.tiny_cache import tiny_cache
from jaxsae.testing.tiny_host import tiny_host

STUDY = frontier.Frontier(d_sae=96, steps=12, rows=32, seeds=(0,), eval_rows=64, ce_tokens=64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    host, folder = tiny_host(n_layers=2), tmp_path_factory.mktemp("frontier")
    cache = tiny_cache(folder / "acts", host)
    only = ("hierarchical_topk", "pca")
    return host, cache, folder / "points", frontier.run(STUDY, cache, host, folder / "points", only)


def test_one_run_serves_all_budgets_and_points_say_what_they_are(made):
    points = made[3]
    nested = [p for p in points if p["family"] == "hierarchical_topk"]
    assert [p["k"] for p in nested] == list(frontier.BUDGETS)
    assert all(p["l0"] <= p["k"] for p in nested)
    assert [p["k"] for p in points if p["family"] == "pca"] == [8, 16, 32]  # no more components than the width
    assert all({"fvu", "loss_recovered_mean", "seed", "setting"} <= set(p) for p in points)
    fvus = [p["fvu"] for p in points if p["family"] == "pca"]
    assert fvus == sorted(fvus, reverse=True)


def test_what_is_there_is_not_made_again_unless_the_sizes_change(made, monkeypatch):
    host, cache, folder, points = made

    def refuse(*args):
        raise AssertionError("made again")

    monkeypatch.setattr(frontier, "_trained", refuse)
    monkeypatch.setattr(frontier, "_fitted", refuse)
    assert frontier.run(STUDY, cache, host, folder, ("hierarchical_topk", "pca")) == points
    (path,) = folder.glob("pca-*.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "study": {**record["study"], "rows": 1}}))
    with pytest.raises(AssertionError, match="made again"):
        frontier.run(STUDY, cache, host, folder, ("pca",))
    path.write_text(json.dumps(record))


def test_a_wrong_family_is_one_sentence(made):
    host, cache, folder, _ = made
    with pytest.raises(ConfigError, match="no family 'topks'; did you mean 'topk'"):
        frontier.run(STUDY, cache, host, folder, ("topks",))
