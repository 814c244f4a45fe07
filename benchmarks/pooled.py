"""What it costs to notice that a pooled connection was dropped: urllib3 asks the kernel before each
request, safesock's watcher is told by it, and also while nobody asks.

Each kind of program is a process of its own; they take turns. It is their CPU time that counts, and
the peers are in the same process, so that nobody sleeps.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import urllib3
import urllib3.connection
from urllib3.util.connection import is_connection_dropped
from urllib3.util.wait import wait_for_read

import safesock
import safesock.adapters.urllib3
from benchmarks.report import Row, compared
from benchmarks.server import serving
from benchmarks.workers import ask, working

Address = tuple[str, int]

_PAYLOAD = b"x" * 64
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
_CALLS = 100
_POOLED = 20
_SECONDS = 2.0  # After which a drop is noticed; twice the grace.
_CLOSE_WAIT = 8


def rows(quick: bool) -> Iterator[Row]:
    rounds = 10 if quick else 200
    with (
        serving("hold") as address,
        working("pooled", "socket", address) as plain,
        working("pooled", "urllib3", address) as theirs,
        working("pooled", "safesock", address) as ours,
    ):
        for what, do, against, other in (
            ("asking whether a connection was dropped, CPU", "ask", "urllib3's way", theirs),
            ("64 bytes to a peer and back, CPU", "echo", "socket.socket", plain),
            ("64 bytes to a peer and back, CPU", "echo", "socket.socket, asked before", theirs),
            ("a request to a pool of urllib3's, CPU", "request", "urllib3's own", theirs),
        ):
            found = compared(
                functools.partial(ask, ours, do), functools.partial(ask, other, do), rounds
            )
            yield found.row(what, against, each=_CALLS)
        left, other_left = ask(ours, "left"), ask(theirs, "left")
    assert (left, other_left) == (0, _POOLED)
    what = f"of {_POOLED} idle connections of a pool in CLOSE_WAIT after {_SECONDS:g} s"
    yield Row(what, left, None, "", ours=left, theirs=other_left, against="urllib3's own")


def _pool(kind: str, address: Address) -> urllib3.HTTPConnectionPool:
    makers = {
        "socket": urllib3.HTTPConnectionPool,
        "urllib3": urllib3.HTTPConnectionPool,
        "safesock": safesock.adapters.urllib3.HTTPConnectionPool,
    }
    return makers[kind](*address, maxsize=_POOLED)


def _asking(kind: str, address: Address) -> Callable[[], object]:
    """What a program asks of its connection."""
    if kind == "safesock":
        sock = safesock.create_connection(address)
        return lambda: sock.loss is not None
    connection = urllib3.connection.HTTPConnection(*address)
    connection.connect()
    return lambda: is_connection_dropped(connection)


def _echoing(kind: str) -> Callable[[], None]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        make = safesock.create_connection if kind == "safesock" else socket.create_connection
        sock = make(listener.getsockname())
        other, _ = listener.accept()

    def echo() -> None:
        sock.send(_PAYLOAD)
        other.send(other.recv(64))
        sock.recv(64)

    def after_asking() -> None:
        if wait_for_read(sock, timeout=0.0):
            raise AssertionError("nobody has dropped it")
        echo()

    return after_asking if kind == "urllib3" else echo


def _requesting(kind: str) -> Callable[[], None]:
    """By a pool whose server is in this process too, and has its turn before the answer is read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = _pool(kind, listener.getsockname())
        connection = pool._get_conn()
        connection.connect()
        other, _ = listener.accept()
    reads = connection.getresponse

    def answered() -> urllib3.BaseHTTPResponse:
        other.recv(65536)
        other.send(_ANSWER)
        return reads()

    connection.getresponse = answered  # type: ignore[method-assign]
    pool._put_conn(connection)

    def request() -> None:
        answer = pool.request("GET", "/")
        assert answer.data == b"hello"

    return request


def _left(kind: str) -> int:
    """How many of a pool's connections are in CLOSE_WAIT, a while after their server has closed
    them all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=_answer_and_close, args=(listener,))
        server.start()
        pool = _pool(kind, listener.getsockname())
        answers = [pool.request("GET", "/", preload_content=False) for _ in range(_POOLED)]
        connections: list[Any] = [answer.connection for answer in answers]
        socks = [connection.sock for connection in connections]
        for answer in answers:
            assert answer.read() == b"hello"
        server.join()
    time.sleep(_SECONDS)
    states = [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] for sock in socks]
    assert len(states) == _POOLED
    pool.close()
    return states.count(_CLOSE_WAIT)


def _answer_and_close(listener: socket.socket) -> None:
    ends = []
    for _ in range(_POOLED):
        ends.append(listener.accept()[0])
        ends[-1].recv(65536)
        ends[-1].sendall(_ANSWER)
    for end in ends:
        end.close()


def _work(kind: str, host: str, port: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    address = (host, int(port))
    calls: dict[str, Callable[[], object]] = {
        "ask": _asking(kind, address),
        "echo": _echoing(kind),
        "request": _requesting(kind),
    }
    for line in sys.stdin:
        what = line.strip()
        print(_left(kind) if what == "left" else _seconds(calls[what]), flush=True)


def _seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    for _ in range(_CALLS):
        call()
    return time.thread_time() - start


if __name__ == "__main__":
    _work(*sys.argv[1:])
