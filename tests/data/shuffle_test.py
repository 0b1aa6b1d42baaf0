"""Random orders: stable, and a pure function of their key."""

import numpy as np
import pytest

from jaxsae.data.shuffle import heldout, permutation, raw


def test_permutation_holds_each_once():
    np.testing.assert_array_equal(np.sort(permutation(1000, 3, "rows", 1, 2)), np.arange(1000))


def test_every_part_of_the_key_matters():
    keys = [(0, "rows"), (1, "rows"), (0, "chunks"), (0, "rows", 0), (0, "rows", 1), (0, "rows", 0, 1)]
    assert len({tuple(permutation(50, *key)) for key in keys}) == len(keys)


def test_never_changes():
    """Written down on another day: a cache made then must be continued the same way today."""
    assert permutation(8, 7, "rows", 1).tolist() == [1, 3, 2, 6, 0, 7, 5, 4]


def test_a_longer_draw_begins_like_a_shorter_one():
    np.testing.assert_array_equal(raw(10, 5, "heldout"), raw(100, 5, "heldout")[:10])


@pytest.mark.parametrize(
    ("count", "fraction", "wanted"), [(100, 0.05, 5), (3, 0.05, 1), (1, 0.5, 0), (10, 0.0, 0), (2, 0.99, 1)]
)
def test_heldout_share(count, fraction, wanted):
    assert heldout(count, fraction, seed=0).sum() == wanted


def test_heldout_depends_on_the_seed():
    assert (heldout(1000, 0.1, 0) != heldout(1000, 0.1, 1)).any()
