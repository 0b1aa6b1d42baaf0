"""What the processes of a run say to each other outside of compiled programs.

Small texts go through the coordination service that jax starts on process 0: it needs no device, and a call that waits
for a process that is gone ends with an error.  Every function here has to be called by all processes, in one order;
with a single process each is the obvious nothing.  This is the one file that touches jax's private client.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from jaxsae.errors import ConfigError, JaxsaeError

T = TypeVar("T")
#: Milliseconds for the others to reach the same point: one of them may be writing a large file.  A process that died
#: ends the waiting much sooner.
PATIENCE_MS = 2 * 3600 * 1000

_turns = itertools.count()


def count() -> int:
    """How many processes this run has."""
    return _state().num_processes if jax.distributed.is_initialized() else jax.process_count()


def index() -> int:
    """The number of this process, from 0."""
    return _state().process_id if jax.distributed.is_initialized() else jax.process_index()


def _state() -> Any:
    """What jax knows of the processes without starting their devices, which may wait for a process that is gone."""
    from jax._src import distributed

    return distributed.global_state


def several() -> bool:
    """Whether there are more processes than this one."""
    return count() > 1


def first() -> bool:
    """Whether this is process 0, which alone tells and writes."""
    return index() == 0


def client() -> Any:
    """jax's connection to the coordination service.

    Raises:
        ConfigError: there is none.
    """
    if _state().client is None:
        raise ConfigError("a run of several processes must begin with jaxsae.parallel.start()")
    return _state().client


def address() -> str:
    """host:port of the coordination service, on process 0."""
    return str(_state().coordinator_address)


def exchange(name: str, text: str, place: str | None = None) -> list[str]:
    """The texts of all processes, in the order of their numbers.

    Args:
        name: what it is about.
        text: of this process.
        place: for a thread beside the main one, whose words have no turn among those of the main one: a name that all
            processes know and that is used once.

    Example:
        >>> exchange("name", "text")
        ['text']
    """
    if not several():
        return [text]
    place = f"jaxsae/{next(_turns)}/{name}" if place is None else f"jaxsae/{place}"
    client().key_value_set(f"{place}/{index()}", text)
    return [client().blocking_key_value_get(f"{place}/{i}", PATIENCE_MS) for i in range(count())]


def barrier(name: str) -> None:
    """Returns when all processes have come here."""
    if several():
        client().wait_at_barrier(f"jaxsae/{next(_turns)}/{name}", PATIENCE_MS)


def require_alike(devices: Sequence[Any]) -> None:
    """Refuses processes with unlike numbers of devices: jax gathers from none such, nor does Orbax.

    Raises:
        ConfigError: two such processes, with their numbers.
    """
    each = Counter(d.process_index for d in devices)
    few, many = min(each, key=lambda i: each[i]), max(each, key=lambda i: each[i])
    if each[few] < each[many]:
        raise ConfigError(
            f"all processes need the same number of devices, but process {few} has {each[few]} and process {many} has "
            f"{each[many]}; look for a device that is missing, or leave the others out"
        )


def on_first(what: str, action: Callable[[], T]) -> T | None:
    """Lets process 0 do something that only one may do; all wait until it is done.

    Returns:
        what `action` returned, on process 0; None on the others.

    Raises:
        JaxsaeError: `action` raised one; the others tell it too.

    Example:
        >>> on_first("an example", lambda: 3)
        3
    """
    if not several():
        return action()
    result, error = None, None
    if first():
        try:
            result = action()
        except JaxsaeError as e:
            error = e
    said = exchange(what, "" if error is None else str(error))[0]
    if error is not None:
        raise error
    if said:
        raise JaxsaeError(said)
    return result


def agree_on(name: str, problem: Exception | None) -> str:
    """The first problem that any process has, as text; "" if none has one.

    Example:
        >>> agree_on("an example", ValueError("too small"))
        'too small'
    """
    if not several():
        return "" if problem is None else str(problem) or type(problem).__name__
    said = exchange(name, "" if problem is None else str(problem) or type(problem).__name__)
    return next((f"{text} (process {i})" for i, text in enumerate(said) if text), "")


def gather(tree: T) -> list[T]:
    """A tree of small host arrays from every process, bit for bit, in the order of their numbers.

    Example:
        >>> [int(part["n"]) for part in gather({"n": np.int64(3)})]
        [3]
    """
    if not several():
        return [tree]
    require_alike(jax.devices())
    from jax.experimental.multihost_utils import process_allgather

    arrays = jax.tree.map(np.asarray, tree)
    raw = jax.tree.map(lambda a: np.frombuffer(a.tobytes(), np.uint8), arrays)  # jax would narrow 64 bits
    found = process_allgather(raw, tiled=False)
    return [
        jax.tree.map(lambda a, r, i=i: np.frombuffer(r[i].tobytes(), a.dtype).reshape(a.shape), arrays, found)
        for i in range(count())
    ]
