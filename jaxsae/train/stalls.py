"""Where the time between two records went: waiting for data, waiting for the device, or spent by the host itself."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

#: Shorter intervals say nothing: one page fault would decide.
LEAST_SECONDS = 1.0
CAUSES = {
    "data": "waiting for data: the input is slower than the step (more cores, a nearer cache, larger chunks)",
    "host": "spent by the host between steps: slower than the device (logs, other jobs on its cores)",
}


class Clock:
    """Adds up the seconds of one interval by cause.

    A loop waits for data when it asks for the next batch, and for the device when it waits for an old step; what is
    left is the host's own: it dispatches, writes logs and checkpoints.  A run that does not lack anything waits for
    its device.  The first interval holds the compilation and is not judged.

    Args:
        share: least share of an interval, lost to data or to the host, that is told.
        now: the clock, in seconds.

    Example:
        >>> times = iter([0.0, 0.0, 3.0, 3.5, 4.0])
        >>> clock = Clock(0.25, now=lambda: next(times))
        >>> for batch in clock.data(["batch"]):
        ...     pass
        >>> clock.seconds["data"]
        3.5
    """

    def __init__(self, share: float, now: Callable[[], float] = time.monotonic):
        self._share, self._now = share, now
        self._start, self._warm = now(), False
        self.seconds = {"data": 0.0, "device": 0.0}

    def data(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time each is waited for is noted."""
        iterator, end = iter(batches), object()
        while True:
            start = self._now()
            batch = next(iterator, end)
            self.seconds["data"] += self._now() - start
            if batch is end:
                return
            yield batch  # type: ignore[misc]

    def device(self, wait: Callable[[], object]) -> None:
        """Calls `wait`, and notes the time it takes."""
        start = self._now()
        wait()
        self.seconds["device"] += self._now() - start

    def restart(self) -> None:
        """Begins the interval anew: after evaluations and checkpoints, which are no step's business."""
        self._start, self.seconds = self._now(), dict.fromkeys(self.seconds, 0.0)

    def judge(self) -> str:
        """Ends the interval: a sentence where much of it was lost, else nothing."""
        end = self._now()
        took, spent = end - self._start, dict(self.seconds)
        self._start, self.seconds = end, dict.fromkeys(spent, 0.0)
        was_warm, self._warm = self._warm, True
        if not was_warm or took < LEAST_SECONDS:
            return ""
        lost = {"data": spent["data"] / took, "host": 1.0 - sum(spent.values()) / took}
        cause = max(lost, key=lambda name: lost[name])
        if lost[cause] < self._share:
            return ""
        return f"{lost[cause]:.0%} of the last {took:.1f} s was {CAUSES[cause]}"
