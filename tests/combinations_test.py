"""Selector x levels x dictionary x auxiliary term: every cell works or is refused with a reason."""

import pathlib

import pytest

from jaxsae.testing.combinations import check, choices, every_cell, pairwise, refused

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "combinations.md"


@pytest.mark.parametrize("cell", pairwise(), ids=lambda c: "-".join(c[:3]))
def test_pairs(cell):
    """Every two members meet in some cell, and what is built also works."""
    assert check(cell) == "works" or refused(cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", every_cell(), ids=lambda c: "-".join((*c[:3], *c[3])))
def test_every_cell(cell):
    check(cell)


def test_the_cover_lets_every_two_members_meet():
    c, cells = choices(), pairwise()
    for a, b in (("selector", "levels"), ("selector", "dictionary"), ("levels", "dictionary")):
        met = {(getattr(cell, a), getattr(cell, b)) for cell in cells}
        assert met == {(x, y) for x in c[a] for y in c[b]}
    for axis in ("selector", "levels", "dictionary"):
        met = {(getattr(cell, axis), t) for cell in cells for t in cell.terms}
        for x, t in {(x, t) for x in c[axis] for t in c["term"]} - met:
            with_both = [k for k in every_cell() if getattr(k, axis) == x and k.terms == (t,)]
            assert all(refused(k) for k in with_both), f"{x} and {t} go together, but no cell has both"


def test_the_page_names_every_member():
    text = PAGE.read_text()
    missing = [t for tags in choices().values() for t in tags if t.split(".")[1] not in text]
    assert not missing, f"run python -m jaxsae.testing.combinations docs/combinations.md: {missing}"


def test_at_least_four_in_five_cells_work():
    share = float(PAGE.read_text().split(" work (")[1].split(" %")[0])
    assert share >= 80
