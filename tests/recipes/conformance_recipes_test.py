"""Every published method trains, takes either path to the same gradients, and exports what it trained."""

import pytest

from jaxsae.testing import conformance
from jaxsae.testing.members import published

RECIPES = published()


@pytest.mark.parametrize("check", conformance.QUICK, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, check, key):
    check(RECIPES[name], key)
