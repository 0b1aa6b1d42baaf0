"""A connection from each process to process 0, whose end tells that the process died.

A killed process is noticed at once where a collective on CPUs waits for it.  Elsewhere (on TPUs, at a barrier, in a
save) its heartbeats would have to be missed, and then jax aborts.  But its system closes its connections: that is seen
here, if the process does not come back.  The connection carries a greeting, then nothing, and a goodbye where the
process ends by itself.  Only a connection that was closed counts, never one that broke: what a network does, and a
machine that is gone and closes nothing, is left to the heartbeats.
"""

import contextlib
import errno
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

#: Seconds for a process to come back before its closed connection means that it is gone; it tries several times.
GRACE = 15
#: Seconds to connect, and to greet.
PATIENCE = 3
#: Longest wait between two tries: to come back, and where nobody ever answered.
WAIT_BACK, WAIT_UNHEARD = 4, 60
#: Seconds of silence after which a sign of life is exchanged: networks forget connections that are silent for minutes.
SILENCE = 60
_GOODBYE = b"."
#: Of `accept`, where there is nothing left to hold a connection with.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Process 0's end of all connections, served by one thread.

    Args:
        on_lost: called once, with the number of a process that closed its connection without a goodbye and for good.
        grace: seconds for it to connect again.

    Raises:
        OSError: no port can be had.
    """

    def __init__(self, on_lost: Callable[[int], None], grace: float):
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=both)
        self._token = secrets.token_hex(16)  # whoever else finds the port is no process of this run
        self._on_lost, self._grace = on_lost, grace
        self._known: dict[socket.socket, int] = {}  # process of a connection
        self._strangers: dict[socket.socket, float] = {}  # until when a connection may greet
        self._away: dict[int, float] = {}  # until when a process may come back
        self._selector = selectors.DefaultSelector()
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ)
        threading.Thread(target=self._serve, name="jaxsae-lifeline", daemon=True).start()

    @property
    def where(self) -> str:
        """What the others have to know, besides the host."""
        return f"{self._server.getsockname()[1]}:{self._token}"

    def _serve(self) -> None:
        lost = None
        while lost is None:
            try:
                lost = self._turn()
            except OSError:  # who comes back could not be let in: from here on only the heartbeats tell
                return
        self._on_lost(lost)

    def _turn(self) -> int | None:
        """Serves whoever is ready; only where nobody is, so that no news is left unread, is a process lost."""
        limits = [*self._strangers.values(), *self._away.values()]
        ready = self._selector.select(max(0.0, min(limits) - time.monotonic()) if limits else None)
        for key, _ in ready:
            if key.fileobj is self._server:
                self._accept()
            elif isinstance(key.fileobj, socket.socket):
                self._read(key.fileobj)
        if ready:
            return None
        for stranger in _over(self._strangers):
            self._forget(stranger)
        return next(iter(_over(self._away)), None)

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError as e:
            if e.errno in _EXHAUSTED:
                raise
            return  # it went away again
        connection.setblocking(False)
        self._strangers[connection] = time.monotonic() + PATIENCE
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(64)
        except BlockingIOError:
            return
        except OSError:  # it broke
            return self._forget(connection)
        index = self._known.get(connection)
        if index is None:
            self._greeted(connection, data)
        elif data:
            self._part(connection)
        else:
            self._forget(connection)
            if index not in self._known.values():
                self._away[index] = time.monotonic() + self._grace

    def _greeted(self, connection: socket.socket, data: bytes) -> None:
        greeting, _, rest = data.partition(b"\n")
        token, _, index = greeting.partition(b" ")
        if not secrets.compare_digest(token, self._token.encode()) or not index.isdigit():
            return self._forget(connection)
        self._away.pop(int(index), None)
        if rest:
            return self._part(connection)
        del self._strangers[connection]
        self._known[connection] = int(index)
        _keep_alive(connection)

    def _part(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.send(_GOODBYE)  # so that the process knows it was heard
        self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        self._known.pop(connection, None)
        self._strangers.pop(connection, None)
        self._selector.unregister(connection)
        connection.close()


def _over(limits: dict[Any, float]) -> list[Any]:
    return [who for who, limit in limits.items() if limit <= time.monotonic()]


class Line:
    """Another process's end: held until it says goodbye, and taken up again where it ends before.

    Args:
        host: of process 0.
        where: waits for `Listener.where`; nothing is held where that is empty or cannot be had.
        index: of this process.
    """

    def __init__(self, host: str, where: Callable[[], str], index: int):
        self._host, self._where, self._index = host, where, index
        self._changing, self._leaving = threading.Lock(), threading.Event()
        self._connection: socket.socket | None = None
        os.register_at_fork(after_in_child=self._let_go)
        threading.Thread(target=self._hold, name="jaxsae-lifeline", daemon=True).start()

    def _hold(self) -> None:
        where = ""
        with contextlib.suppress(Exception):
            where = self._where()
        port, _, token = where.partition(":")
        wait, greeted, said = 0.0, False, False
        while port and not said and (greeted or not self._leaving.is_set()):
            if self._leaving.wait(wait):
                time.sleep(0.2)
            began, wait = time.monotonic(), min(WAIT_BACK if greeted else WAIT_UNHEARD, 2 * wait or 0.5)
            with contextlib.suppress(OSError), socket.create_connection((self._host, int(port)), PATIENCE) as line:
                _keep_alive(line)
                line.settimeout(None)
                with self._changing:
                    line.sendall(f"{token} {self._index}\n".encode() + self._leaving.is_set() * _GOODBYE)
                    self._connection, greeted = line, True
                said = line.recv(1) == _GOODBYE  # it returns when the goodbye was heard, or the connection ends
            self._connection = None
            if greeted and time.monotonic() - began > 2 * PATIENCE:  # it was held
                wait = 0.0

    def goodbye(self) -> None:
        """Before the process ends by itself; while the connection is being taken up again, its thread says it."""
        self._leaving.set()
        with self._changing, contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.sendall(_GOODBYE)

    def _let_go(self) -> None:
        """In the child of a fork, whose copy would hold the connection when this process is dead."""
        if self._connection is not None:
            self._connection.close()


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)  # the second on macOS
    if idle is not None:
        connection.setsockopt(socket.IPPROTO_TCP, idle, SILENCE)
