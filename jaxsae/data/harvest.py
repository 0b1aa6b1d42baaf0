"""Harvest: text through a host model, activations into a cache.

    documents -> windows of tokens -> activations at the sites, one pass -> rows dropped -> shuffled -> written

The work goes block by block.  A block is a fixed number of windows; its rows are shuffled together and committed in one
step with the place where the next block begins.  So a killed harvest, run again, goes on after the last block, and what
it writes does not depend on where it was killed.
"""

import collections
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxsae import parallel
from jaxsae.data.activations import DropPolicy, Harvested, batched
from jaxsae.data.corpora import Corpus, as_corpus
from jaxsae.data.harvest_config import HarvestConfig
from jaxsae.data.manifest import SPLITS, Manifest, Progress
from jaxsae.data.stats import SiteStats
from jaxsae.data.writer import Block, CacheWriter
from jaxsae.errors import DataError

Say = Callable[[int, int], None]


def harvest(
    config: HarvestConfig,
    out: str | os.PathLike,
    *,
    host: Any = None,
    corpus: Corpus | Sequence[str] | None = None,
    say: Say | None = None,
    devices: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Writes a cache, or goes on with one that was interrupted.

    A finished cache is left alone; with a larger `tokens` than before it is gone on with.

    Args:
        config: what to harvest.
        out: folder or URL of the cache.
        host: the host, where it is loaded already; else `config.host`.
        corpus: documents in memory; else `config.corpus`.
        say: called with (tokens run since the start of the harvest, rows stored) after every batch and every block.
        devices: over which the host is spread; by default all accelerators of this process, or one CPU.

    Returns:
        Plain facts: rows by split, tokens run, rows dropped by reason, bytes per row.

    Raises:
        DataError: another cache or other files are in `out`, the corpus is empty, the disk is full.
        HostError, ConfigError: a site, model or policy that cannot be.
    """
    corpus = config.open_corpus() if corpus is None else as_corpus(corpus)
    host = config.load_host(devices) if host is None else host
    writer = CacheWriter(out, config.manifest(host, corpus), config.part)
    cursor = writer.progress.cursor or {"windows": None, "run": 0}
    limit = config.window_limit
    left = None if limit is None else limit - cursor["run"]
    if left is not None and left < 0:
        raise DataError(
            f"the cache in {out} holds {cursor['run'] * config.context_size} tokens, more than the "
            f"{config.tokens} asked for; ask for at least as many or name another folder"
        )
    if writer.progress.done and (left == 0 or cursor.get("ended")):
        return summary(writer.manifest, [writer.progress])
    writer.reopen()
    check_free_disk(config, host, corpus, writer)
    stream = config.windows(host, corpus, state=cursor["windows"])
    runner, batches = config.runner(host, devices), batched(stream, config.batch_size, left)
    done = cursor["run"]

    def tell(tokens: int) -> None:
        if say:
            say(done * config.context_size + tokens, sum(writer.progress.rows.values()))

    while block := runner.block(batches, config.batches_per_block, tell):
        done += len(block.tokens)
        blocks, dropped = split_block(block, config.drop, host.tokenizer.special_ids)
        writer.commit(blocks, {"windows": stream.state(), "run": done, "ended": False}, dropped)
        tell(0)
    if not done:
        raise DataError(f"the corpus {corpus.identity['name']!r} holds no text; expected at least one token")
    _finish(writer, ended=limit is None or done < limit)
    return summary(writer.manifest, [writer.progress])


def _finish(writer: CacheWriter, ended: bool) -> None:
    if writer.progress.cursor is not None:
        writer.progress.cursor["ended"] = ended
    writer.finish()


def split_block(
    block: Harvested, drop: DropPolicy, special_ids: frozenset[int]
) -> tuple[dict[str, Block], dict[str, int]]:
    """A block of activations as rows to write, by split, and what was left out."""
    keep, dropped = drop.keep(block.tokens, block.doc, block.norms, special_ids)
    out = {}
    for split, chosen in (("train", ~block.heldout), ("heldout", block.heldout)):
        if chosen.any():
            kept = keep & chosen[:, None]
            window = np.cumsum(chosen) - 1  # its number among the windows of this split
            length = block.tokens.shape[1]
            token_index = (window[:, None] * length + np.arange(length))[kept]
            rows = {site: x[kept.reshape(-1)] for site, x in block.rows.items()}
            tokens, doc = block.tokens[chosen], block.doc[chosen]
            out[split] = Block(rows, block.doc[kept], block.position[kept], token_index, tokens, doc)
    return out, dropped


def check_free_disk(config: HarvestConfig, host: Any, corpus: Corpus, writer: CacheWriter) -> None:
    """Raises DataError if the rows still to come will not fit on the disk."""
    free = writer.folder.free_bytes()
    estimate = config.estimate(host, corpus)
    needed = estimate.bytes - sum(writer.progress.rows.values()) * writer.manifest.row_bytes
    needed *= parallel.count()  # the others need about as much, and most often on the same disk
    if free is not None and needed > free:
        raise DataError(
            f"this harvest needs about {needed / 1e9:.2f} GB more in {writer.folder}, but only {free / 1e9:.2f} GB "
            "are free; make room, ask for fewer tokens, or use dtype = 'int8'"
        )


def summary(manifest: Manifest, parts: Sequence[Progress]) -> dict[str, Any]:
    """Plain facts about what the writers of some parts of a cache have written."""
    rows = {split: sum(p.rows[split] for p in parts) for split in SPLITS}
    dropped = collections.Counter[str]()
    for part in parts:
        dropped.update(part.dropped)
    run = sum((p.cursor or {}).get("run", 0) for p in parts)
    return {
        "rows": rows,
        "tokens_run": run * manifest.text.get("context_size", 1),
        "dropped": dict(dropped),
        "bytes": sum(rows.values()) * manifest.row_bytes,
        "sites": {site: {"width": d, **_site_facts(parts, site)} for site, d in manifest.sites},
    }


def _site_facts(parts: Sequence[Progress], site: str) -> dict[str, float]:
    stats = SiteStats.merge(p.stats["train"][site] for p in parts)
    return {
        "mean_norm": stats.mean_norm,
        "median_norm": stats.norm_quantile(0.5),
        "max_norm": stats.max_norm,
        "norm_of_mean": float(np.linalg.norm(stats.mean)),
    }
