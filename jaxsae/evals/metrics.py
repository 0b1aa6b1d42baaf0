"""Reconstruction and sparsity metrics: the one implementation that training logs, evaluations and reports share.

Everything is kept as sums and counts in one small pytree, so that batches, processes and halves of a data set can be
merged in any order:

    sums = init(d_out, d_sae)
    sums = update(sums, y, yhat, codes, mask)      # pure, jitted, any number of times
    sums = merge(sums, other)
    numbers = finish(sums)                         # plain floats

Sums are pairs of float32 (value and rounding error, Knuth's two-sum), about 48 bits, because JAX has no float64 unless
asked; squared deviations are kept about the running mean (Chan et al. 1979), so a large common offset costs nothing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxsae.sae.codes import Codes


class Pair(NamedTuple):
    """An unevaluated sum hi + lo of float32 arrays: integers are exact up to 2**48."""

    hi: jax.Array
    lo: jax.Array

    def value(self) -> np.ndarray:
        """The sum in float64, on the host."""
        return np.asarray(self.hi, np.float64) + np.asarray(self.lo, np.float64)


def zero(*shape: int) -> Pair:
    """A compensated sum of nothing."""
    return Pair(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def _two_sum(a: jax.Array, b: jax.Array) -> Pair:
    """a + b and the exact rounding error of that sum (Knuth)."""
    total = a + b
    back = total - a
    return Pair(total, (a - (total - back)) + (b - back))


def add(sum_: Pair, x: jax.Array | Pair) -> Pair:
    """Adds an array, or another compensated sum, without losing digits."""
    other = x if isinstance(x, Pair) else Pair(x, jnp.zeros_like(x))
    total, error = _two_sum(sum_.hi, other.hi)
    return _two_sum(total, error + (sum_.lo + other.lo))


def _total(rows: jax.Array) -> Pair:
    """Sums over the first axis as a pair, halving the array: log2(B) roundings, each of them kept."""
    width = 1 << max(0, (rows.shape[0] - 1).bit_length())
    hi = jnp.pad(rows.astype(jnp.float32), ((0, width - rows.shape[0]), *((0, 0),) * (rows.ndim - 1)))
    pair = Pair(hi, jnp.zeros_like(hi))
    while pair.hi.shape[0] > 1:
        half = pair.hi.shape[0] // 2
        pair = add(Pair(pair.hi[:half], pair.lo[:half]), Pair(pair.hi[half:], pair.lo[half:]))
    return Pair(pair.hi[0], pair.lo[0])


class Moments(NamedTuple):
    """Mean [E] of rows and their summed squared distance from it [] (over rows and E)."""

    mean: Pair
    squares: Pair


@struct.dataclass
class Sums:
    """What `finish` needs.  Scalars are sums over rows; `fired` [S] counts rows in which a latent is on."""

    rows: Pair
    target: Moments
    error: Moments
    squared_error: Pair
    relative_error: Pair
    cosine: Pair
    norm_ratio: Pair
    square_out: Pair
    inner: Pair
    l0: Pair
    fired: Pair


def init(d_out: int, d_sae: int) -> Sums:
    """Sums over no rows at all.

    Args:
        d_out: E, width of the target.
        d_sae: S, number of latents.
    """
    scalars = {n: zero() for n in Sums.__dataclass_fields__ if n not in ("target", "error", "fired")}
    moments = lambda: Moments(zero(d_out), zero())  # noqa: E731 - two of them, separate buffers
    return Sums(target=moments(), error=moments(), fired=zero(d_sae), **scalars)


@jax.jit
def update(sums: Sums, y: jax.Array, yhat: jax.Array, codes: Codes, mask: jax.Array | None = None) -> Sums:
    """Adds a batch.

    Args:
        sums: what `init`, `update` or `merge` returned.
        y: targets [B, E], any float dtype.
        yhat: reconstructions [B, E].
        codes: the codes behind them, B rows.
        mask: [B] of 0 and 1; rows with 0 are ignored whatever they hold, NaN included.

    Returns:
        New sums; nothing is donated.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsae.sae import DenseCodes
        >>> y = jnp.eye(4)
        >>> finish(update(init(4, 4), y, y, DenseCodes(y)))["fvu"]
        0.0
    """
    mask = jnp.ones(y.shape[0], jnp.float32) if mask is None else mask.astype(jnp.float32)
    keep = mask[:, None] > 0
    y, yhat = (jnp.where(keep, a.astype(jnp.float32), 0.0) for a in (y, yhat))
    error = y - yhat
    dot = lambda a, b: jnp.sum(a * b, axis=1)  # noqa: E731
    square_y, square_out, square_error, inner = dot(y, y), dot(yhat, yhat), dot(error, error), dot(y, yhat)
    norm_y, norm_out = jnp.sqrt(square_y), jnp.sqrt(square_out)
    n = jnp.sum(mask)
    target, square_target = _near(sums.target, sums.rows.hi, y, mask, n)
    bias, square_bias = _near(sums.error, sums.rows.hi, error, mask, n)
    per_row = {
        "rows": mask,
        "squared_error": square_error,
        "relative_error": _ratio(square_error, square_y),
        "cosine": _ratio(inner, norm_y * norm_out),
        "norm_ratio": _ratio(norm_out, norm_y),
        "square_out": square_out,
        "inner": inner,
        "l0": jnp.where(mask > 0, codes.l0(), 0.0),
    }
    totals = _total(jnp.stack([*per_row.values(), square_target, square_bias], axis=1))
    column = lambda i: Pair(totals.hi[i], totals.lo[i])  # noqa: E731
    return Sums(
        target=_join(sums.target, sums.rows.hi, Moments(target, column(-2)), n),
        error=_join(sums.error, sums.rows.hi, Moments(bias, column(-1)), n),
        fired=add(sums.fired, codes.tally(lambda v: (v != 0).astype(jnp.float32), mask)),
        **{name: add(getattr(sums, name), column(i)) for i, name in enumerate(per_row)},
    )


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, 0 where b is 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)


def _near(old: Moments, n_old: jax.Array, x: jax.Array, mask: jax.Array, n: jax.Array) -> tuple[Pair, jax.Array]:
    """Mean of the rows x [B, E] and each row's squared distance from it [B], taken about a reference near the rows
    (the running mean, or a first row), never about 0."""
    keep = mask[:, None] > 0
    reference = jnp.where(n_old > 0, old.mean.hi, x[jnp.argmax(mask)])
    offset = jnp.where(keep, x - reference[None], 0.0)
    delta = jnp.sum(offset, axis=0) / jnp.maximum(n, 1.0)
    inside = jnp.where(keep, offset - delta[None], 0.0)
    return add(Pair(reference, jnp.zeros_like(reference)), delta), jnp.sum(inside * inside, axis=1)


def _join(a: Moments, n_a: jax.Array, b: Moments, n_b: jax.Array) -> Moments:
    """Chan's rule: mean = mean_a + d n_b / n and squares = squares_a + squares_b + |d|^2 n_a n_b / n."""
    share = n_b / jnp.maximum(n_a + n_b, 1.0)
    difference = (b.mean.hi - a.mean.hi) + (b.mean.lo - a.mean.lo)
    between = jnp.sum(difference * difference) * n_a * share
    near = add(a.mean, difference * share)
    mean = jax.tree.map(lambda new, first: jnp.where(n_a > 0, new, first), near, b.mean)
    return Moments(mean, add(add(a.squares, b.squares), between))


