"""How often each latent fires: a running count, its curve over ranks, and the Zipf law that is fitted to it."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.sae.records import Ctx, Out
from jaxsae.typing import PyTree


@register("tracker.density")
@dataclass(frozen=True)
class Density:
    """Share of recent rows on which each latent was on: two sums that forget alike, so nothing starts from zero.

    count <- beta count + (rows on which it was on)        rows <- beta rows + (rows that count)
    """

    beta: float = 0.999
    name = "density"
    axes = {"count": "S", "rows": ""}

    def init(self, d_sae: int) -> PyTree:
        return {"count": jnp.zeros(d_sae), "rows": jnp.float32(0.0)}

    def observe(self, out: Out, ctx: Ctx) -> PyTree:
        count = out.sel.codes.tally(lambda v: (v != 0).astype(jnp.float32), out.rows.mask)
        return {"count": count, "rows": jnp.sum(out.rows.mask)}

    def update(self, own: PyTree, observed: PyTree, ctx: Ctx) -> PyTree:
        return {name: self.beta * own[name] + observed[name] for name in own}


def density_value(own: PyTree) -> jax.Array:
    """[S] share of rows, as a `Density` tracker holds it; 0 before anything was seen."""
    return own["count"] / jnp.maximum(own["rows"], 1.0)


def rank_of(density: jax.Array) -> jax.Array:
    """[S] int32 place of each latent when sorted by density, 0 for the densest; ties by lowest index.

    Example:
        >>> rank_of(jnp.array([0.1, 0.5, 0.3])).tolist()
        [2, 0, 1]
    """
    order = jnp.argsort(-density, stable=True)
    return jnp.zeros(len(density), jnp.int32).at[order].set(jnp.arange(len(density), dtype=jnp.int32))


def zipf_curve(d_sae: int, q: jax.Array | float, s: jax.Array | float) -> jax.Array:
    """Shares 1 / (rank + q)^s of ranks 1 .. d_sae, scaled to sum 1: [S], descending.  s = 0 gives equal shares.

    The law of Zipf (1949) with the shift q of Mandelbrot (1953).

    Example:
        >>> zipf_curve(3, 0.0, 1.0).round(3).tolist()
        [0.5450000166893005, 0.27300000190734863, 0.18199999630451202]
    """
    ranks = jnp.arange(1, d_sae + 1, dtype=jnp.float32)
    log = -jnp.asarray(s) * jnp.log(ranks + q)
    weight = jnp.exp(log - log[0])
    return weight / jnp.sum(weight)


class ZipfFit(NamedTuple):
    """log density = const - s log(rank + q); `r2` is the share of the variance of log density that it explains."""

    q: float
    s: float
    r2: float
    dead: int  # latents of density 0, left out


def fit_zipf(density: np.ndarray | jax.Array, largest_q: float = 1e4) -> ZipfFit:
    """Fits the Zipf-Mandelbrot law to densities, e.g. `density_value(state.track["density"])` of a first phase.

    Least squares of log density on log(rank + q), each rank weighted by 1 / rank, so that every octave of ranks counts
    alike and the long tail does not decide alone.  Given q the rest is a straight line; q is searched on a grid in
    log(1 + q), three times refined.

    Args:
        density: [S], not sorted.
        largest_q: end of the search.

    Raises:
        ConfigError: fewer than three latents ever fired.

    Example:
        >>> fit = fit_zipf(np.random.default_rng(0).permutation(np.asarray(zipf_curve(500, 5.0, 1.2))))
        >>> round(fit.q, 1), round(fit.s, 2)
        (5.0, 1.2)
    """
    sorted_ = np.sort(np.asarray(density, np.float64))[::-1]
    alive = sorted_[sorted_ > 0]
    if len(alive) < 3:
        raise ConfigError(f"a Zipf law needs at least 3 latents that fire, found {len(alive)}; train longer first")
    ranks, target = np.arange(1, len(alive) + 1, dtype=np.float64), np.log(alive)
    weight = 1 / ranks / np.sum(1 / ranks)
    low, high, best = 0.0, np.log1p(largest_q), (np.inf, 0.0, 0.0)
    for _ in range(4):
        grid = np.linspace(low, high, 201)
        best = min(_line(np.log(ranks + np.expm1(g)), target, weight, g) for g in grid)
        step = grid[1] - grid[0]
        low, high = max(0.0, best[1] - step), best[1] + step
    spread = np.sum(weight * (target - np.sum(weight * target)) ** 2)
    r2 = 1 - best[0] / spread if spread > 0 else 1.0
    return ZipfFit(float(np.expm1(best[1])), float(-best[2]), float(r2), int(len(sorted_) - len(alive)))


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray, label: float) -> tuple[float, float, float]:
    """(weighted squared error, label, slope) of the best straight line."""
    x, y = x - np.sum(weight * x), y - np.sum(weight * y)
    variance = np.sum(weight * x * x)
    slope = np.sum(weight * x * y) / variance if variance > 0 else 0.0
    return float(np.sum(weight * (y - slope * x) ** 2)), float(label), float(slope)
