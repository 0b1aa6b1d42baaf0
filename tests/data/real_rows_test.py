"""Real rows with labels, and what is said when a package is missing."""

import sys

import numpy as np
import pytest

from jaxsae.data import cells, digits
from jaxsae.errors import DataError


def test_digits_are_pixels_with_labels():
    pytest.importorskip("sklearn")
    found = digits()
    assert found.x.shape == (1797, 64)
    assert found.x.dtype == np.float32
    assert found.x.min() == 0
    assert found.x.max() == 1
    assert found.classes[found.label[0]] == "0"
    assert np.bincount(found.label).min() > 170


@pytest.mark.parametrize(("module", "load"), [("sklearn.datasets", digits), ("h5py", cells)])
def test_a_missing_package_is_one_sentence(monkeypatch, module, load):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match="pip install"):
        load()


def test_cells_are_read_with_their_types(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        file["X"] = np.arange(6, dtype=np.float32).reshape(3, 2)
        file["obs"] = np.array([(1,), (0,), (1,)], [("bulk_labels", "i1")])
        file["uns/bulk_labels_categories"] = np.array([b"B", b"T"])
    found = cells(path)
    np.testing.assert_array_equal(found.x, [[0, 1], [2, 3], [4, 5]])
    assert [found.classes[i] for i in found.label] == ["T", "B", "T"]


def test_another_file_is_named(tmp_path):
    pytest.importorskip("h5py")
    path = tmp_path / "text.h5ad"
    path.write_text("no table")
    with pytest.raises(DataError, match=r"text\.h5ad"):
        cells(path)
