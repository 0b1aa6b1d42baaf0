"""One pass over cached rows that finds where every latent is on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae import parallel
from jaxsae.errors import DataError
from jaxsae.evals.reconstruction import Progress, padded, silent
from jaxsae.evals.strongest import Best, lottery
from jaxsae.sae import SAE, Codes, SparseCodes

#: Rows per device call for sparse codes; dense codes get fewer, so that [rows, S] stays below _DENSE values.
_ROWS, _DENSE = 2048, 2**25


@dataclass
class Scan:
    """What a pass over rows leaves behind, in memory that does not grow with the rows.

    Attributes:
        rows: rows seen.
        fired: [S] rows in which each latent is on.
        total: [S] float64 sum of its activations.
        top: the rows where it is strongest, in absolute value.
        sample: a uniform sample of the rows where it is on.
    """

    rows: int
    fired: np.ndarray
    total: np.ndarray
    top: Best
    sample: Best

    @property
    def density(self) -> np.ndarray:
        """[S] share of rows."""
        return self.fired / max(1, self.rows)


def scan(
    sae: SAE,
    split: Any,
    site: str | None,
    *,
    limit: int | None = None,
    n_top: int = 32,
    n_sample: int = 64,
    seed: int = 0,
    progress: Progress = silent,
) -> Scan:
    """Encodes the rows of a cache split and keeps, per latent, counts, the strongest rows and a sample.

    Args:
        sae: any dictionary that reads `site`.
        split: rows with `rows` and `read(start, stop, site)`.
        site: name of the site, or None if the split has only one.
        limit: rows to look at; rows of a cache are shuffled, so the first ones are a fair share.
        n_top: strongest rows kept per latent.
        n_sample: sampled rows kept per latent.
        seed: of the sample.
        progress: called after every piece.

    Raises:
        DataError: no rows.
    """
    stop = split.rows if limit is None else min(limit, split.rows)
    if stop == 0:
        raise DataError("there are no rows to look for activations in; expected a split with at least one row")
    S, step = sae.d_sae, rows_at_once(sae)
    out = Scan(stop, np.zeros(S, np.int64), np.zeros(S), Best(S, n_top), Best(S, n_sample))
    for start in range(0, stop, step):
        end = min(start + step, stop)
        row, latent, value = entries(encode(sae, split.read(start, end, site), step))
        real = row < end - start
        row, latent, value = row[real] + start, latent[real], value[real]
        out.fired += np.bincount(latent, minlength=S)
        out.total += np.bincount(latent, value, minlength=S)
        out.top.add(latent, np.abs(value).astype(np.float64), value, row)
        out.sample.add(latent, lottery(row, latent, seed), value, row)
        progress("activations", end, stop)
    return out


def rows_at_once(sae: SAE) -> int:
    """Rows per device call: fewer where the codes are dense and wide."""
    return _ROWS if sae.form == "rank" else max(16, min(_ROWS, _DENSE // sae.d_sae))


def encode(sae: SAE, x: np.ndarray, rows: int) -> Codes:
    """Codes of x, filled up to `rows` rows so that one program serves all pieces; arrays are numpy's."""
    with parallel.use(parallel.mesh_of(sae.params)):
        return jax.device_get(_encode(sae, padded(x, rows)))


@jax.jit
def _encode(sae: SAE, x: jax.Array) -> Codes:
    return sae.encode(x.astype(jnp.float32))


def entries(codes: Codes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, latent, value) of everything that is on, each [M]."""
    values = np.asarray(codes.values)
    row, place = np.nonzero(values)
    latent = np.asarray(codes.indices)[row, place] if isinstance(codes, SparseCodes) else place
    return row, latent, values[row, place]


def value_at(codes: Codes, row: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """The activation of one latent in one row, for M pairs: [M]."""
    values = np.asarray(codes.values)
    if isinstance(codes, SparseCodes):
        return np.sum(values[row] * (np.asarray(codes.indices)[row] == latent[:, None]), axis=1)
    return values[row, latent]


def pieces_with(wanted: np.ndarray, step: int) -> Iterator[tuple[int, np.ndarray]]:
    """Groups sorted row numbers by pieces of `step` rows: (first row of the piece, the wanted rows in it)."""
    for group in np.split(wanted, np.flatnonzero(np.diff(wanted // step)) + 1):
        if len(group):
            yield int(group[0] // step * step), group
