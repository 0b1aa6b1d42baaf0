"""Windows through a host: activations at several sites in one pass, and which of them to leave out."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxsae import parallel
from jaxsae.data.buffers import Pool
from jaxsae.data.windows import PADDING, Window
from jaxsae.errors import ConfigError
from jaxsae.hosts.placement import place


@functools.partial(jax.jit, static_argnames=("model", "sites", "dtype"))
def _run(model: Any, params: Any, tokens: jax.Array, *, sites: tuple[str, ...], dtype: str) -> dict[str, Any]:
    """Activations [B * T, D] of each site in `dtype`, and their norms [B * T] in float32."""
    taps = model.run(params, tokens, taps=sites, logits=False).taps
    rows = {s: taps[s].reshape(-1, taps[s].shape[-1]).astype(dtype) for s in sites}
    norms = {s: jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), -1)) for s, x in rows.items()}
    return {"rows": rows, "norms": norms}


@dataclasses.dataclass(frozen=True)
class DropPolicy:
    """Which rows are left out.

    Attributes:
        position_0: the first token of each window; many models park attention there, with a huge norm.
        special_tokens: tokens that stand for no text, such as the one between documents.
        outlier_factor: a row whose norm is above this factor times the median norm of the rows of its block that
            remain; at any of the sites.  None keeps them.
    """

    position_0: bool = True
    special_tokens: bool = True
    outlier_factor: float | None = 10.0

    def check(self) -> None:
        """Raises ConfigError for a factor that cannot be."""
        if self.outlier_factor is not None and not self.outlier_factor > 1:
            raise ConfigError(f"outlier_factor = {self.outlier_factor}; expected a number above 1, or none")

    def keep(
        self, tokens: np.ndarray, docs: np.ndarray, norms: dict[str, np.ndarray], special: Iterable[int]
    ) -> tuple[np.ndarray, dict[str, int]]:
        """Which tokens [W, T] become rows, and how many were left out for which reason (each counted once)."""
        keep, dropped = docs != PADDING, {}
        rules = {}
        if self.position_0:
            rules["position_0"] = np.broadcast_to(np.arange(tokens.shape[1]) == 0, tokens.shape)
        if self.special_tokens:
            rules["special_tokens"] = np.isin(tokens, sorted(special))
        for reason, mask in rules.items():
            dropped[reason] = int((keep & mask).sum())
            keep = keep & ~mask
        if self.outlier_factor is not None:
            mask = np.zeros(keep.shape, bool)
            for norm in norms.values():
                limit = self.outlier_factor * np.median(norm[keep]) if keep.any() else np.inf
                mask |= norm > limit
            dropped["outliers"] = int((keep & mask).sum())
            keep = keep & ~mask
        return keep, dropped


class Harvested(NamedTuple):
    """Activations of one block of windows.

    `rows`: site -> [W * T, D], in memory that is used again for the next block; `norms`: site -> [W, T];
    `tokens`, `doc`, `position`: [W, T]; `heldout`: [W] bool.
    """

    rows: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]
    tokens: np.ndarray
    doc: np.ndarray
    position: np.ndarray
    heldout: np.ndarray


class Runner:
    """A host made ready to run windows of one shape.

    Args:
        host: the host.
        sites: where to read.
        batch_size: windows per forward pass.
        dtype: of the rows.
        mesh: its axis `data` divides batch_size; None for the default device.
    """

    def __init__(self, host: Any, sites: Sequence[str], batch_size: int, dtype: str, mesh: Mesh | None = None):
        self.host, self.sites, self.batch_size, self.dtype = host, tuple(sites), batch_size, dtype
        self.widths = {s: host.model.width(s) for s in self.sites}
        self._split = None if mesh is None else parallel.sharding(mesh, "BT")
        self._params = host.params if mesh is None else place(host, mesh).params
        self._pool = Pool(keep=2 * len(self.sites))

    def start(self, windows: Sequence[Window]) -> Any:
        """Begins the forward pass of up to `batch_size` windows; `result` waits for it."""
        tokens = np.zeros((self.batch_size, len(windows[0].tokens)), np.int32)
        tokens[: len(windows)] = [w.tokens for w in windows]
        put = jax.device_put(tokens, self._split)
        return _run(self.host.model, self._params, put, sites=self.sites, dtype=self.dtype)

    def block(
        self, batches: Iterable[Sequence[Window]], count: int, after_each: Callable[[int], None] | None = None
    ) -> Harvested | None:
        """Runs up to `count` batches; the next one is made ready while the device works.

        Args:
            batches: windows, at most `batch_size` at a time.
            count: how many batches at most.
            after_each: called after each batch with the tokens of this block run so far.

        Returns:
            Their activations, or None if there were no windows left.
        """
        windows: list[Window] = []
        rows: dict[str, np.ndarray] = {}
        norms: dict[str, list[np.ndarray]] = {s: [] for s in self.sites}
        for batch, running in self._ahead(batches, count):
            length = len(batch[0].tokens)
            at, n = len(windows) * length, len(batch) * length
            for site in self.sites:
                if site not in rows:
                    capacity = (count * self.batch_size * length, self.widths[site])
                    rows[site] = self._pool.take(capacity, running["rows"][site].dtype)
                rows[site][at : at + n] = np.asarray(running["rows"][site])[:n]
                norms[site].append(np.asarray(running["norms"][site])[:n].reshape(-1, length))
            windows += batch
            if after_each:
                after_each(at + n)
        if not windows:
            return None
        total = len(windows) * len(windows[0].tokens)
        return Harvested(
            {s: x[:total] for s, x in rows.items()},
            {s: np.concatenate(n) for s, n in norms.items()},
            tokens=np.stack([w.tokens for w in windows]),
            doc=np.stack([w.doc for w in windows]),
            position=np.stack([w.position for w in windows]),
            heldout=np.array([w.split == "heldout" for w in windows]),
        )

    def _ahead(self, batches: Iterable[Sequence[Window]], count: int) -> Iterator[tuple[Sequence[Window], Any]]:
        waiting = None
        for _, batch in zip(range(count), batches, strict=False):
            running = batch, self.start(batch)
            if waiting is not None:
                yield waiting
            waiting = running
        if waiting is not None:
            yield waiting


def batched(windows: Iterator[Window], size: int, limit: int | None = None) -> Iterator[list[Window]]:
    """Lists of `size` windows, the last one shorter; at most `limit` windows in all."""
    while limit is None or limit > 0:
        batch = [w for _, w in zip(range(size if limit is None else min(size, limit)), windows, strict=False)]
        if not batch:
            return
        limit = None if limit is None else limit - len(batch)
        yield batch
