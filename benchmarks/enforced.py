"""What `enforce` costs a plain socket: two processes, one of them under it, take turns.

Also what connecting and closing costs more, and one sweep of a thousand connections.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import safesock
from benchmarks.report import Row, compared
from benchmarks.server import serving
from benchmarks.workers import ask, working
from safesock import _sweep

_PAYLOAD = b"x" * 64
_CALLS = 1_000
_CONNECTS = 50
_SWEPT = 1_000


def rows(quick: bool) -> list[Row]:
    return [*_hot_path(quick), _swept(quick)]


def _hot_path(quick: bool) -> Iterator[Row]:
    rounds = 20 if quick else 400
    with (
        serving("echo") as address,
        working("enforced", "plain", address) as theirs,
        working("enforced", "threaded", address) as threaded,
        working("enforced", "enforced", address) as ours,
    ):
        for what, bar, worker in (
            ("plain send+recv of 64 bytes under enforce, CPU", 1.01, ours),
            # The kernel counts references to descriptors as soon as there are two threads.
            ("plain send+recv of 64 bytes beside a thread that sleeps, CPU", None, threaded),
        ):
            both = compared(
                functools.partial(ask, worker, "pair"), lambda: ask(theirs, "pair"), rounds
            )
            yield both.row(what, "socket.socket", bar, each=_CALLS)
        both = compared(lambda: ask(ours, "connect"), lambda: ask(theirs, "connect"), rounds // 10)
        yield both.row("plain connect and close under enforce", "socket.socket", each=_CONNECTS)


def _swept(quick: bool) -> Row:
    """CPU of one look through the descriptors, with a thousand connections that are alive."""
    with serving("hold") as address, contextlib.ExitStack() as stack:
        for _ in range(_SWEPT):
            stack.enter_context(socket.create_connection(address))
        figures = []
        for _ in range(5 if quick else 50):
            start = time.thread_time()
            assert not list(_sweep.stale(0.0))
            figures.append(time.thread_time() - start)
    middle = sorted(figures)[len(figures) // 2]
    return Row(f"one sweep of {_SWEPT:,} sockets, CPU", middle * 1000, 10, "ms")


def _work(kind: str, host: str, port: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    address = (host, int(port))
    enforcement = safesock.enforce() if kind == "enforced" else None
    if kind == "threaded":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    # An outbound connection, and a pair: the class of both is the same.
    with socket.create_connection(address) as sock:
        ends = socket.socketpair()
        assert enforcement is None or enforcement.report().seen == 1
        for line in sys.stdin:
            call = {"pair": lambda: _send_and_recv(ends), "connect": lambda: _connect(address)}
            print(call[line.strip()](), flush=True)
        assert sock.fileno() >= 0


def _send_and_recv(ends: tuple[socket.socket, socket.socket]) -> float:
    left, right = ends
    start = time.thread_time()
    for _ in range(_CALLS):
        left.send(_PAYLOAD)
        right.recv(64)
    return time.thread_time() - start


def _connect(address: tuple[str, int]) -> float:
    start = time.perf_counter()
    for _ in range(_CONNECTS):
        socket.create_connection(address).close()
    return time.perf_counter() - start


if __name__ == "__main__":
    _work(*sys.argv[1:])
