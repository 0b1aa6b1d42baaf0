"""Training batches straight from a host model, without a cache between."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsae.data.activations import batched
from jaxsae.data.corpora import as_corpus
from jaxsae.data.harvest import split_block
from jaxsae.data.harvest_config import HarvestConfig
from jaxsae.data.shuffle import permutation
from jaxsae.data.sources import local_rows
from jaxsae.errors import ConfigError, DataError

_SPARE = 0.9


class HostSource:
    """Harvests on the fly: batches are a pure function of (seed, step), and nothing is written.

    The host runs block by block over `shuffle_tokens` tokens.  A block's rows are shuffled and serve a fixed number of
    steps, 0.9 times what its tokens would allow, because the number of rows left out is not known beforehand; the few
    rows above that are not used.  If even more were left out, rows of the block come twice.  A step in the middle of a
    run costs its own block and the tokenising (not the running) of the text before it.  The corpus is begun again, in
    another order, when it ends; documents are not held out.

    Args:
        config: what to harvest; `tokens`, `heldout_fraction` and how rows are stored do not matter here.
        batch_size: rows of a global batch.
        host: the host, where it is loaded already; else `config.host`.
        corpus: documents in memory; else `config.corpus`.
        process_index, process_count: which share of the global batch this process supplies (every process runs the
            host over all of it).

    Raises:
        ConfigError: a block does not hold one batch.

    Example:
        >>> from jaxsae.testing.tiny_host import tiny_host
        >>> config = HarvestConfig(sites=("blocks.1.hook_resid_post",), context_size=16, shuffle_tokens=1024)
        >>> source = HostSource(config, 64, host=tiny_host(), corpus=["some text to look into"] * 8)
        >>> source.batch(0)["x"].shape
        (64, 32)
    """

    def __init__(
        self,
        config: HarvestConfig,
        batch_size: int,
        *,
        host: Any = None,
        corpus: Sequence[str] | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._config, self.batch_size = config, batch_size
        self._host = config.load_host() if host is None else host
        self._corpus = config.open_corpus() if corpus is None else as_corpus(corpus)
        self.manifest = config.manifest(self._host, self._corpus)
        widths = {d for _, d in self.manifest.sites}
        if len(widths) != 1:
            raise ConfigError(f"sites of unequal width cannot share a batch: {dict(self.manifest.sites)}")
        self.d_in = widths.pop()
        self._rows = local_rows(batch_size, process_index, process_count)
        tokens = config.batches_per_block * config.batch_size * config.context_size
        self.steps_per_block = int(_SPARE * tokens) // batch_size
        if not self.steps_per_block:
            raise ConfigError(
                f"a batch of {batch_size} rows does not fit into a block of {tokens} tokens; "
                f"raise shuffle_tokens to at least {int(batch_size / _SPARE) + 1}"
            )
        self._runner = config.runner(self._host)
        self._states: list[dict[str, Any] | None] = [None]  # where each block's windows begin
        self._block: tuple[int, dict[str, np.ndarray]] | None = None
        self._lock = threading.Lock()

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """See `jaxsae.data.sources.Source.batch`."""
        number, at = divmod(step, self.steps_per_block)
        with self._lock:  # several readers may ask; one runs the host
            if self._block is None or self._block[0] != number:
                self._block = number, self._run(number)
            rows = self._block[1]
        count = len(next(iter(rows.values())))
        index = (at * self.batch_size + np.arange(*self._rows)) % count
        if len(rows) == 1:
            return {"x": next(iter(rows.values()))[index]}
        return {"sites": np.stack([x[index] for x in rows.values()], 1)}

    def _run(self, number: int) -> dict[str, np.ndarray]:
        """The shuffled rows of a block, by site."""
        config, size = self._config, self._config.batch_size
        while len(self._states) <= number:
            stream = config.windows(self._host, self._corpus, endless=True, state=self._states[-1])
            for _ in batched(stream, size, size * config.batches_per_block):
                pass
            self._states.append(stream.state())
        stream = config.windows(self._host, self._corpus, endless=True, state=self._states[number])
        block = self._runner.block(batched(stream, size), config.batches_per_block)
        if len(self._states) == number + 1:
            self._states.append(stream.state())
        kept = None if block is None else split_block(block, config.drop, self._host.tokenizer.special_ids)[0]
        if not kept or not len(kept["train"].doc):
            raise DataError(f"the corpus {self._corpus.identity['name']!r} gives no rows; expected text")
        order = permutation(len(kept["train"].doc), config.seed, "block", number)
        rows = {site: np.asarray(kept["train"].rows[site])[order] for site in config.sites}
        self._refuse_non_finite(rows)
        return rows

    def _refuse_non_finite(self, rows: dict[str, np.ndarray]) -> None:
        for site, x in rows.items():
            bad = int((~np.isfinite(x.astype(np.float32))).any(1).sum())
            if bad:
                raise DataError(
                    f"{bad} of {len(x)} rows at {site!r} hold NaN or infinity; look at the host's precision"
                )
