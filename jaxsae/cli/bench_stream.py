"""`jaxsae bench stream`: how fast rows come from a cache to the iterator and to the device."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxsae.cli._bench_shapes import Shape, shape_of
from jaxsae.cli._bench_timing import environment, spread
from jaxsae.cli._results import check_place, write_result
from jaxsae.data import Block, CacheSource, CacheWriter, Manifest, open_cache, stream
from jaxsae.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class BenchStream:
    """Measure the stream of shuffled batches, beside a plain memory copy.

    Attributes:
        cache: an existing cache; without one, random rows are written to a temporary folder first.
        shape: tiny, smol, mid, A, B or C: their d_in and rows per batch.
        d_in: width of the random rows, in place of the named shape's.
        gigabytes: of random rows.
        batch_size: rows per batch, likewise.
        batches: batches per measurement.
        repeats: measurements; median and range are reported.
        prefetch: batches in flight.
        threads: readers.
        out: where to write the result as JSON; nowhere if empty.
    """

    cache: str = ""
    shape: str = "C"
    d_in: int | None = None
    gigabytes: float = 1.0
    batch_size: int | None = None
    batches: int = 40
    repeats: int = 5
    prefetch: int = 2
    threads: int = 2
    out: str = ""

    def run(self) -> dict[str, Any]:
        """Measures and prints a table; returns what the JSON holds."""
        shape = shape_of(self.shape, self.batch_size, self.d_in, None, None)
        for name in ("batches", "prefetch", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"bench stream: {name} must be at least 1, found {getattr(self, name)}")
        spread([1.0] * self.repeats)  # refuses 0 before anything is written
        check_place(self.out)
        if self.cache:
            return self._report(open_cache(self.cache), shape)
        rows = int(self.gigabytes * 1e9) // (2 * shape.d_in) if math.isfinite(self.gigabytes) else 0
        if rows < shape.batch_size:
            raise ConfigError(
                f"bench stream: gigabytes = {self.gigabytes} hold {max(rows, 0)} rows of width {shape.d_in}; expected "
                f"at least a batch of {shape.batch_size}, {2e-9 * shape.d_in * shape.batch_size:.3g} gigabytes"
            )
        with tempfile.TemporaryDirectory(prefix="jaxsae-bench-") as folder:
            write_random(folder, shape.d_in, rows)
            return self._report(open_cache(folder), shape)

    def _report(self, cache: Any, shape: Shape) -> dict[str, Any]:
        source = CacheSource(cache, shape.batch_size)
        size = sum(a.nbytes for a in source.batch(0).values())
        result = {
            "iterator": self._rate(source, size, put=lambda batch: batch),
            "device": self._rate(source, size, put=None),
            "memcpy": self._memcpy(size),
            "unit": "GB/s",
            "rows": source.rows_per_epoch,
            "d_in": source.d_in,
            "dtype": cache.manifest.dtype,
            "batch_bytes": size,
            "environment": environment(),
            "settings": dataclasses.asdict(self),
        }
        _print(result)
        write_result(self.out, result)
        return result

    def _rate(self, source: CacheSource, size: int, put: Callable | None) -> dict[str, float]:
        """GB/s in a steady state: the first batches after a start are not counted."""
        import jax

        rates = []
        with stream(source, prefetch=self.prefetch, put=put, threads=self.threads) as batches:
            for repeat in range(self.repeats + 1):
                start = time.perf_counter()
                for _ in range(self.batches):
                    _, batch = next(batches)
                    jax.block_until_ready(batch)
                    del batch  # its memory is free for the batch after next
                if repeat:
                    rates.append(size * self.batches / (time.perf_counter() - start) / 1e9)
        return spread(rates)

    def _memcpy(self, size: int) -> dict[str, float]:
        source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
        rates = []
        for _ in range(3 * self.repeats):
            start = time.perf_counter()
            np.copyto(target, source)
            rates.append(size / (time.perf_counter() - start) / 1e9)
        return spread(rates)


def write_random(folder: str, width: int, rows: int, seed: int = 0) -> None:
    """A cache of normal rows in bfloat16; one block of them, written again and again."""
    import ml_dtypes

    block = min(rows, max(64, (64 << 20) // (2 * width)))
    random = np.random.default_rng(seed).standard_normal((block, width), np.float32).astype(ml_dtypes.bfloat16)
    writer = CacheWriter(folder, Manifest(sites=(("random", width),), seed=seed))
    for start in range(0, rows, block):
        index = np.arange(start, min(start + block, rows))
        writer.commit({"train": Block({"random": random[: len(index)]}, index, np.zeros_like(index))})
    writer.finish()


def _print(result: dict[str, Any]) -> None:
    import rich.console
    from rich.table import Table

    title = f"stream, {result['dtype']} rows of {result['d_in']}, {result['environment']['device']}"
    table = Table("where", "GB/s (median)", "lowest", "highest", title=title)
    for name in ("iterator", "device", "memcpy"):
        table.add_row(name, *(f"{result[name][k]:.2f}" for k in ("median", "min", "max")))
    rich.console.Console(stderr=True).print(table)
