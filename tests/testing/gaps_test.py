"""The section on rank and threshold forms names every method that ranks, with the numbers beside the page."""

import json
import pathlib
import re

from jaxsae.testing import gaps
from jaxsae.testing.members import published

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def rows():
    text = (DOCS / "methods.md").read_text().partition(gaps.TITLE)[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("| `")]


def test_every_recipe_that_ranks_is_measured_or_said_not_to_be():
    ranking = {name for name, recipe in published().items() if gaps.ranks(recipe)}
    assert set(gaps.METHODS) == ranking
    rest = (DOCS / "methods.md").read_text().partition("Not measured yet: ")[2].partition("\n")[0]
    assert {line.split("`")[1] for line in rows()} | set(re.findall("`([a-z0-9_]+)`", rest)) == ranking


def test_the_page_says_what_the_numbers_say():
    found = json.loads((DOCS / "forms.json").read_text())
    assert all(one["settings"] == gaps.SETTINGS for one in found.values()), "run it again"
    written = gaps.section(found)
    assert all(line in written for line in rows())
    for one in found.values():
        for form in ("rank", "threshold"):
            assert len(one[form]["fvu"]) == len(one[form]["l0"]) == len(gaps.SEEDS)


def test_a_section_is_replaced_where_it_stands_and_others_are_kept():
    found = {"topk": {f: {"fvu": [0.1, 0.2], "l0": [4.0, 4.0]} for f in ("rank", "threshold")} | {"over": "row"}}
    new = gaps.section(found)
    page = gaps.replaced("# Title\n\n## A\na\n", new)
    assert page.startswith("# Title\n\n## A\na\n\n" + gaps.TITLE)
    assert gaps.replaced(page + "\n## B\nb\n", new).endswith("\n## B\nb\n")
    assert gaps.replaced(page, new) == page
