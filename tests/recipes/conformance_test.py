"""Every registered slot member and every published method goes through the conformance suite."""

import pytest

from jaxsae.testing import conformance
from jaxsae.testing.members import enrolled, published

MEMBERS, RECIPES = enrolled(), published()


@pytest.mark.parametrize("tag", MEMBERS)
def test_member(tag, key):
    conformance.check_member(MEMBERS[tag], key)


@pytest.mark.parametrize("check", conformance.FULL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, check, key):
    check(RECIPES[name], key)


def test_every_kind_of_slot_has_members():
    kinds = {tag.split(".")[0] for tag in MEMBERS}
    assert kinds >= {"view", "norm", "encoder", "encode", "selector", "rule", "dictionary", "readout", "levels", "term"}
    assert kinds >= {"reducer", "schedule", "tracker"}
