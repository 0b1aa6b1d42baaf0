"""Input scaling: none, one constant for the whole data set (folds into the weights at export), or per row (stays)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.sae.records import Rows
from jaxsae.typing import Params

EPS = 1e-5


@register("norm.none")
@dataclass(frozen=True)
class NoNorm:
    """Rows as they come."""

    foldable = True
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    def init(self, rows: Rows) -> Params:
        return {}

    def inputs(self, p: Params, x: jax.Array) -> jax.Array:
        return x

    def targets(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        return y

    def undo(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        return y

    def fold(self, p: Params, leaves: Params) -> Params:
        return leaves


@register("norm.dataset")
@dataclass(frozen=True)
class DatasetNorm:
    """x <- c x with c = sqrt(D) / mean ||x|| (Anthropic, April 2024 update), y likewise with its own constant.

    The two constants are measured on the sample given to `init`, kept as fixed leaves, and folded at export:
    W_enc *= c_in, W_dec /= c_out, b_dec /= c_out; encoder bias and thresholds stay, as pre-activations do.
    With `rule` "mean_square" c = 1 / sqrt(mean ||x||^2) instead, so that the mean squared norm is 1 (Rajamanoharan et
    al. 2024b; Gemma Scope, Lieberum et al. 2024).
    """

    rule: Literal["mean_norm", "mean_square"] = "mean_norm"
    foldable = True
    axes = {"c_in": "", "c_out": ""}
    fixed = ("c_in", "c_out")

    def init(self, rows: Rows) -> Params:
        return {"c_in": self._constant(rows.x, rows.mask), "c_out": self._constant(rows.y, rows.mask)}

    def length(self, d: int) -> float:
        """Mean norm of a scaled row of width d (root mean square for "mean_square")."""
        return 1.0 if self.rule == "mean_square" else math.sqrt(d)

    def _constant(self, a: jax.Array, mask: jax.Array) -> jax.Array:
        norms = jnp.linalg.norm(a.astype(jnp.float32), axis=1)
        if self.rule == "mean_square":
            return jnp.sqrt(jnp.sum(mask) / jnp.sum(norms**2 * mask))
        return math.sqrt(a.shape[1]) * jnp.sum(mask) / jnp.sum(norms * mask)

    def inputs(self, p: Params, x: jax.Array) -> jax.Array:
        return x * p["c_in"]

    def targets(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        return y * p["c_out"]

    def undo(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        return y / p["c_out"]

    def fold(self, p: Params, leaves: Params) -> Params:
        """Scales the leaves of a frozen coder so that it takes and returns raw rows."""
        factors = {"W_enc": p["c_in"], "probe_w": p["c_in"], "W_dec": 1 / p["c_out"], "b_dec": 1 / p["c_out"]}
        factors["W_skip"] = p["c_in"] / p["c_out"]
        return {k: v * factors[k] if k in factors else v for k, v in leaves.items()}


@register("norm.row")
@dataclass(frozen=True)
class RowNorm:
    """x <- (x - mean(x)) / (std(x) + 1e-5) over the D entries of each row, undone on the output (Gao et al. 2024).

    `ddof` 1 divides the variance by D - 1, as the OpenAI and SAELens libraries do.  Not foldable: the frozen coder
    keeps it.  `undo` multiplies by std(x), without the 1e-5, again as those libraries do; without `restore` the output
    stays in the scale of the normalised row (SAELens' transcoders).
    """

    ddof: int = 1
    restore: bool = True
    foldable = False
    axes: ClassVar[dict[str, str]] = {}
    fixed = ()

    def init(self, rows: Rows) -> Params:
        return {}

    def length(self, d: int) -> float:
        """Norm of a standardised row of width d."""
        return math.sqrt(d - self.ddof)

    def _moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.astype(jnp.float32)
        return x.mean(-1, keepdims=True), x.std(-1, keepdims=True, ddof=self.ddof)

    def inputs(self, p: Params, x: jax.Array) -> jax.Array:
        mean, std = self._moments(x)
        return (x - mean) / (std + EPS)

    def targets(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        mean, std = self._moments(x if self.restore else y)
        return (y - mean) / (std + EPS)

    def undo(self, p: Params, y: jax.Array, x: jax.Array) -> jax.Array:
        mean, std = self._moments(x)
        return y * std + mean if self.restore else y

    def fold(self, p: Params, leaves: Params) -> Params:
        return leaves
