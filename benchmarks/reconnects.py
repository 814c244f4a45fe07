"""Reconnects per second from one fixed local port, to a server that accepts and closes."""

from __future__ import annotations

import errno
import os
import socket
import time

import safesock
from benchmarks.report import Row, compared
from benchmarks.server import serving


def rows(quick: bool) -> list[Row]:
    rounds, times = (10, 50) if quick else (200, 200)
    with serving("drop") as address:
        local = ("127.0.0.1", free_port())
        with safesock.Connector(address, local_address=local) as connector:
            found = compared(
                lambda: come_back(connector, times), lambda: _bare(address, local, times), rounds
            )
    what = "reconnects per second on one fixed port"
    return [found.rates(what, "the bare loop of system calls", 0.80, each=times)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def come_back(connector: safesock.Connector, times: int) -> float:
    """The seconds that it takes."""
    start = time.perf_counter()
    for _ in range(times):
        sock = connector.connect()
        data = sock.recv(1)  # It closes, too.
        assert data == b""
        connector.confirm()
    return time.perf_counter() - start


def _bare(address: tuple[str, int], local: tuple[str, int], times: int) -> float:
    """The system calls, and nothing else; they end the connection properly as well."""
    start = time.perf_counter()
    for _ in range(times):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(local)
        # The server may be at its close(2) still: until it has taken our FIN, the port is held.
        while (number := sock.connect_ex(address)) == errno.EADDRNOTAVAIL:
            os.sched_yield()
        assert number == 0
        data = sock.recv(1)
        assert data == b""
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(*rows(quick=False), sep="\n")
