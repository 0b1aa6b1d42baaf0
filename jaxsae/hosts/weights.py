"""Collects a model's tensors, one at a time and in any order, into the stacked arrays that a run takes."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae import packages
from jaxsae.errors import HostError, closest
from jaxsae.hosts.llama import Llama

DTYPES = ("float32", "bfloat16")


class Stack:
    """Preallocated stacked arrays; each tensor is written to its place and may then be dropped.

    Peak memory of the machine is that of the finished parameters plus one tensor.  A device gets its own part of each
    leaf and no more.

    Args:
        model: what the weights are for; gives the shapes.
        dtype: "float32" or "bfloat16".
        origin: file or folder, for messages.
    """

    def __init__(self, model: Llama, dtype: str, origin: pathlib.Path):
        self._origin = origin
        shapes = model.shapes()
        stacked = shapes.pop("blocks")
        try:
            self._arrays = {leaf: np.empty(shape, dtype) for leaf, shape in (shapes | stacked).items()}
        except (MemoryError, ValueError) as e:
            raise HostError(f"{origin}: no room for the weights ({model.describe()}); try dtype 'bfloat16'") from e
        self._stacked = frozenset(stacked)
        self._missing = {leaf: np.ones(model.n_layers if leaf in stacked else 1, bool) for leaf in self._arrays}

    def place(self, leaf: str, layer: int | None, shape: Sequence[int]) -> np.ndarray:
        """Where a tensor of the file goes: a view to be written in full, oriented as in the file ([out, in]).

        Raises:
            HostError: the model has no such tensor, or another shape is expected.
        """
        what = leaf if layer is None else f"{leaf} of block {layer}"
        missing, i = self._missing.get(leaf, np.zeros(1, bool)), layer or 0
        if i >= len(missing) or not missing[i]:
            raise HostError(f"{self._origin} holds a tensor for {what} that the model lacks, or holds it twice")
        place = self._arrays[leaf][i].T if leaf in self._stacked else self._arrays[leaf]
        if place.shape != tuple(shape):
            raise HostError(f"{self._origin}: {what} has shape {list(shape)}, expected {list(place.shape)}")
        missing[i] = False
        return place

    def finish(self, placed: Any = None) -> dict[str, Any]:
        """The parameters, leaf by leaf on the devices.

        Args:
            placed: the sharding of each leaf (`jaxsae.hosts.placement`); None for the default device.

        Raises:
            HostError: a tensor never came.
        """
        lacking = [(leaf, i) for leaf, missing in self._missing.items() for i in np.flatnonzero(missing)]
        if lacking:
            leaf, i = lacking[0]
            what = f"{leaf} of block {i}" if leaf in self._stacked else leaf
            raise HostError(
                f"{self._origin} lacks {len(lacking)} tensors, the first of them {what}; it is incomplete or of "
                "another architecture"
            )
        tree: dict[str, Any] = {"blocks": {}}
        for leaf in tuple(self._arrays):  # each is dropped here as soon as the devices have it
            array, stacked = self._arrays.pop(leaf), leaf in self._stacked
            where = None if placed is None else (placed["blocks"] if stacked else placed)[leaf]
            value = jnp.asarray(array) if where is None else jax.device_put(array, where)
            (tree["blocks"] if stacked else tree)[leaf] = value
        return tree


def check_dtype(dtype: Any) -> str:
    """The name of a dtype that hosts may have.  Raises HostError for another."""
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise HostError(f"a host cannot have dtype {name!r}{closest(name, DTYPES)}")
    return name


def digest_of(files: Sequence[pathlib.Path]) -> str:
    """SHA-256 of one file, or of the list of the digests of several."""
    digests = [packages.sha256(f) for f in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
