"""The rest of the conformance suite: for one recipe of every kind here, for all others marked slow."""

import pytest

from jaxsae.testing import conformance
from jaxsae.testing.members import published

RECIPES = published()
#: One of every kind of selection, levels, term and transform; what the others add is checked member by member.
KINDS = (
    "topk",
    "batch_topk",
    "jumprelu",
    "matryoshka",
    "hierarchical_topk",
    "feature_choice",
    "gated",
    "matryoshka_random",
)


@pytest.mark.parametrize("check", conformance.REST, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES])
def test_recipe(name, check, key):
    check(RECIPES[name], key)
