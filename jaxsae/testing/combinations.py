"""Any selector with any levels, dictionary and auxiliary term: the table of what goes together, and its test.

A cell is put together from the small recipes of the conformance suite, one per registered member, so a new member joins
the table by registering.  It either works (ten steps, export, reload, equal codes) or is refused when it is built, by
the recipe or one of its members, with the reason.  `python -m jaxsae.testing.combinations docs/combinations.md` runs
every cell and writes the table; a file of results beside it lets an interrupted run go on.
"""

import argparse
import itertools
import json
import pathlib
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import ConfigError
from jaxsae.objective import NormalisedMse
from jaxsae.recipes import Recipe
from jaxsae.sae import PreSelect
from jaxsae.testing import conformance
from jaxsae.testing.members import BASE, enrolled

STEPS = 10
AXES = ("selector", "levels", "dictionary", "term")
#: Reconstruction terms: every cell has one.
MAIN = ("term.mse", "term.normalised_mse")


class Cell(NamedTuple):
    """One combination, by the tags of its members; `terms` may name several, or none."""

    selector: str
    levels: str
    dictionary: str
    terms: tuple[str, ...]


@cache
def small() -> dict[str, Recipe]:
    """The conformance suite's recipe of every member, by tag."""
    return enrolled()


def choices() -> dict[str, list[str]]:
    """Tags per axis, without members made for several sites or for atoms that depend on the row.

    A term that is part of one selector or encoder (its own suite's recipe replaces the ordinary one) is no axis either:
    it goes with that one only, see `bound`.
    """
    found: dict[str, list[str]] = {name: [] for name in AXES}
    for tag, recipe in small().items():
        kind = tag.split(".")[0]
        plain = isinstance(recipe.encoder, PreSelect) and not getattr(recipe.dictionary, "ordered", False)
        one_site = all(getattr(part, "sites", 1) == 1 for part in (recipe.dictionary, recipe.encoder))
        if plain and one_site and not hasattr(recipe.dictionary, "decode_with"):
            axis = "selector" if kind == "rule" else kind
            part = kind == "term" and recipe.encoder != BASE.encoder
            if axis in found and not part and tag not in (*MAIN, "selector.rank", "selector.by_site"):
                found[axis].append(tag)
    return found


def bound() -> list[str]:
    """Terms that are part of one selector or encoder."""
    return [tag for tag, r in small().items() if tag.startswith("term.") and r.encoder != BASE.encoder]


def build(cell: Cell) -> Recipe:
    """The recipe of a cell.

    Raises:
        ConfigError: the members do not go together; the message is the reason.
    """
    recipes = [small()[tag] for tag in (cell.selector, cell.dictionary, cell.levels, *cell.terms)]
    # A tied dictionary or a gate's term comes with the encoder that it reads.
    given: list[Any] = [getattr(r.encoder, "encoder", None) for r in (BASE, *recipes[1:], recipes[0])]
    encoder = next((e for e in given if e != given[0]), given[0])
    chosen: Any = recipes[0].encoder
    terms = [_term(small()[tag], tag) for tag in cell.terms]
    added = [t for r in recipes for t in r.trackers if t not in BASE.trackers]
    views = [r.view for r in recipes if r.view != BASE.view]
    return replace(
        recipes[0],
        name="cell",
        view=views[0] if views else BASE.view,
        encoder=PreSelect(encoder, chosen.selector),
        dictionary=recipes[1].dictionary,
        levels=recipes[2].levels,
        terms=(NormalisedMse(), *terms),
        trackers=tuple(_by_name([*recipes[0].trackers, *added]).values()),
        transforms=tuple(dict.fromkeys(t for r in recipes for t in r.transforms)),
        hyper=tuple(_first([pair for r in recipes for pair in r.hyper]).items()),
    )


def _term(recipe: Recipe, tag: str) -> Any:
    from jaxsae.config import tag_of

    return next(t for t in recipe.terms if tag_of(t) == tag)


def _by_name(members: list) -> dict[str, Any]:
    """The first member of each name wins: the selector's own."""
    return _first([(m.name, m) for m in members])


def _first(pairs: list) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        found.setdefault(name, value)
    return found


def check(cell: Cell) -> str:
    """ "works", or the reason why the cell is refused; anything else raises."""
    if reason := refused(cell):
        return reason
    from jaxsae import load, save

    recipe = build(cell)
    data = conformance.batches(2, rows=24)
    # Not under jit: op by op, the small programs of `init` are shared by all cells.
    state, step = recipe.init(jax.random.key(0), data[0]), jax.jit(recipe.step)
    start = state.params
    for i in range(STEPS):
        state, metrics = step(state, data[i % 2])
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves((recipe.split(state.params)[0], metrics)))
    assert any(not np.array_equal(a, start[n]) for n, a in state.params.items()), "nothing was learned"
    sae = recipe.export(state)
    with tempfile.TemporaryDirectory() as folder:
        save(sae, pathlib.Path(folder) / "sae")
        again = load(pathlib.Path(folder) / "sae")
    x = data[0]["x"]
    np.testing.assert_array_equal(sae.encode(x).dense(), again.encode(x).dense())
    return "works"


