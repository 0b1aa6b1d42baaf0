"""Every registered slot member goes through the conformance suite, inside a small recipe."""

import pytest

from jaxsae.testing import conformance
from jaxsae.testing.members import enrolled

MEMBERS = enrolled()


@pytest.mark.parametrize("tag", MEMBERS)
def test_member(tag, key):
    conformance.check_member(MEMBERS[tag], key)


def test_every_kind_of_slot_has_members():
    kinds = {tag.split(".")[0] for tag in MEMBERS}
    assert kinds >= {"view", "norm", "encoder", "encode", "selector", "rule", "dictionary", "readout", "levels", "term"}
    assert kinds >= {"reducer", "schedule", "tracker"}