@jax.jit
def merge(a: Sums, b: Sums) -> Sums:
    """Sums over the rows of both, whichever order or process they came from."""
    join = lambda x, y: _join(x, a.rows.hi, y, b.rows.hi)  # noqa: E731
    rest = [n for n in Sums.__dataclass_fields__ if n not in ("target", "error")]
    sums: dict[str, Any] = {n: add(getattr(a, n), getattr(b, n)) for n in rest}
    return Sums(target=join(a.target, b.target), error=join(a.error, b.error), **sums)


def finish(sums: Sums, dense: float = 0.1) -> dict[str, float]:
    """The metrics, as plain floats.  Means are over the N rows that the mask let through; NaN where undefined.

        rows                          N
        mse                           mean_n |y - yhat|^2                            (sum over E, mean over rows)
        fvu                           sum_n |y - yhat|^2 / sum_n |y - mean(y)|^2     (mean(y) over the same rows)
        explained_variance            1 - fvu: 0 for whoever predicts the mean, constant bias counts as error
        explained_variance_centred    1 - sum_d var(y_d - yhat_d) / sum_d var(y_d): blind to a constant bias
        normalised_mse                mean_n |y - yhat|^2 / |y|^2                    (Gao et al. 2024's per-row form)
        cosine                        mean_n y . yhat / (|y| |yhat|), 0 for a row where either is 0
        l2_ratio                      mean_n |yhat| / |y|
        relative_reconstruction_bias  sum_n |yhat|^2 / sum_n y . yhat: 1 is no shrinkage (Rajamanoharan et al. 2024)
        l0                            mean_n #{j: z_nj != 0}
        dead_share                    share of latents on in none of the N rows
        dense_share                   share of latents on in more than `dense` of them

    Args:
        sums: what `update` or `merge` returned.
        dense: density above which a latent counts as dense.
    """
    s = {n: getattr(sums, n).value() for n in Sums.__dataclass_fields__ if n not in ("target", "error")}
    n, variance = float(s["rows"]), float(sums.target.squares.value())
    fvu = _divide(s["squared_error"], variance)
    frequency = density(sums)
    return {
        "rows": n,
        "mse": _divide(s["squared_error"], n),
        "fvu": fvu,
        "explained_variance": 1.0 - fvu,
        "explained_variance_centred": 1.0 - _divide(sums.error.squares.value(), variance),
        "normalised_mse": _divide(s["relative_error"], n),
        "cosine": _divide(s["cosine"], n),
        "l2_ratio": _divide(s["norm_ratio"], n),
        "relative_reconstruction_bias": _divide(s["square_out"], s["inner"]),
        "l0": _divide(s["l0"], n),
        "dead_share": float(np.mean(s["fired"] == 0)) if n else float("nan"),
        "dense_share": float(np.mean(frequency > dense)) if n else float("nan"),
    }


def _divide(a: np.ndarray | float, b: np.ndarray | float) -> float:
    return float(a) / float(b) if float(b) != 0 else float("nan")


def density(sums: Sums) -> np.ndarray:
    """Share of rows in which each latent is on: [S] float64."""
    return sums.fired.value() / max(1.0, float(sums.rows.value()))


def density_histogram(frequency: np.ndarray, low: float = -7.0, bins: int = 70) -> dict[str, list | int]:
    """Histogram of log10 density.

    Args:
        frequency: [S] shares of rows, as `density` returns.
        low: left edge in log10; rarer latents are counted in the first bin.
        bins: number of equal bins between `low` and 0.

    Returns:
        edges (bins + 1 values of log10 density), counts (bins), dead (latents never on, in no bin).
    """
    frequency = np.asarray(frequency, np.float64)
    alive = np.log10(frequency[frequency > 0])
    edges = np.linspace(low, 0.0, bins + 1)
    counts, _ = np.histogram(np.clip(alive, low, 0.0), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist(), "dead": int(np.sum(frequency <= 0))}
