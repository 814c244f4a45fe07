"""Coming back again and again to a server that accepts and closes: `Connector`, the synchronous one
and asyncio's, beside Twisted's `ClientService`, and asyncio's streams in a loop.

From any port, and from one fixed port. None of them waits before it dials, and each has read the
end of one connection before it makes the next. Each is a process of its own; they take turns.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import itertools
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import tenacity

import safesock
import safesock.asyncio
from benchmarks.reconnects import come_back, free_port
from benchmarks.report import Row, compared
from benchmarks.server import serving
from benchmarks.workers import ask, working

Address = tuple[str, int]
# The seconds that so many connections take, one after the other, from this local port or any.
Dialler = Callable[[Address, int | None], Awaitable[float]]

_TIMES = 50
_PORTS = ("any port", "one fixed port")
_RECONNECT = safesock.Reconnect(attempts=1_000, wait=tenacity.wait_none())


def rows(quick: bool) -> Iterator[Row]:
    rounds = 3 if quick else 100
    with (
        serving("drop") as address,
        working("redialled", "connector", address) as connector,
        working("redialled", "coroutine", address) as coroutine,
        working("redialled", "twisted", address) as twisted,
        working("redialled", "streams", address) as streams,
    ):
        for port in _PORTS:
            for who, ours, against, theirs in (
                ("Connector", connector, "Twisted's ClientService", twisted),
                ("asyncio's Connector", coroutine, "Twisted's ClientService", twisted),
                ("asyncio's Connector", coroutine, "asyncio's streams in a loop", streams),
            ):
                found = compared(
                    functools.partial(ask, ours, port), functools.partial(ask, theirs, port), rounds
                )
                yield found.rates(f"reconnects per second from {port}, {who}", against, each=_TIMES)


def _connector(address: Address, port: int | None) -> float:
    with safesock.Connector(address, local_address=_local(port), reconnect=_RECONNECT) as connector:
        return come_back(connector, _TIMES)


async def _coroutine(address: Address, port: int | None) -> float:
    async with safesock.asyncio.Connector(
        address, local_address=_local(port), reconnect=_RECONNECT
    ) as connector:
        start = time.perf_counter()
        for _ in range(_TIMES):
            reader, writer = await connector.connect()
            data = await reader.read(1)
            assert data == b""
            assert writer.transport.loss is not None
            connector.confirm()
        return time.perf_counter() - start


async def _streams(address: Address, port: int | None) -> float:
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    made = 0
    while made < _TIMES:
        sock = socket.socket()
        sock.setblocking(False)
        if port is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
        try:
            await loop.sock_connect(sock, address)
        except OSError:  # The server may be at its close(2) still, which holds the port.
            sock.close()
            continue
        reader, writer = await asyncio.open_connection(sock=sock)
        data = await reader.read(1)
        assert data == b""
        writer.close()
        await writer.wait_closed()
        made += 1
    return time.perf_counter() - start


def _local(port: int | None) -> Address | None:
    return None if port is None else ("127.0.0.1", port)


def _work_by_twisted(address: Address, fixed: int) -> None:
    """Its reactor runs once in a process: it reads what is asked as well."""
    from twisted.application.internet import ClientService
    from twisted.internet import stdio
    from twisted.internet.endpoints import TCP4ClientEndpoint
    from twisted.internet.error import ConnectionDone
    from twisted.internet.protocol import Factory, Protocol, connectionDone
    from twisted.protocols.basic import LineReceiver
    from twisted.python.failure import Failure

    reactor: Any = importlib.import_module("twisted.internet.reactor")

    class Lost(Protocol):
        def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
            assert isinstance(self.factory, Lines)
            self.factory.lost(reason)

    class Lines(Factory):
        protocol = Lost
        lost: Callable[[Failure], None]

    class Asked(LineReceiver):
        delimiter = b"\n"

        def lineReceived(self, line: bytes) -> None:  # noqa: N802
            local = _local(None if line.decode() == _PORTS[0] else fixed)
            endpoint: Any = TCP4ClientEndpoint(reactor, *address, bindAddress=local)
            factory: Any = Lines()
            service: Any = ClientService(endpoint, factory, retryPolicy=lambda _: 0.0)
            transport: Any = self.transport
            numbers = itertools.count(1)
            start = time.perf_counter()

            def lost(reason: Failure) -> None:
                if reason.type is not ConnectionDone:
                    reactor.stop()  # And whoever asks gets no answer.
                elif next(numbers) == _TIMES:
                    taken = time.perf_counter() - start
                    service.stopService().addBoth(lambda _: transport.write(b"%r\n" % taken))

            factory.lost = lost
            service.startService()

        def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002, N802
            reactor.stop()

    from_stdin: Any = stdio.StandardIO
    from_stdin(Asked())
    reactor.run()


def _work(kind: str, host: str, port: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    address, fixed = (host, int(port)), free_port()
    if kind == "twisted":
        _work_by_twisted(address, fixed)
        return
    for line in sys.stdin:
        local = None if line.strip() == _PORTS[0] else fixed
        if kind == "connector":
            taken = _connector(address, local)
        else:
            work: Dialler = {"coroutine": _coroutine, "streams": _streams}[kind]
            taken = asyncio.run(work(address, local))  # type: ignore[arg-type]
        print(taken, flush=True)


if __name__ == "__main__":
    _work(*sys.argv[1:])
