"""The cost of a send and a recv that meet no loss."""

from __future__ import annotations

import os
import socket
import sys
import time
import types
from collections.abc import Callable
from typing import TypeVar

import safesock
from benchmarks.report import Row, compared
from benchmarks.server import serving

T = TypeVar("T")
_Timed = Callable[[T, int], float]

_PAYLOAD = b"x" * 64


def rows(quick: bool) -> list[Row]:
    return [_socketpair(quick), _round_trip(quick)]


def _socketpair(quick: bool) -> Row:
    """CPU of `send` and `recv` on a pair of AF_UNIX sockets: the calls, and little kernel."""
    rounds, calls = (20, 1_000) if quick else (400, 1_000)
    with _Pair(safesock.SafeSocket) as ours, _Pair(socket.socket) as theirs:
        run_ours, run_theirs = _copies(_send_and_recv)
        found = compared(lambda: run_ours(ours, calls), lambda: run_theirs(theirs, calls), rounds)
    bar = 1.08 if sys.version_info >= (3, 13) else 1.05
    what = "send+recv of 64 bytes on a socketpair, CPU"
    return found.row(what, "socket.socket", bar, each=calls)


def _round_trip(quick: bool) -> Row:
    """Wall clock of 64 bytes to an echo server in another process and back."""
    rounds, calls = (20, 100) if quick else (1_000, 100)
    with (
        serving("echo") as address,
        safesock.create_connection(address) as ours,
        socket.create_connection(address) as theirs,
    ):
        for sock in (ours, theirs):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        run_ours, run_theirs = _copies(_round_trips)
        found = compared(lambda: run_ours(ours, calls), lambda: run_theirs(theirs, calls), rounds)
    return found.row("round trip of 64 bytes over loopback", "socket.socket", 1.01, each=calls)


def _copies(function: _Timed[T]) -> tuple[_Timed[T], _Timed[T]]:
    """Two functions with bytecode of their own: a program has one kind of socket, and CPython
    specialises for it."""
    assert isinstance(function, types.FunctionType)
    return (
        types.FunctionType(function.__code__.replace(), function.__globals__),
        types.FunctionType(function.__code__.replace(), function.__globals__),
    )


class _Pair:
    def __init__(self, kind: type[socket.socket]) -> None:
        self.ends = [
            kind(end.family, end.type, end.proto, fileno=end.detach())
            for end in socket.socketpair()
        ]

    def __enter__(self) -> list[socket.socket]:
        self.ends[0].send(_PAYLOAD)
        assert self.ends[1].recv(64) == _PAYLOAD
        return self.ends

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            end.close()


def _send_and_recv(ends: list[socket.socket], calls: int) -> float:
    left, right = ends
    start = time.thread_time()
    for _ in range(calls):
        left.send(_PAYLOAD)
        right.recv(64)
    return time.thread_time() - start


def _round_trips(sock: socket.socket, calls: int) -> float:
    sock.send(_PAYLOAD)
    assert sock.recv(64) == _PAYLOAD
    start = time.perf_counter()
    for _ in range(calls):
        sock.send(_PAYLOAD)
        sock.recv(64)
    return time.perf_counter() - start


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(*rows(quick=False), sep="\n")
