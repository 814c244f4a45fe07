"""One attempt to connect, without blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
import time

from safesock._attempt import Failures, PortTurns, hurry
from safesock.asyncio._connect import addresses, connect
from safesock.asyncio._create import start
from safesock.asyncio._streams import unconnected, writer_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any, TypeAlias

    from safesock._destination import Destination
    from safesock._resolve import Resolved
    from safesock._socket import SafeSocket
    from safesock.asyncio._streams import SafeStreamReader, SafeStreamWriter

    Streams: TypeAlias = tuple[SafeStreamReader, SafeStreamWriter]


@contextlib.asynccontextmanager
async def within(seconds: float, message: str) -> AsyncIterator[None]:
    """Raises TimeoutError with this message when they are over."""
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError:
        if scope.expired():
            raise TimeoutError(message) from None
        raise


async def dial(to: Destination, until: float, limit: int) -> Streams:
    """A connection, made before *until* (of time.monotonic). Raises what the last address gave, or
    a certificate that did not verify, with notes of the others."""
    failures = Failures(to.address[0])
    for made, sockaddr in to.numeric or await _resolve(to, until):
        with failures.at(sockaddr):
            return await _dial_one(to, made, sockaddr, until, limit)
    raise failures.told()


async def _resolve(to: Destination, until: float) -> list[Resolved]:
    late = f"{to.address[0]!r} was not resolved before the deadline"
    async with within(until - time.monotonic(), late):
        return await addresses(to.address)


async def _dial_one(
    to: Destination, made: tuple[int, int, int], sockaddr: Any, until: float, limit: int
) -> Streams:
    sock = await _connect(to, made, sockaddr, until)
    reader, protocol = unconnected(limit)
    tls = (to.ssl_context, to.server_hostname, None, None) if to.ssl_context else None
    try:
        seconds = to.seconds_for_one(until)
    except TimeoutError:
        hurry(sock, until)
        sock.close()
        raise
    async with within(seconds, "the TLS handshake timed out"):
        transport = await start(sock, protocol, tls, until)
    return reader, writer_of(transport, protocol, reader)


async def _connect(
    to: Destination, made: tuple[int, int, int], sockaddr: Any, until: float
) -> SafeSocket:
    """With the local port, once it is free."""
    turns = PortTurns(until, to.seconds_for_one(until))
    while True:
        seconds = turns.seconds()
        with turns:
            async with within(seconds, "timed out"):
                return await connect(made, sockaddr, to.local_address, to.policy, to.previous)
        await asyncio.sleep(turns.pause)
