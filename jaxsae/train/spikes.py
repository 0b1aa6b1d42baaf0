"""Losses that jump: told, or a reason to stop.  Losses that are no numbers always stop a run."""

import math
import statistics
from collections import deque

#: Records a loss is compared with, and how many there have to be.
MEMORY, LEAST = 20, 5


class Spikes:
    """Compares each recorded loss with the median of the ones before it.

    A spike does not enter the median's memory, so that a run which stays up there keeps being told of.

    Args:
        factor: a loss above so many times the median is a spike.

    Example:
        >>> spikes = Spikes(factor=3.0)
        >>> [spikes.look(loss) for loss in (2.0, 2.1, 1.9, 2.0, 2.0, 2.2)][-1], spikes.look(9.0)
        ('', 'the loss is 9, 4.5 times the median 2 of the last records')
    """

    def __init__(self, factor: float):
        self._factor = factor
        self._seen: deque[float] = deque(maxlen=MEMORY)

    def look(self, loss: float) -> str:
        """A sentence if this loss is a spike, else nothing."""
        if not math.isfinite(loss):
            return ""
        usual = statistics.median(self._seen) if len(self._seen) >= LEAST else math.inf
        if usual > 0 and loss > self._factor * usual:
            return f"the loss is {loss:.3g}, {loss / usual:.2g} times the median {usual:.3g} of the last records"
        self._seen.append(loss)
        return ""
