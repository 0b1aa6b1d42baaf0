"""From a source to the device: whole batches, read and transferred ahead of the step that needs them."""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from jaxsae.data.sources import Source
from jaxsae.errors import ConfigError

Put = Callable[[Mapping[str, np.ndarray]], dict[str, Any]]


def stream(source: Source, start: int = 0, prefetch: int = 2, put: Put | None = None, threads: int = 2) -> "Stream":
    """An endless iterator of (step, batch on the device) that works ahead in other threads.

    Args:
        source: where batches come from.
        start: the first step; a resumed run passes the step it stands at.
        prefetch: batches in flight or waiting.
        put: moves a host batch to the devices; by default to the default device.  For sharded batches see `put_on`.
        threads: readers.  Two keep the next read going while one batch is transferred.

    Returns:
        A `Stream`: use it as a context manager, or call `close()`, which joins its threads.

    Raises:
        ConfigError: `prefetch` or `threads` below 1, or a negative start.

    Example:
        >>> from jaxsae.data.sources import ArraySource
        >>> source = ArraySource(np.ones((8, 2), np.float32), batch_size=4)
        >>> with stream(source) as batches:
        ...     step, batch = next(batches)
        >>> step, batch["x"].shape
        (0, (4, 2))
    """
    if prefetch < 1 or threads < 1 or start < 0:
        raise ConfigError(f"expected prefetch >= 1, threads >= 1, start >= 0; found {prefetch}, {threads}, {start}")
    return Stream(source, start, prefetch, put or _put_on_default(), min(threads, prefetch))


def put_on(sharding: Sharding, batch_size: int) -> Put:
    """A `put` that assembles each array of a global batch from the rows that the processes hold.

    Args:
        sharding: of a batch; only its first axis may be split.
        batch_size: rows of the global batch.  This process's share is `rows_on_this_process(sharding, batch_size)`.
    """

    def put(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        shapes = {k: (batch_size, *v.shape[1:]) for k, v in batch.items()}
        return {k: jax.make_array_from_process_local_data(sharding, v, shapes[k]) for k, v in batch.items()}

    return put


def _put_on_default() -> Put:
    device = next(iter(jax.numpy.zeros(()).devices()))  # asked here: a default set by a context is not seen by threads
    return lambda batch: {k: jax.device_put(v, device) for k, v in batch.items()}


class Stream:
    """See `stream`.  Iterating raises what reading a batch raised."""

    def __init__(self, source: Source, start: int, prefetch: int, put: Put, threads: int):
        import grain

        self._steps = _Steps(source, start, put)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        self._iterator = iter(grain.MapDataset.source(self._steps).to_iter_dataset(options))

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return self

    def __next__(self) -> tuple[int, dict[str, Any]]:
        if self._steps.closed:
            raise StopIteration
        return next(self._iterator)

    def close(self) -> None:
        """Stops reading and joins the threads; safe to call twice."""
        if self._steps.closed:
            return
        self._steps.closed = True
        self._iterator.close()
        for thread in tuple(self._steps.threads):
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_iterator"):
            self.close()


class _Steps:
    """What grain sees: an endless sequence whose item i is the whole batch of step start + i."""

    def __init__(self, source: Source, start: int, put: Put):
        self._source, self._start, self._put = source, start, put
        self.closed = False
        self.threads: set[threading.Thread] = set()

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> tuple[int, dict[str, Any]]:
        self.threads.add(threading.current_thread())
        step = self._start + int(index)
        if self.closed:  # asked for before the end and no longer wanted
            return step, {}
        return step, self._put(self._source.batch(step))
