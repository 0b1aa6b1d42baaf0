"""Small matrices of real measurements with labels: handwritten digits, blood cells."""

import os
from typing import NamedTuple

import numpy as np

from jaxsae.errors import DataError
from jaxsae.packages import PBMC_CELLS, package_file


class Labelled(NamedTuple):
    """Rows with a class each.

    Attributes:
        x: [N, D] float32.
        label: [N] int32, an index into `classes`.
        classes: names of the classes.
    """

    x: np.ndarray
    label: np.ndarray
    classes: tuple[str, ...]


def digits() -> Labelled:
    """1,797 handwritten digits of 8 x 8 pixels, values 0 to 1 (the UCI set that scikit-learn carries).

    Raises:
        DataError: scikit-learn is not installed.

    Example:
        >>> digits().x.shape
        (1797, 64)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise DataError(
            "the digits come with scikit-learn, which is not installed; run `pip install scikit-learn`"
        ) from e
    found = load_digits()
    x = np.asarray(found.data, np.float32) / 16
    return Labelled(x, np.asarray(found.target, np.int32), tuple("0123456789"))


def cells(path: str | os.PathLike | None = None) -> Labelled:
    """700 blood cells, 765 standardised gene expressions each, with one of 10 cell types (10x Genomics PBMC 68k).

    Args:
        path: the file `10x_pbmc68k_reduced.h5ad`; None takes the one inside the package scanpy, fetched once.

    Raises:
        DataError: h5py is not installed, the file cannot be had, or it is another file.
    """
    try:
        import h5py
    except ImportError as e:
        raise DataError(
            "reading cells from an .h5ad file needs h5py, which is not installed; run `pip install h5py`"
        ) from e
    path = package_file(PBMC_CELLS) if path is None else path
    try:
        with h5py.File(path) as file:
            x = np.asarray(file["X"], np.float32)
            label = np.asarray(file["obs"]["bulk_labels"], np.int32)
            classes = tuple(name.decode() for name in file["uns"]["bulk_labels_categories"])
    except (OSError, KeyError, ValueError) as e:
        raise DataError(
            f"{os.fspath(path)!r} is not the expected table of cells ({e}); expected X, obs/bulk_labels and "
            "uns/bulk_labels_categories, as in scanpy's 10x_pbmc68k_reduced.h5ad"
        ) from e
    return Labelled(x, label, classes)
