"""Which parts of a cache each process of a run harvests.

A cache of several parts has one writer for each; part p holds every n-th document from the p-th on.  The number of
parts is fixed when a cache is begun, so that it can be gone on with by any number of processes.
"""

import os
from dataclasses import replace
from typing import Any

from jaxsae import parallel
from jaxsae.data.corpora import Corpus
from jaxsae.data.harvest_config import HarvestConfig
from jaxsae.data.manifest import read_manifest
from jaxsae.data.store import Folder
from jaxsae.data.writer import claim
from jaxsae.errors import ConfigError


def shares(
    config: HarvestConfig, out: str | os.PathLike, documents: int, index: int = 0, count: int = 1
) -> list[HarvestConfig]:
    """The configurations of the parts that one process harvests.

    Args:
        config: of the whole harvest; with `parts` above 1 and a single process, of that one part as it says.
        out: folder or URL of the cache; a cache that is there already keeps its number of parts.
        documents: how many there are in the corpus.
        index: number of this process.
        count: of how many.

    Raises:
        ConfigError: a part is asked for although the processes share them out, or there is less text than parts.

    Example:
        >>> [c.part for c in shares(HarvestConfig(parts=5), "/nowhere", 99, index=1, count=2)]
        [1, 3]
    """
    if count == 1 and config.parts > 1:
        return [config]
    if config.part:
        raise ConfigError(
            f"part = {config.part}, but {count} processes share out the parts by themselves; leave it out"
        )
    parts = config.parts if config.parts > 1 else _begun_with(out) or count
    windows = None if config.tokens is None else -(-config.tokens // config.context_size)
    for what, there in (("documents", documents), ("windows of tokens", windows)):
        if there is not None and there < parts:
            raise ConfigError(f"{there} {what} cannot be shared out to {parts} parts; start fewer processes")
    return [replace(config, part=part, parts=parts) for part in range(index, parts, count)]


def _begun_with(out: str | os.PathLike) -> int | None:
    folder = Folder(out)
    return read_manifest(folder).parts if folder.read_json("manifest.json") is not None else None


def claim_together(config: HarvestConfig | None, out: str | os.PathLike, host: Any, corpus: Corpus) -> None:
    """Process 0, which always has a part, writes the cache's manifest; the others wait for it.

    Raises:
        DataError: another cache, or other files, are in the folder.
    """

    def first() -> None:
        if config is not None:
            claim(out, config.manifest(host, corpus))

    parallel.on_first("manifest", first)
