"""docs/methods.md names every published method and says of each what the recipe says."""

import pathlib

import pytest

from jaxsae.testing.members import published
from jaxsae.testing.methods import changes, facts, page, seen

DOCS = pathlib.Path(__file__).parents[1] / "docs"
RECIPES = published()


@pytest.mark.parametrize("name", RECIPES)
def test_every_method_has_a_row(name):
    rows = [line for line in (DOCS / "methods.md").read_text().splitlines() if line.startswith(f"| `{name}` |")]
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


def test_what_was_seen_comes_from_the_experiments(tmp_path):
    file = tmp_path / "science.json"
    file.write_text('{"rows": [{"recipe": "topk", "claim": "below ReLU", "verdict": "shown"}]}')
    assert seen(file) == {"topk": "below ReLU: shown"}
    assert "below ReLU: shown" in page(file)
    assert seen(tmp_path / "missing.json") == {}
