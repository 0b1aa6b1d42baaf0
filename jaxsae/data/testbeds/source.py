"""Testbeds as training batches."""

from functools import partial
from typing import Any

import jax
import numpy as np

from jaxsae.data.sources import local_rows
from jaxsae.data.testbeds.base import Truth


class TestbedSource:
    """Batches of a testbed, a pure function of (seed, step); see `jaxsae.data.Source`.

    Args:
        testbed: any registered testbed.
        batch_size: B, rows of a global batch.
        seed: of the truth and of all rows.
        process_index: which share of the global batch this process supplies.
        process_count: of how many.

    Attributes:
        truth: what is fixed.

    Example:
        >>> from jaxsae.data import Superposition
        >>> source = TestbedSource(Superposition(d_in=8, features=16, active=2), batch_size=4)
        >>> source.batch(0)["x"].shape
        (4, 8)
    """

    __test__ = False

    def __init__(self, testbed: Any, batch_size: int, *, seed: int = 0, process_index: int = 0, process_count: int = 1):
        self.testbed, self.d_in, self.batch_size = testbed, testbed.d_in, batch_size
        self._rows = local_rows(batch_size, process_index, process_count)
        k_truth, self._key = jax.random.split(jax.random.key(seed))
        self.truth: Truth = _init(testbed, k_truth)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """`{"x": [B, D]}` float32; the true codes are in `labelled`."""
        return {"x": self.labelled(step)["x"]}

    def labelled(self, step: int) -> dict[str, np.ndarray]:
        """Everything the testbed says about the rows of a step: x [B, D], codes [B, F], and its own extras."""
        drawn = jax.device_get(_sample(self.testbed, self.truth, jax.random.fold_in(self._key, step), self.batch_size))
        rows = slice(*self._rows)
        return {name: np.asarray(a)[rows] for name, a in drawn.items()}


@partial(jax.jit, static_argnums=0)
def _init(testbed: Any, key: jax.Array) -> Truth:
    return testbed.init(key)


@partial(jax.jit, static_argnums=(0, 3))
def _sample(testbed: Any, truth: Truth, key: jax.Array, rows: int) -> dict[str, jax.Array]:
    return testbed.sample(truth, key, rows)
