"""How complex is a row?  A linear probe gives each row its own k (AdaptiveK), and is fitted in closed form."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.records import Ctx
from jaxsae.typing import Params

#: Complexity scores lie between 0 and this.
MOST = 10.0


@register("rule.probe")
@dataclass(frozen=True)
class ProbeRule:
    """The first k(x) of each row, with k(x) by a linear probe of its complexity (AdaptiveK, Yao & Du 2025, 2508.17320).

        c(x) = clamp(x . w + b, 0, 10)      k(x) = round(k (low + sigmoid(6 (c(x) / 10 - 1/2)) (high - low)))

    x is the row as the coder sees it: after input scaling, before any centring.  k is `hyper["k"]` [], the base; with
    the paper's k = 80 the defaults give 20 to 320.  A fresh probe is 0, so every row gets k(0) until
    `jaxsae.recipes.with_probe` puts a fitted one in.

    Args:
        d_in: width of the rows.
        low, high: range of k(x) as multiples of k.  sigmoid(-3) to sigmoid(3) of it is reached: 4.7 % to 95.3 %.
        trained: the probe takes part in the training (third phase).  The selection gives it no gradient (k is rounded);
            the terms `ProbeError` and `ProbeDrift` do.
        anchored: keep the fitted probe beside the trained one, for `ProbeDrift`.
    """

    d_in: int
    low: float = 0.25
    high: float = 4.0
    trained: bool = False
    anchored: bool = True
    may_miss = False
    per_row = True
    reads = ("k",)

    @property
    def axes(self) -> dict[str, str]:
        axes = {"probe_w": "D", "probe_b": ""}
        return {**axes, "probe_w_start": "D", "probe_b_start": ""} if self.anchored else axes

    @property
    def fixed(self) -> tuple[str, ...]:
        return tuple(n for n in self.axes if n.endswith("_start") or not self.trained)

    def review(self, recipe: Any) -> tuple[str, ...]:
        """The list must hold the largest k(x), or rows would be cut short unseen."""
        cap, k = recipe.encoder.selector.cap, dict(recipe.hyper).get("k", 0)
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"recipe {recipe.name!r}: 0 <= low <= high, found low = {self.low}, high = {self.high}")
        if cap < min(recipe.d_sae, k * self.high):
            raise ConfigError(
                f"recipe {recipe.name!r}: k(x) reaches {k * self.high:g}, the ranked list holds {cap}; raise its cap"
            )
        return ()

    def init(self, key: jax.Array) -> Params:
        return {name: jnp.zeros(self.d_in if letters else ()) for name, letters in self.axes.items()}

    def frozen(self) -> "ProbeRule":
        """The inference form: without what only training needs."""
        return replace(self, trained=False, anchored=False)

    def k(self, p: Params, x: jax.Array, ctx: Ctx) -> jax.Array:
        """k of each row: [B] f32, whole numbers."""
        share = jax.nn.sigmoid(6 * (complexity(x, p["probe_w"], p["probe_b"]) / MOST - 0.5))
        return jnp.round(ctx.hyper["k"] * (self.low + share * (self.high - self.low)))

    def keep(self, p: Params, score: jax.Array, x: jax.Array, ctx: Ctx, full: bool):
        """Mask of kept entries; arguments as `RowRule.keep`."""
        return jnp.arange(score.shape[1])[None] < self.k(p, ctx.rows.x, ctx)[:, None], True


def complexity(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    """clamp(x . w + b, 0, 10) of rows x [B, D]: [B] f32.  Rows at either end give the probe no gradient."""
    score = jnp.dot(x.astype(jnp.float32), w.astype(jnp.float32)) + b
    return jnp.clip(score, 0.0, MOST)


class Probe(NamedTuple):
    """w [D], b []: a fitted probe.  `penalty` is the one chosen, `error` its mean squared error on rows left out."""

    w: jax.Array
    b: jax.Array
    penalty: float
    error: float


def fit_probe(
    x: jax.Array, scores: jax.Array, penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0), folds: int = 5
) -> Probe:
    """Ridge regression of complexity scores on rows, the penalty chosen by k-fold cross-validation.

        w = (Xc^T Xc + penalty I)^-1 Xc^T yc      b = mean(y) - mean(X) . w      (Xc, yc: centred; b is not penalised)

    Folds are consecutive blocks of rows: shuffle before if rows are ordered.  Any score between 0 and 10 will do: the
    paper lets a language model rate texts; token loss, compressed length or a known number of causes work as well.

    Args:
        x: [N, D] rows as the coder sees them (after input scaling).
        scores: [N] complexity, 0 to 10.
        penalties: candidates.
        folds: number of folds.

    Raises:
        ConfigError: fewer rows than folds, scores of another length or outside 0..10, or no candidate.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (200, 3))
        >>> probe = fit_probe(x, 5.0 + x[:, 1])
        >>> [round(float(v), 1) + 0.0 for v in probe.w], round(float(probe.b), 1)
        ([0.0, 1.0, 0.0], 5.0)
    """
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(scores, jnp.float32)
    if x.ndim != 2 or y.shape != (len(x),) or not 1 < folds <= len(x) or not penalties:
        raise ConfigError(
            f"a probe needs rows [N, D], scores [N], 2 to N folds and a penalty; found {x.shape}, {y.shape}, {folds} "
            f"folds, {len(penalties)} penalties"
        )
    if float(y.min()) < 0 or float(y.max()) > MOST:
        raise ConfigError(
            f"complexity scores lie in 0..10, found {float(y.min()):g} to {float(y.max()):g}; rescale them"
        )
    fold = jnp.arange(len(x)) * folds // len(x)
    errors = jnp.stack([_left_out(x, y, fold == i, jnp.asarray(penalties)) for i in range(folds)])
    error = jnp.sum(errors, axis=0) / len(x)
    best = int(jnp.argmin(error))
    w, b = _ridge(x, y, jnp.ones(len(x)), jnp.float32(penalties[best]))
    return Probe(w, b, float(penalties[best]), float(error[best]))


@jax.jit
def _left_out(x: jax.Array, y: jax.Array, out: jax.Array, penalties: jax.Array) -> jax.Array:
    """Squared error summed over the rows left out, per penalty."""
    rest = 1.0 - out.astype(jnp.float32)

    def one(penalty):
        w, b = _ridge(x, y, rest, penalty)
        return jnp.sum(jnp.where(out, (jnp.dot(x, w) + b - y) ** 2, 0.0))

    return jax.vmap(one)(penalties)


def _ridge(x: jax.Array, y: jax.Array, weight: jax.Array, penalty: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = jnp.sum(weight)
    mean_x, mean_y = jnp.dot(weight, x) / total, jnp.dot(weight, y) / total
    centred, target = (x - mean_x[None]) * weight[:, None], (y - mean_y) * weight
    gram = jnp.dot(centred.T, centred, precision="highest") + penalty * jnp.eye(x.shape[1])
    w = jnp.linalg.solve(gram, jnp.dot(centred.T, target, precision="highest"))
    return w, mean_y - jnp.dot(mean_x, w)
