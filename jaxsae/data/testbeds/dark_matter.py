"""What a sparse dictionary cannot say: S8, sparse sums, a dense subspace, and a saturating function of the codes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.data.testbeds.base import Truth, expect
from jaxsae.data.testbeds.superposition import Superposition


@register("testbed.dark_matter")
@dataclass(frozen=True)
class DarkMatter:
    """x = sparse part + dense u U + nonlinear tanh(gain z A) C   (the error kinds of Engels et al. 2024).

    u ~ N(0, I) in `dense_rank` dimensions with orthonormal U [r, D]; A [F, m] and C [m, D] are random with columns,
    respectively rows, of unit length.

    Attributes:
        base: the sparse part.
        dense_rank: r, dimensions of the dense part.
        dense: its standard deviation per dimension.
        hidden: m, width of the nonlinear part.
        nonlinear: size of each of its units when saturated.
        gain: how early they saturate.
    """

    base: Superposition = Superposition()
    dense_rank: int = 4
    dense: float = 0.3
    hidden: int = 32
    nonlinear: float = 0.2
    gain: float = 10.0

    def __post_init__(self) -> None:
        expect(0 < self.dense_rank <= self.d_in and self.hidden > 0, self, "positive sizes, a dense rank up to d_in")

    @property
    def d_in(self) -> int:
        return self.base.d_in

    @property
    def features(self) -> int:
        return self.base.features

    def init(self, key: jax.Array) -> Truth:
        """The sparse part's truth, with `dense` [r, D], `mix` [F, m] and `out` [m, D]."""
        k_base, k_dense, k_mix, k_out = jax.random.split(key, 4)
        truth = self.base.init(k_base)
        unit = lambda a, axis: a / jnp.linalg.norm(a, axis=axis, keepdims=True)  # noqa: E731
        extra = {
            "dense": jnp.linalg.qr(jax.random.normal(k_dense, (self.d_in, self.dense_rank)))[0].T,
            "mix": unit(jax.random.normal(k_mix, (self.features, self.hidden)), 0),
            "out": unit(jax.random.normal(k_out, (self.hidden, self.d_in)), 1),
        }
        return truth.replace(extra={**truth.extra, **extra})  # type: ignore[attr-defined]

    def sample(self, truth: Truth, key: jax.Array, rows: int) -> dict[str, jax.Array]:
        """See `Testbed.sample`; `dense` and `nonlinear` [rows, D] are the other two parts of x."""
        k_base, k_dense = jax.random.split(key)
        drawn = self.base.sample(truth, k_base, rows)
        dense = self.dense * jax.random.normal(k_dense, (rows, self.dense_rank)) @ truth.extra["dense"]
        bent = jnp.tanh(self.gain * drawn["codes"] @ truth.extra["mix"])
        nonlinear = self.nonlinear * bent @ truth.extra["out"]
        return {**drawn, "x": drawn["x"] + dense + nonlinear, "dense": dense, "nonlinear": nonlinear}
