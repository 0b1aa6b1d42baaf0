"""Connections that tell process 0 who died, over the loopback address."""

import contextlib
import errno
import queue
import socket
import struct
import threading
import time

import pytest

from jaxsae.parallel import lifeline
from jaxsae.parallel.lifeline import Line, Listener

#: Seconds to wait for what must come, and for what must not.
SOON, NOTHING = 10.0, 0.6
GRACE = 0.2


@pytest.fixture
def lost():
    return queue.Queue()


@pytest.fixture
def listener(lost):
    return Listener(lost.put, GRACE)


@pytest.fixture
def driven(monkeypatch):
    """A listener whose turns the test takes."""
    monkeypatch.setattr(Listener, "_serve", lambda self: None)
    return Listener(pytest.fail, GRACE)


def connected(listener) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(listener.where.partition(":")[0])), SOON)


def greeting(listener, index: int) -> bytes:
    return f"{listener.where.partition(':')[2]} {index}\n".encode()


def greeted(listener, index: int) -> socket.socket:
    """A process's end of a connection that process 0 knows, held by hand."""
    connection = connected(listener)
    connection.sendall(greeting(listener, index))
    until(lambda: index in listener._known.values())
    return connection


def line_to(listener, index: int) -> Line:
    line = Line("127.0.0.1", lambda: listener.where, index)
    until(lambda: index in listener._known.values())
    return line


def cut(listener) -> None:
    """Something on the way closes the one connection at both ends."""
    (connection,) = listener._known
    connection.shutdown(socket.SHUT_RDWR)


def until(there) -> None:
    end = time.monotonic() + SOON
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def nothing(lost) -> bool:
    time.sleep(NOTHING)
    return lost.empty()


def test_a_connection_that_is_closed_is_a_lost_process(listener, lost):
    connection = greeted(listener, 3)
    assert nothing(lost), "silence is no end"
    connection.close()
    assert lost.get(timeout=SOON) == 3
    assert nothing(lost), "told once"


def test_a_connection_that_breaks_is_not(listener, lost):
    connection = greeted(listener, 3)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()  # now with RST, as from a gateway that forgot the connection
    assert nothing(lost)


def test_a_goodbye_is_no_loss(listener, lost):
    line = line_to(listener, 1)
    line.goodbye()
    with contextlib.suppress(OSError, AttributeError):  # process 0 may have hung up first
        line._connection.shutdown(socket.SHUT_RDWR)  # as the kernel does at the end of the process
    assert nothing(lost)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_closed_connection_is_taken_up_again(lost, leaves):
    listener = Listener(lost.put, 3)
    line = line_to(listener, 2)
    (before,) = listener._known
    cut(listener)
    if leaves:  # its goodbye may have nothing to go by at this moment
        line.goodbye()
        until(lambda: not listener._known and not listener._away)
    else:
        until(lambda: set(listener._known) - {before})
    with pytest.raises(queue.Empty):
        lost.get(timeout=3.5)
    line.goodbye()


def test_somebody_who_closes_connections_again_and_again_loses_nobody(lost, monkeypatch):
    monkeypatch.setattr(lifeline, "WAIT_BACK", 0.1)
    listener = Listener(lost.put, 1.0)
    line = line_to(listener, 2)
    for _ in range(8):
        cut(listener)
        until(lambda: not listener._known)
        until(lambda: listener._known)
    assert lost.empty()
    line.goodbye()


def test_one_of_two_connections_of_a_process_is_enough(listener, lost):
    first, second = greeted(listener, 1), greeted(listener, 1)
    until(lambda: len(listener._known) == 2)
    first.close()
    assert nothing(lost)
    second.close()
    assert lost.get(timeout=SOON) == 1


def test_who_came_back_while_process_0_was_stopped_is_not_lost(driven):
    def turns():
        while driven._selector.select(0):
            assert driven._turn() is None

    connection = connected(driven)
    connection.sendall(greeting(driven, 1))
    turns()
    connection.close()
    turns()
    again = connected(driven)
    again.sendall(greeting(driven, 1))
    time.sleep(2 * GRACE)
    turns()
    assert not driven._away
    again.close()
    turns()
    time.sleep(2 * GRACE)
    assert driven._turn() == 1


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"x" * 1000, b" 1\n", b"0 1\n"])
def test_strangers_are_nobody(listener, lost, words):
    with connected(listener) as stranger:
        stranger.sendall(words)
    assert nothing(lost)
    assert not listener._known


def test_a_stranger_who_says_nothing_is_hung_up_on(listener, lost, monkeypatch):
    monkeypatch.setattr(lifeline, "PATIENCE", 0.2)
    with connected(listener) as stranger:
        assert stranger.recv(1) == b""
    greeted(listener, 1).close()
    assert lost.get(timeout=SOON) == 1


def test_where_nobody_can_be_let_in_nobody_is_lost(listener, lost, monkeypatch):
    connection = greeted(listener, 1)

    def exhausted(self):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(socket.socket, "accept", exhausted)
    with connected(listener):
        connection.close()
        assert nothing(lost)


def test_nothing_is_held_where_there_is_nothing_to_hold():
    for where in (lambda: "", lambda: 1 / 0):
        line = Line("127.0.0.1", where, 1)
        time.sleep(0.1)
        line.goodbye()
        assert line._connection is None


def test_a_process_that_ends_before_it_knows_process_0_never_connects(driven):
    told = threading.Event()
    line = Line("127.0.0.1", lambda: told.wait(SOON) and driven.where, 1)
    line.goodbye()
    told.set()
    assert not driven._selector.select(NOTHING)
