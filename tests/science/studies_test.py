"""The registry and the runner: one record per study, kept, and every try of a claim that is not shown."""

import json

import pytest

from jaxsae.errors import ConfigError
from jaxsae.science import Lab, finding, registered
from jaxsae.science import studies as module
from jaxsae.science.lab import ScienceError
from jaxsae.science.page import page, write
from jaxsae.science.studies import Study, run

METHODS = {f"A{i}" for i in (*range(1, 15), 20, 24)}
CALLS = []


def body(lab, setting):
    CALLS.append(setting["gap"])
    sides = ("a", [0.0, 0.1, 0.2]), ("b", [setting["gap"] + 0.05, setting["gap"], setting["gap"]])
    return [finding("a below b", *sides)]


@pytest.fixture
def toy(monkeypatch):
    CALLS.clear()
    gaps = {"A6": (1.0, 2.0), "A7": (0.1, 0.2, 5.0)}
    made = {
        i: Study(i, f"m{i}", "somebody 2020", "a is smaller", "S1", body, tuple({"gap": g} for g in g_))
        for i, g_ in gaps.items()
    }
    monkeypatch.setattr(module, "registered", lambda: made)


def test_every_method_of_the_main_families_has_a_study():
    found = registered()
    assert set(found) == METHODS
    assert all(s.claim and s.paper and s.bed and s.settings for s in found.values())


def test_a_finished_study_is_kept_and_another_seed_runs_it_again(toy, tmp_path):
    first = run(Lab((0, 1, 2)), tmp_path, ["A6"])
    assert run(Lab((0, 1, 2)), tmp_path, ["mA6"]) == first
    assert CALLS == [1.0]
    run(Lab((0, 1)), tmp_path, ["A6"])
    assert len(CALLS) == 2
    (tmp_path / "A6.json").write_text("{")
    run(Lab((0, 1)), tmp_path, ["A6"])
    assert len(CALLS) == 3


def test_other_settings_are_tried_and_told_only_where_the_first_fails(toy, tmp_path):
    shown, not_shown = run(Lab((0, 1, 2)), tmp_path)
    assert (shown["verdict"], len(shown["tried"])) == ("shown", 1)
    assert not_shown["verdict"] == "not shown"  # though the third setting shows it
    assert [t["verdict"] for t in not_shown["tried"]] == ["not shown", "not shown", "shown"]


def test_a_wrong_name_is_one_sentence(toy, tmp_path):
    with pytest.raises(ConfigError, match="no study of 'A66'; did you mean 'A6'"):
        run(Lab(), tmp_path, ["A66"])


def test_the_page_holds_every_study_and_try(toy, tmp_path):
    records = run(Lab((0, 1, 2)), tmp_path / "run")
    how = {"command": "jaxsae science", "finished": "then", "machine": "m", "device": "d", "jaxsae": "1"}
    write(tmp_path, records, {**how, "python": "3", "packages": {"jax": "1"}})
    text = (tmp_path / "science.md").read_text()
    assert "1 of 2 headlines shown" in text
    assert "gap = 0.2: a below b" in text
    data = json.loads((tmp_path / "science.json").read_text())
    assert [s["id"] for s in data["studies"]] == ["A6", "A7"]
    write(tmp_path, records[:1], data["run"])  # a partial run keeps the rest
    assert len(json.loads((tmp_path / "science.json").read_text())["studies"]) == 2
    assert page({}, {}).startswith("# Headline")


def test_findings_made_before_a_problem_are_kept(tmp_path, monkeypatch):
    def halting(lab, setting):
        yield finding("a below b", ("a", [0.0, 0.1, 0.2]), ("b", [1.0, 1.05, 1.0]))
        raise ScienceError("no run with L0 on both sides of 4")

    made = Study("A6", "m", "somebody 2020", "a is smaller", "S1", halting, ({},))
    monkeypatch.setattr(module, "registered", lambda: {"A6": made})
    (record,) = run(Lab((0, 1, 2)), tmp_path, None)
    assert record["verdict"] == "shown"
    assert [f["claim"] for f in record["tried"][0]["findings"]] == ["a below b"]
    how = {"command": "jaxsae science", "finished": "then", "machine": "m", "device": "d", "jaxsae": "1"}
    write(tmp_path, [record], {**how, "python": "3", "packages": {"jax": "1"}})
    text = (tmp_path / "science.md").read_text()
    assert "a below b" in text
    assert "no run with L0 on both sides of 4" in text
