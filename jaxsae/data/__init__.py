"""Activations: harvested from a host, kept in a cache, streamed to the device.

jaxsae.data.harvest(HarvestConfig(corpus="wiki", tokens=200_000), "runs/acts")
cache = jaxsae.data.open_cache("runs/acts")
with jaxsae.data.stream(CacheSource(cache, batch_size=4096)) as batches:
    for step, batch in batches: ...
"""

from jaxsae.data.cache import Cache, CacheSplit, Context, Origin, open_cache
from jaxsae.data.corpora import Corpus, open_corpus
from jaxsae.data.harvest import harvest
from jaxsae.data.harvest_config import Estimate, HarvestConfig
from jaxsae.data.host_source import HostSource
from jaxsae.data.imports import import_arrays
from jaxsae.data.manifest import Manifest
from jaxsae.data.real_rows import cells, digits
from jaxsae.data.sources import ArraySource, CacheSource, Source, local_rows, rows_on_this_process
from jaxsae.data.stats import SiteStats
from jaxsae.data.stream import Stream, put_on, stream
from jaxsae.data.testbeds import (
    Cooccurrence,
    DarkMatter,
    Hierarchy,
    Mixture,
    Superposition,
    Testbed,
    TestbedSource,
    Truth,
    VariableCount,
    testbed,
)
from jaxsae.data.writer import Block, CacheWriter

__all__ = [
    "ArraySource",
    "Block",
    "Cache",
    "CacheSource",
    "CacheSplit",
    "CacheWriter",
    "Context",
    "Cooccurrence",
    "Corpus",
    "DarkMatter",
    "Estimate",
    "HarvestConfig",
    "Hierarchy",
    "HostSource",
    "Manifest",
    "Mixture",
    "Origin",
    "SiteStats",
    "Source",
    "Stream",
    "Superposition",
    "Testbed",
    "TestbedSource",
    "Truth",
    "VariableCount",
    "cells",
    "digits",
    "harvest",
    "import_arrays",
    "local_rows",
    "open_cache",
    "open_corpus",
    "put_on",
    "rows_on_this_process",
    "stream",
    "testbed",
]