def every_cell() -> list[Cell]:
    """All cells with one term or none."""
    c = choices()
    terms: list[tuple[str, ...]] = [(), *((t,) for t in c["term"])]
    return [Cell(*v) for v in itertools.product(c["selector"], c["levels"], c["dictionary"], terms)]


def pairwise() -> list[Cell]:
    """Cells in which every two members of different axes meet; each cell carries as many terms as go together.

    Terms that revive different sets of latents exclude each other, so there are two bundles.
    """
    c = choices()
    pool = {t: getattr(_term(small()[t], t), "pool", None) for t in c["term"] if _term(small()[t], t).k_aux}
    bundles = [tuple(t for t in c["term"] if t not in pool or pool[t] == p) for p in dict.fromkeys(pool.values())]
    first, second, third = c["selector"], c["dictionary"], c["levels"]
    cells = []
    for i, selector in enumerate(first):
        for j in range(max(len(second), len(third))):
            levels, dictionary = third[(i + j) % len(third)], second[j % len(second)]
            plain = Cell(selector, levels, dictionary, ())
            bundle = bundles[(i // len(third) + j) % len(bundles)]
            cells.append(plain._replace(terms=tuple(t for t in bundle if not refused(plain._replace(terms=(t,))))))
    return cells


def refused(cell: Cell) -> str:
    """The reason why a cell is refused, "" if it is not."""
    try:
        build(cell)
    except ConfigError as e:
        return str(e).removeprefix("recipe 'cell': ")
    return ""


# ------------------------------------------------------------------------------------------------ the table
def table(results: dict[Cell, str]) -> str:
    """The page: working cells per selector and term, and every reason for a refusal."""
    c = choices()
    works = sum(v == "works" for v in results.values())
    columns: list[tuple[str, ...]] = [(), *((t,) for t in c["term"])]
    lines = [
        "# What goes with what",
        "",
        "Selector x levels x dictionary x auxiliary term, each in a small recipe that is trained for ten steps,",
        "exported, saved and loaded again with equal codes, or refused when it is built.  Written by",
        "`python -m jaxsae.testing.combinations docs/combinations.md`; a member joins by registering.",
        "",
        f"{len(results)} cells run: {works} work ({100 * works / max(len(results), 1):.1f} %), "
        f"{len(results) - works} are refused; {len(every_cell()) - len(results)} cells have not been run.",
        "",
        f"Levels: {', '.join(_short(t) for t in c['levels'])}.  Dictionaries: "
        f"{', '.join(_short(t) for t in c['dictionary'])}.",
        f"Terms that are part of one selector or encoder, and so no column: "
        f"{', '.join(_short(t) for t in bound()) or 'none'}.",
        f"An entry counts working cells among those run, of {len(c['levels']) * len(c['dictionary'])} (levels x "
        "dictionaries).",
        "",
        "| selector | " + " | ".join(_short(t[0]) if t else "none" for t in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for selector in c["selector"]:
        row = [[v == "works" for k, v in results.items() if k.selector == selector and k.terms == t] for t in columns]
        lines.append(f"| {_short(selector)} | " + " | ".join(f"{sum(r)} of {len(r)}" for r in row) + " |")
    reasons = Counter(v for v in results.values() if v != "works")
    lines += ["", "## Refused, and why", ""] if reasons else []
    for reason, count in reasons.most_common():
        some = next(k for k, v in results.items() if v == reason)
        example = ", ".join(_short(t) for t in (some.selector, some.levels, some.dictionary, *some.terms))
        lines.append(f"* {count} cells, for example {example}: {reason}")
    return "\n".join([*lines, ""])


def _short(tag: str) -> str:
    return tag.split(".")[1]


def main(page: str, seconds: float = float("inf")) -> None:
    """Runs what has not run yet, for so long, and writes the page.

    Cells run in a fixed random order, so that a page written early is a fair sample; it says how many are missing.
    """
    notes, cells, end = pathlib.Path(page).with_suffix(".json"), every_cell(), time.monotonic() + seconds
    known: dict[str, str] = json.loads(notes.read_text()) if notes.exists() else {}
    order = np.random.default_rng(0).permutation(len(cells))
    for done, i in enumerate(order):
        name = "|".join((*cells[i][:3], *cells[i].terms))
        if name not in known and time.monotonic() < end:
            known[name] = check(cells[i])
            notes.write_text(json.dumps(known, indent=0, sort_keys=True))
        if done % 100 == 99:
            print(f"{done + 1} of {len(cells)}", flush=True)
            jax.clear_caches()
    named = {cell: "|".join((*cell[:3], *cell.terms)) for cell in cells}
    pathlib.Path(page).write_text(table({cell: known[name] for cell, name in named.items() if name in known}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", help="the page to write, docs/combinations.md; its results lie beside it as .json")
    parser.add_argument("seconds", nargs="?", type=float, default=float("inf"), help="stop running cells after so long")
    main(**vars(parser.parse_args()))
