"""Keeps Orbax's own account of an error off stderr; the exception itself reaches us and is told in a sentence.

Two sources: its log (pages of tracebacks for one full disk), and, when one of several parallel reads fails, the others,
which finish after their event loop was closed and report that from TensorStore's threads as "Exception ignored".
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

_lock = threading.Lock()
_users = 0
_previous: Any = None


def _keep(record: logging.LogRecord) -> bool:
    return not _users or "orbax" not in record.pathname or logging.getLogger("jaxsae").isEnabledFor(logging.DEBUG)


def _hook(unraisable: Any) -> None:
    text = str(unraisable.exc_value)
    late = isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in text
    late = late or text.startswith("Encountered error while reading array index")
    if not (late and _users):
        _previous(unraisable)


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """In force while at least one `with` is open, in any thread; `jaxsae` at log level DEBUG lets the log through."""
    global _users, _previous
    with _lock:
        _users += 1
        if _previous is None:  # stays from now on, since somebody may wrap it; without users it passes all on
            _previous, sys.unraisablehook = sys.unraisablehook, _hook
            logging.getLogger("absl").addFilter(_keep)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
