"""What is known about the rows of a cache without reading them: sums that merge, and resume bit for bit."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

#: Norms fall into bins of a width of 1 %, so a quantile is right to half of that.
_BINS_PER_E_FOLD = 100
#: Summed in float32 before float64 takes over: stays in the processor's cache, and is right to 1e-7.
_ROWS_AT_ONCE = 64


@dataclasses.dataclass
class SiteStats:
    """Moments of the rows x [N, D] of one site, as stored; relative error about 1e-7.

    Attributes:
        rows: N.
        total: sum of x over rows, [D].
        total_square: sum of x^2 over rows, [D].
        total_norm: sum of ||x|| over rows.
        max_norm: largest ||x||.
        histogram: number of rows per bin of log ||x||; norms of 0 under the key None.

    Example:
        >>> stats = SiteStats.empty(2)
        >>> stats.add(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))  # none of them is not finite
        0
        >>> stats.mean_norm, stats.mean.tolist()
        (2.5, [1.5, 2.0])
    """

    rows: int
    total: np.ndarray
    total_square: np.ndarray
    total_norm: float
    max_norm: float
    histogram: dict[int | None, int]

    @classmethod
    def empty(cls, width: int) -> "SiteStats":
        """No rows yet."""
        return cls(0, np.zeros(width), np.zeros(width), 0.0, 0.0, {})

    def add(self, rows: np.ndarray) -> int:
        """Counts rows [N, D] in.

        Returns:
            How many of them are not finite; if it is above 0, nothing was counted.
        """
        total, total_square, norm_square = np.zeros(rows.shape[1]), np.zeros(rows.shape[1]), np.zeros(len(rows))
        x = np.empty((_ROWS_AT_ONCE, rows.shape[1]), np.float32)
        square = np.empty_like(x)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                n = min(_ROWS_AT_ONCE, len(rows) - start)
                x[:n] = rows[start : start + n]
                np.square(x[:n], out=square[:n])
                total += x[:n].sum(0)
                total_square += square[:n].sum(0)
                norm_square[start : start + n] = square[:n].sum(1)
        bad = int((~np.isfinite(norm_square)).sum())
        if not bad and len(rows):
            self._add(total, total_square, np.sqrt(norm_square))
        return bad

    def _add(self, total: np.ndarray, total_square: np.ndarray, norms: np.ndarray) -> None:
        self.rows += len(norms)
        self.total = self.total + total
        self.total_square = self.total_square + total_square
        self.total_norm += float(norms.sum())
        self.max_norm = max(self.max_norm, float(norms.max()))
        bins, counts = np.unique(np.round(np.log(norms[norms > 0]) * _BINS_PER_E_FOLD).astype(int), return_counts=True)
        zeros = int((norms == 0).sum())
        for b, n in [*zip(bins.tolist(), counts.tolist(), strict=True), *([(None, zeros)] if zeros else [])]:
            self.histogram[b] = self.histogram.get(b, 0) + n

    def copy(self) -> "SiteStats":
        """One that can be added to without changing this one."""
        return dataclasses.replace(self, histogram=dict(self.histogram))  # the sums are replaced, never changed

    # ------------------------------------------------------------------------------------------------- what it says
    @property
    def mean(self) -> np.ndarray:
        """Mean of each column, [D] float64."""
        return self.total / max(1, self.rows)

    @property
    def variance(self) -> np.ndarray:
        """Variance of each column around its mean (division by N), [D] float64."""
        return np.maximum(self.total_square / max(1, self.rows) - self.mean**2, 0.0)

    @property
    def mean_norm(self) -> float:
        """Mean of ||x|| over rows."""
        return self.total_norm / max(1, self.rows)

    @property
    def mean_square_norm(self) -> float:
        """Mean of ||x||^2 over rows."""
        return float(self.total_square.sum()) / max(1, self.rows)

    def norm_quantile(self, q: float) -> float:
        """The norm that a share q of the rows does not exceed, right to 0.5 %."""
        bins = sorted(self.histogram.items(), key=lambda item: -math.inf if item[0] is None else item[0])
        seen = 0
        for b, n in bins:
            seen += n
            if seen >= q * self.rows:
                return 0.0 if b is None else math.exp(b / _BINS_PER_E_FOLD)
        return self.max_norm

    # ------------------------------------------------------------------------------------------------- in and out
    def to_json(self) -> dict:
        """Plain data; floats keep every bit."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        bins = {"zero" if b is None else str(b): n for b, n in self.histogram.items()}
        return plain | {"total": self.total.tolist(), "total_square": self.total_square.tolist(), "histogram": bins}

    @classmethod
    def from_json(cls, data: dict) -> "SiteStats":
        """The inverse of `to_json`."""
        bins = {None if b == "zero" else int(b): n for b, n in data["histogram"].items()}
        arrays = {k: np.asarray(data[k], np.float64) for k in ("total", "total_square")}
        return cls(**{**data, **arrays, "histogram": bins})

    @classmethod
    def merge(cls, parts: Iterable["SiteStats"]) -> "SiteStats":
        """The statistics of all parts together."""
        first, *rest = parts
        out = first.copy()
        for part in rest:
            out.rows += part.rows
            out.total, out.total_square = out.total + part.total, out.total_square + part.total_square
            out.total_norm += part.total_norm
            out.max_norm = max(out.max_norm, part.max_norm)
            for b, n in part.histogram.items():
                out.histogram[b] = out.histogram.get(b, 0) + n
        return out
