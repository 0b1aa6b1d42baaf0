"""Reconstruction and sparsity of a dictionary over a cache split, or over any batches."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae import parallel
from jaxsae.errors import ConfigError, DataError
from jaxsae.evals import metrics
from jaxsae.sae import SAE

#: progress(stage, done, total), called now and then by everything in this package that takes a while.
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """The progress that nobody watches."""


class Reconstruction(NamedTuple):
    """What `reconstruction` returns.

    Attributes:
        numbers: the metrics of `metrics.finish`.
        density: share of rows in which each latent is on, [S].
    """

    numbers: dict[str, float]
    density: np.ndarray


def reconstruction(
    sae: SAE,
    batches: Iterable[Any],
    *,
    batch_rows: int = 1024,
    total: int = 0,
    progress: Progress = silent,
    together: bool = False,
) -> Reconstruction:
    """Metrics of a dictionary over batches; see `metrics.finish` for formulas and reductions.

    Args:
        sae: any loaded or exported dictionary, on one device or on a mesh.
        batches: arrays [B, D], or mappings with "x" [B, D] and optionally "y" [B, E] (a target other than x) and
            "mask" [B]; ragged sizes are padded, so that one program serves all.
        batch_rows: rows per device call.
        total: rows to come, for the progress only.
        progress: called after every batch.
        together: every process of a run calls this, each with its own batches; the numbers are about all of them.

    Raises:
        DataError: no rows, or rows that are not finite.
        ConfigError: rows of another width than the dictionary reads or writes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsae.sae import make_sae
        >>> eye = jnp.eye(3)
        >>> sae = make_sae({"W_enc": eye, "b_enc": jnp.zeros(3), "W_dec": eye, "b_dec": jnp.zeros(3)})
        >>> reconstruction(sae, [jnp.ones((5, 3))]).numbers["l0"]
        3.0
    """
    sums, done = metrics.init(sae.d_out, sae.d_sae), 0
    mesh = parallel.mesh_of(sae.params)
    for x, y, mask in _pieces(batches, batch_rows):
        _check(sae, x, y)
        with parallel.use(mesh):
            sums = _add(sums, sae, x, y, mask)
        done += int(mask.sum())
        progress("reconstruction", done, max(total, done))
    if together and parallel.several():
        sums = functools.reduce(metrics.merge, parallel.gather(jax.device_get(sums)))
    numbers = metrics.finish(sums)
    if not numbers["rows"]:
        raise DataError("there are no rows to evaluate; expected at least one batch (is the held-out split empty?)")
    if not np.isfinite(numbers["mse"]):
        raise DataError(
            f"the reconstruction of {done} rows is not finite; expected finite activations and weights, "
            "so check the cache for NaN or infinite rows"
        )
    return Reconstruction(numbers, metrics.density(sums))


def split_batches(
    split: Any, site: str | None, batch_rows: int = 1024, limit: int | None = None, share: tuple[int, int] = (0, 1)
) -> Iterator[Any]:
    """Rows of a cache split in the order they are stored, `batch_rows` at a time, at most `limit` of them.

    With `share = (i, n)`, every n-th batch from the i-th on.
    """
    stop = split.rows if limit is None else min(split.rows, limit)
    for start in range(share[0] * batch_rows, stop, share[1] * batch_rows):
        yield split.read(start, min(start + batch_rows, stop), site)


def padded(x: np.ndarray, rows: int) -> np.ndarray:
    """x with rows of zeros added up to `rows`."""
    return x if len(x) == rows else np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])


@jax.jit
def _add(sums: metrics.Sums, sae: SAE, x: jax.Array, y: jax.Array | None, mask: jax.Array) -> metrics.Sums:
    x = x.astype(jnp.float32)
    codes = sae.encode(x)
    return metrics.update(sums, x if y is None else y, sae.decode(codes, like=x), codes, mask)


def _pieces(batches: Iterable[Any], rows: int) -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray]]:
    """(x, y, mask) of exactly `rows` rows each."""
    for batch in batches:
        fields = dict(batch) if isinstance(batch, Mapping) else {"x": batch}
        x, y = np.asarray(fields["x"]), fields.get("y")
        mask = np.asarray(fields.get("mask", np.ones(len(x))), np.float32)
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            target = None if y is None else padded(np.asarray(y)[part], rows)
            yield padded(x[part], rows), target, padded(mask[part], rows)


def _check(sae: SAE, x: np.ndarray, y: np.ndarray | None) -> None:
    if x.ndim != 2 or x.shape[1] != sae.d_in:
        raise ConfigError(f"this dictionary reads rows of width {sae.d_in}, found activations of shape {list(x.shape)}")
    width = x.shape[1] if y is None else y.shape[-1]
    if width != sae.d_out:
        raise ConfigError(f"this dictionary writes rows of width {sae.d_out}, found targets of width {width}")
