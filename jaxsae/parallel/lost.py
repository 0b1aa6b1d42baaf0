"""Ends of one process that are the end of all.

A process that dies leaves the others waiting: in a collective, which fails at once on CPUs and never on TPUs, or at a
barrier.  jax aborts them when the heartbeats stop, with a stack trace.  Before that, whoever knows says so in a
sentence: a process that ends with an error leaves a note with the coordination service, which the others read in a
thread; process 0, which sees the others' connections closed, leaves such notes for a process that was killed; and a
failed collective is told for what it is.
"""

import atexit
import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterable
from multiprocessing.util import Finalize

from jaxsae.errors import JaxsaeError, PeerLost
from jaxsae.parallel import lifeline, processes

#: Exit status of a process whose peer is gone (EX_TEMPFAIL): a launcher should start the same command again.
AGAIN = PeerLost.status
#: Where the note for a process lies.
NOTE = "jaxsae/note/{}"
#: Where process 0 says how it is reached by the others' lifelines.
LIFELINE = "jaxsae/lifeline"
#: Milliseconds for the others to come to the same error; after that it is this process's alone.
TOGETHER_MS = 3000
#: Milliseconds for process 0 to say how it is reached.
LIFELINE_MS = 60_000
#: Of larger runs process 0 would need more files than some systems allow.
MOST_LINES = 256
_YEAR_MS = 365 * 24 * 3600 * 1000

#: What failed collectives and a lost coordinator look like, under all the types that jax raises them as.
_SIGNS = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|socket closed|coordination.?service|barrier|heartbeat|UNAVAILABLE"
    r"|DEADLINE_EXCEEDED|ABORTED|CANCELLED|preempted",
    re.IGNORECASE,
)

_ending, _ended = threading.Event(), threading.Event()


def joined() -> bool:
    """Whether this process is one of several (asked without starting jax's devices where it is not)."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and processes.several()


def lost(error: BaseException | None) -> bool:
    """Whether an error means that another process is gone."""
    if error is None or not joined():
        return False
    from_jax = isinstance(error, (ValueError, RuntimeError)) and not isinstance(error, JaxsaeError)
    return isinstance(error, PeerLost) or (from_jax and bool(_SIGNS.search(str(error))))


def peer_lost(error: BaseException) -> PeerLost:
    """The error a user reads."""
    if isinstance(error, PeerLost):
        return error
    why = " ".join(str(error).split())[:160]
    return PeerLost(
        f"another process of this run ended or cannot be reached ({why}); what was saved is kept, and the same command "
        "on all processes goes on from there"
    )


def watch() -> None:
    """Starts the threads that wait for news of the other processes, until this one ends."""
    line, process = _lifeline(), os.getpid()
    if processes.index():
        threading.Thread(target=_watch_first, name="jaxsae-first", daemon=True).start()
    thread = threading.Thread(target=_read_note, name="jaxsae-note", daemon=True)

    def stop() -> None:  # runs before jax leaves the others
        if _ended.is_set() or os.getpid() != process:  # the child of a fork is not the one that ends
            return
        _ended.set()
        _ending.set()
        if line is not None:
            line.goodbye()
        with contextlib.suppress(Exception):
            processes.client().key_value_set(NOTE.format(processes.index()), "")
            thread.join(5)

    thread.start()
    atexit.register(stop)
    Finalize(None, stop, exitpriority=100)  # a forked process of multiprocessing ends without what atexit knows


def _lifeline() -> lifeline.Line | None:
    """This process's end of the connections with process 0; without them the heartbeats tell."""
    if processes.index():
        wait_for = lambda: processes.client().blocking_key_value_get(LIFELINE, LIFELINE_MS)  # noqa: E731
        return lifeline.Line(_first_host()[0], wait_for, processes.index())
    where = ""
    with contextlib.suppress(OSError):
        if processes.count() <= MOST_LINES:
            where = lifeline.Listener(_other_gone, lifeline.GRACE).where
    with contextlib.suppress(Exception):
        processes.client().key_value_set(LIFELINE, where)
    return None


def _other_gone(index: int) -> None:
    if not _ending.is_set() and joined():
        note = f"process {index} of {processes.count()} ended or cannot be reached"
        _leave_notes(note, range(1, processes.count()))
        _leave_for(note)


def _first_host() -> tuple[str, int]:
    host, _, port = processes.address().rpartition(":")
    return host.strip("[]"), int(port)


def _read_note() -> None:
    try:
        note = processes.client().blocking_key_value_get(NOTE.format(processes.index()), _YEAR_MS)
    except Exception:  # there is no more service: _watch_first tells
        return
    _leave_for(note)


def _watch_first() -> None:
    """Holds a connection to process 0's port: it breaks the moment the process dies, before jax gets to abort.

    Nothing is ever sent, so the server closes it now and then; it is lost only if it cannot be had again.
    """
    address = _first_host()
    while not _ending.is_set():
        began = time.monotonic()
        try:
            with socket.create_connection(address, timeout=10) as connection:
                connection.settimeout(None)
                while connection.recv(1024):
                    pass
        except (TimeoutError, ConnectionResetError):  # a network that stalls is the heartbeat's to judge
            pass
        except OSError as e:
            return _leave_for(f"process 0 ended or cannot be reached ({e.strerror or e})")
        if time.monotonic() - began < 1:  # somebody between closes it each time
            _ending.wait(1)


def _leave_for(note: str) -> None:
    if note and not _ending.is_set() and joined():
        _print(f"jaxsae: error: {note}; the same command on all processes goes on from what was saved")
        if not processes.index():
            time.sleep(1)  # the others read their notes through this process
        _leave(AGAIN)


def end(status: int, message: str = "") -> int:
    """Ends a command on one of several processes; with a single one it only prints.

    If all processes come here with the same message, process 0 prints it and they part in peace.  Else the message is
    this process's own: it is printed, the others are told, and the process is gone at once, since jax would wait for
    them at the exit.

    Returns:
        the status, for `sys.exit`.
    """
    if not joined():
        _print(message)
        return status
    _ending.set()
    if not message:
        return status
    client, own = processes.client(), f"process {processes.index()} of {processes.count()}"
    together = False
    if status == AGAIN:  # at once: jax may be about to abort
        _leave_with(status, message, own)
    with contextlib.suppress(Exception):
        client.key_value_set(f"jaxsae/end/{processes.index()}", message)
        client.wait_at_barrier("jaxsae/end", TOGETHER_MS)
        first = client.blocking_key_value_get("jaxsae/end/0", TOGETHER_MS)
        together = True
    if together:
        if processes.index() == 0 or message != first:
            _print(message if processes.index() == 0 else f"{message} ({own})")
        return status
    _leave_with(status, message, own)
    return status


def _leave_with(status: int, message: str, own: str) -> None:
    """Says it here, leaves a note for everybody else, and ends."""
    _print(f"{message} ({own})")
    note = f"{own} ended: {message.removeprefix('jaxsae: error: ')}"
    _leave_notes(note, reversed(range(processes.count())))
    if not processes.index():
        time.sleep(1)
    _leave(status)


def _leave_notes(note: str, of: Iterable[int]) -> None:
    for i in of:
        with contextlib.suppress(Exception):  # it may have one already
            processes.client().key_value_set(NOTE.format(i), note)


def _print(message: str) -> None:
    if message:
        print(message, file=sys.stderr, flush=True)


def _leave(status: int) -> None:
    """At once, past everything that would wait for other processes."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)
