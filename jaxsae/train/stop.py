"""Ends of a run other than the last step: a signal, or numbers that are no numbers any more."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator

from jaxsae.errors import JaxsaeError


class Interrupted(JaxsaeError):
    """A run was asked to stop, saved its state and can be continued.

    Attributes:
        status: what a command should exit with: 128 + signal, that is 143 for SIGTERM and 130 for Ctrl-C.  It is
            not 0, since the work is not done: a scheduler should start the same command again.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.status = 128 + signum


class Diverged(JaxsaeError):
    """Loss or parameters are not finite, and the data is not to blame."""


@dataclasses.dataclass
class Stop:
    """Which signal, if any, has asked for an end."""

    signum: int | None = None

    @property
    def name(self) -> str:
        return signal.Signals(self.signum).name if self.signum else ""


@contextlib.contextmanager
def stop_on_signal(enabled: bool = True) -> Iterator[Stop]:
    """Turns the first SIGTERM or Ctrl-C into a flag, to be looked at between steps; a second one acts at once.

    Signals can only be caught in the main thread; elsewhere (or with `enabled=False`) the flag is never set.
    """
    stop = Stop()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)

    def on_signal(signum: int, _: object) -> None:
        stop.signum = signum
        restore()

    for signum in before:
        signal.signal(signum, on_signal)
    try:
        yield stop
    finally:
        restore()
