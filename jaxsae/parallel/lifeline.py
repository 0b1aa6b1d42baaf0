"""A connection from each process to process 0 that breaks the moment the process dies.

A killed process is noticed at once where a collective on CPUs waits for it; on TPUs, at a barrier or in a save its
heartbeats have to be missed first, and then jax aborts.  A connection breaks within a second everywhere.  It carries a
greeting, then nothing, and a goodbye where the process ends by itself.  Where it cannot be had (a firewall), or where
a machine is gone and closes nothing, the heartbeats tell as before.
"""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable

#: Seconds for a process to come back, before a broken connection means that it is gone.
GRACE = 5
#: Seconds to connect and to greet.
PATIENCE = 10
#: Seconds of silence after which a sign of life is exchanged: networks forget connections that are silent for minutes.
SILENCE = 60
_GOODBYE = b"."


class Listener:
    """Process 0's end of all connections.

    Args:
        on_lost: called with the number of a process whose connection broke, without a goodbye and for good.
        grace: seconds for it to connect again.
    """

    def __init__(self, on_lost: Callable[[int], None], grace: float = GRACE):
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=both)
        self._token = secrets.token_hex(16)  # whoever else finds the port is no process of this run
        self._newest: dict[int, socket.socket] = {}
        self._on_lost, self._grace = on_lost, grace
        _in_a_thread(self._accept)

    @property
    def where(self) -> str:
        """What the others have to know, besides the host."""
        return f"{self._server.getsockname()[1]}:{self._token}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # no file handles left, say: the heartbeats remain
                time.sleep(1)
                continue
            _in_a_thread(self._hold, connection)

    def _hold(self, connection: socket.socket) -> None:
        index = None
        try:
            with connection, connection.makefile("rb") as stream:
                connection.settimeout(PATIENCE)
                index = self._greeted(stream.readline(64))
                if index is None:
                    return
                self._newest[index] = connection
                _keep_alive(connection)
                if stream.read(1) == _GOODBYE:
                    return
        except TimeoutError:  # a network that stalls is the heartbeats' to judge
            return
        except OSError:  # reset
            pass
        time.sleep(self._grace)
        if index is not None and self._newest[index] is connection:
            self._on_lost(index)

    def _greeted(self, greeting: bytes) -> int | None:
        token, _, index = greeting.decode("ascii", "replace").strip().partition(" ")
        known = secrets.compare_digest(token.encode(), self._token.encode())
        return int(index) if known and index.isdigit() else None


class Line:
    """Another process's end: held until it says goodbye, and taken up again where it breaks.

    Args:
        host: of process 0.
        where: `Listener.where`.
        index: of this process.
    """

    def __init__(self, host: str, where: str, index: int):
        port, _, self._token = where.partition(":")
        self._address, self._index = (host, int(port)), index
        self._leaving = threading.Event()
        self._connection: socket.socket | None = None
        _in_a_thread(self._hold)

    def _hold(self) -> None:
        while not self._leaving.is_set():
            with contextlib.suppress(OSError), socket.create_connection(self._address, PATIENCE) as connection:
                connection.sendall(f"{self._token} {self._index}\n".encode())
                _keep_alive(connection)
                self._connection = connection
                connection.recv(1)  # nothing is ever sent: it returns when the connection breaks
            self._leaving.wait(1)

    def goodbye(self) -> None:
        """Before the process ends by itself."""
        self._leaving.set()
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.sendall(_GOODBYE)


def _keep_alive(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)  # the second on macOS
    if idle is not None:
        connection.setsockopt(socket.IPPROTO_TCP, idle, SILENCE)


def _in_a_thread(target: Callable[..., None], *args: object) -> None:
    threading.Thread(target=target, args=args, name="jaxsae-lifeline", daemon=True).start()
