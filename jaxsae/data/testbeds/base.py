"""What every testbed is: a frozen configuration with two pure functions."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxsae.errors import ConfigError


@struct.dataclass
class Truth:
    """What is fixed while rows are drawn.

    atoms: [F, D] the true features, unit length.   probability: [F] share of rows in which each is on.
    extra: whatever else a testbed needs or a metric reads, by name (`parent` [F] int32, -1 for a root; ...).
    """

    atoms: jax.Array
    probability: jax.Array
    extra: dict[str, jax.Array] = struct.field(default_factory=dict)


class Testbed(Protocol):
    """See the package's docstring."""

    @property
    def d_in(self) -> int: ...

    @property
    def features(self) -> int:
        """F, the number of true features."""
        ...

    def init(self, key: jax.Array) -> Truth:
        """Draws what is fixed."""
        ...

    def sample(self, truth: Truth, key: jax.Array, rows: int) -> dict[str, jax.Array]:
        """`{"x": [rows, D], "codes": [rows, F]}` float32; `codes` are the true coefficients of the atoms."""
        ...


def unit_directions(key: jax.Array, count: int, d: int) -> jax.Array:
    """Random directions, unit length: [count, d]."""
    rows = jax.random.normal(key, (count, d))
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def magnitudes(key: jax.Array, shape: tuple[int, ...], spread: float) -> jax.Array:
    """|N(1, spread^2)|, how strongly a feature is on."""
    return jnp.abs(1.0 + spread * jax.random.normal(key, shape))


def zipf(features: int, decay: float) -> np.ndarray:
    """(i + 1) ** -decay for i < features, [F] float64."""
    return np.arange(1, features + 1, dtype=np.float64) ** -decay


def capped(weight: np.ndarray, total: float, cap: float = 1.0) -> np.ndarray:
    """Probabilities proportional to `weight`, none above `cap`, that sum to `total`: [F].

    Raises:
        ConfigError: no such probabilities.

    Example:
        >>> capped(np.array([8.0, 1.0, 1.0]), total=1.0, cap=0.5).tolist()
        [0.5, 0.25, 0.25]
    """
    if not 0 < total <= cap * len(weight):
        raise ConfigError(
            f"{total:g} of {len(weight)} features on in a row, none more often than {cap:g}: "
            f"expected more than 0 and at most {cap * len(weight):g}"
        )
    low, high = 0.0, cap / weight.min()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(cap, middle * weight).sum() < total else (low, middle)
    return np.minimum(cap, high * weight)


def expect(ok: Any, bed: Any, wanted: str) -> None:
    """Raises ConfigError with what a testbed wanted, unless `ok`."""
    if not ok:
        raise ConfigError(f"testbed {bed!r}: expected {wanted}")
