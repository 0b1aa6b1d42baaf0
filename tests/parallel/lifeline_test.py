"""Connections that tell process 0 who died, over the loopback address."""

import contextlib
import queue
import socket
import struct
import time

import pytest

from jaxsae.parallel import lifeline
from jaxsae.parallel.lifeline import Line, Listener

#: Seconds to wait for what must come, and for what must not.
SOON, NOTHING = 10.0, 0.6


@pytest.fixture
def lost():
    return queue.Queue()


@pytest.fixture
def listener(lost):
    return Listener(lost.put, grace=0.2)


def greeted(listener, index: int, *, token: str | None = None) -> socket.socket:
    """A process's end of a connection that process 0 knows, held by hand."""
    port, _, real = listener.where.partition(":")
    connection = socket.create_connection(("127.0.0.1", int(port)), SOON)
    connection.sendall(f"{token or real} {index}\n".encode())
    until(lambda: token is not None or index in listener._newest)
    return connection


def until(there) -> None:
    end = time.monotonic() + SOON
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def nothing(lost) -> bool:
    time.sleep(NOTHING)
    return lost.empty()


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_breaks_is_a_lost_process(listener, lost, reset):
    connection = greeted(listener, 3)
    assert nothing(lost), "silence is no end"
    if reset:  # close() then sends RST instead of FIN
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert lost.get(timeout=SOON) == 3
    assert nothing(lost), "told once"


def test_a_goodbye_is_no_loss(listener, lost):
    line = Line("127.0.0.1", listener.where, 1)
    until(lambda: 1 in listener._newest)
    line.goodbye()
    with contextlib.suppress(OSError):  # process 0 may have hung up first
        line._connection.shutdown(socket.SHUT_RDWR)  # as the kernel does at the end of the process
    assert nothing(lost)


def test_a_broken_connection_is_taken_up_again(listener, lost, monkeypatch):
    monkeypatch.setattr(listener, "_grace", 3)
    line = Line("127.0.0.1", listener.where, 2)
    until(lambda: 2 in listener._newest)
    before = listener._newest[2]
    before.shutdown(socket.SHUT_RDWR)  # something on the way
    until(lambda: listener._newest[2] is not before)
    with pytest.raises(queue.Empty):
        lost.get(timeout=3.5)
    line.goodbye()


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"x" * 1000])
def test_strangers_are_nobody(listener, lost, words):
    with socket.create_connection(("127.0.0.1", int(listener.where.partition(":")[0])), SOON) as stranger:
        stranger.sendall(words)
    greeted(listener, 1, token="0" * 32).close()
    assert nothing(lost)
    assert not listener._newest


def test_a_stranger_who_says_nothing_is_hung_up_on(listener, lost, monkeypatch):
    monkeypatch.setattr(lifeline, "PATIENCE", 0.2)
    with socket.create_connection(("127.0.0.1", int(listener.where.partition(":")[0])), SOON) as stranger:
        assert stranger.recv(1) == b""
    assert nothing(lost)
