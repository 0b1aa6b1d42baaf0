"""docs/methods.md names every published method and says of each what the recipe says."""

import pathlib
import re

import pytest

import jaxsae
from jaxsae.testing.members import published
from jaxsae.testing.methods import changes, facts, page, seen

DOCS = pathlib.Path(__file__).parents[1] / "docs"
RECIPES = published()


@pytest.mark.parametrize("name", RECIPES)
def test_every_method_has_a_row(name):
    table = (DOCS / "methods.md").read_text().partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1, "run python -m jaxsae.testing.methods docs/methods.md"
    row = facts(name, RECIPES[name], RECIPES["topk"])
    assert f"| {row['changes']} | {row['path']} | {row['inference']} |" in rows[0], (
        "the page is out of date: run it again"
    )


def test_every_row_says_when_to_use_it():
    assert all(facts(name, recipe, RECIPES["topk"])["use"] for name, recipe in RECIPES.items())


def test_changes_are_read_off_the_recipe():
    assert changes(RECIPES["topk"], RECIPES["topk"]) == "none"
    assert "selector Column" in changes(RECIPES["feature_choice"], RECIPES["topk"])
    assert "terms AuxZipf" in changes(RECIPES["feature_choice"], RECIPES["topk"])
    assert "rule AfaRule" in changes(RECIPES["top_afa"], RECIPES["topk"])


def test_options_of_the_same_selector_are_changes_too():
    assert changes(RECIPES["abs_topk"], RECIPES["topk"]) == "selector Rank(signed=True)"


def test_what_was_seen_comes_from_the_experiments(tmp_path):
    """Written by the code that `jaxsae science` writes with."""
    from jaxsae.science import finding
    from jaxsae.science import page as science

    arms = {"ours": {"recipe": "abs_topk"}}
    found = [finding("below ReLU", ("ours", [1.0, 1.0]), ("theirs", [2.0, 2.1]), facts=f) for f in ({}, arms)]
    tried = [{"setting": {}, "verdict": "shown", "findings": [f._asdict() for f in found]}]
    failed = [{"setting": {}, "verdict": "not shown", "findings": [], "problem": "no run near"}]
    base = {"paper": "", "claim": "", "bed": "S1", "seeds": [0], "seconds": 1.0, "verdict": ""}
    records = [
        {**base, "id": "A2", "method": "topk", "tried": tried},
        {**base, "id": "A6", "method": "batch_topk", "tried": failed},
    ]
    science.write(tmp_path, records, science.circumstances("jaxsae science", 1.0))
    saw = seen(tmp_path / "science.json")
    assert saw["topk"] == "A2: below ReLU: shown (1.1, spread 0.071)"
    assert saw["abs_topk"] == saw["topk"]
    assert saw["batch_topk"] == "A6: not shown (no run near)"
    text = page(tmp_path / "science.json")
    assert saw["topk"] in text
    assert text.count("no study of its own") == len(RECIPES) - 3
    assert seen(tmp_path / "missing.json") == {}


@pytest.mark.parametrize("folder", ["recipes", "objective", "sae"])
def test_docstrings_name_papers_and_not_their_sections_or_equations(folder):
    """Numbers of sections and equations were never checked against the papers, and differ between their versions."""
    for path in (pathlib.Path(jaxsae.__file__).parent / folder).glob("*.py"):
        found = re.findall(r"\beq\. ?\d|[Ss]ections? [\dA-Z]\b|\bappendix [A-Z]\b|\d{4}, A\.\d", path.read_text())
        assert not found, f"{path.name}: {found}"


def test_what_was_not_checked_against_a_source_is_said():
    """Of methods whose constants were not: the table has a note."""
    for name in ("relu_l1", "gated", "jumprelu", "jumprelu_anthropic", "p_anneal", "ortsae", "adaptive_k"):
        assert facts(name, RECIPES[name], RECIPES["topk"])["source"], name
