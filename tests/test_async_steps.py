"""Cancellation after each iteration of the loop in turn: nothing is left, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import kernel
import pytest
import tenacity
from loops import Loop
from peer import EOF, TIMEOUT, Peer, PeerEnd
from tls_peer import NAME, Certificates, TlsPeer

from safesock import Abort, Policy, Reconnect
from safesock.asyncio import Connector, create_connection, open_connection

Operation = Callable[[], Awaitable[object]]
# More iterations than any of these takes; each step makes at most one connection.
MOST_STEPS = 100


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def after_each_step(operation: Operation, then: Callable[[], Awaitable[object]]) -> None:
    """Cancels it after no, one, two... iterations, until it ends before; one that waits for time to
    pass is only waiting after that many. *then* is to find everything as it was."""
    for step in range(MOST_STEPS):
        task = asyncio.ensure_future(operation())
        await turns(step)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            await then()
        else:
            await then()
            return


class Acceptor:
    """Takes what comes, and sees each connection to its end."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        peer.listener.setblocking(False)

    async def all_have_ended(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._peer.listener.accept()
                end = PeerEnd(sock)
                await asyncio.to_thread(end.read_to_end)  # Until EOF or RST.
                end.close()


@contextlib.asynccontextmanager
async def as_before(peer: Peer) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    await asyncio.to_thread(int)  # The executor's thread.
    # Starts the watcher, which has descriptors of its own.
    _, writer = await open_connection(*peer.address)
    writer.close()
    acceptor = Acceptor(peer)
    await acceptor.all_have_ended()
    before = kernel.descriptors()

    async def check() -> None:
        await acceptor.all_have_ended()
        await turns(3)
        gc.collect()
        # A thread that looks up a name goes on after who asked has been cancelled.
        await asyncio.to_thread(
            kernel.wait_until, lambda: not kernel.left_open(before), "nothing is left open"
        )
        assert asyncio.all_tasks() == {asyncio.current_task()}

    yield check


async def open_and_close(peer: Peer, **options: Any) -> None:
    _, writer = await open_connection(*peer.address, **options)
    writer.close()
    await writer.wait_closed()


async def by_protocol(peer: Peer) -> None:
    transport, _ = await create_connection(asyncio.Protocol, *peer.address)
    transport.abort()


async def by_name(peer: Peer) -> None:
    _, writer = await open_connection("localhost", peer.address[1], family=2)
    writer.close()


async def by_connector(peer: Peer) -> None:
    async def hook(*_: object) -> None:
        await turns(2)

    async with Connector(peer.address, on_connect=hook, timeout=20) as connector:
        async for _ in connector:
            await turns(2)
            return


async def by_connector_that_waits(peer: Peer) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionRefusedError("not yet")

    reconnect = Reconnect(attempts=3, wait=tenacity.wait_fixed(0.001))
    with contextlib.suppress(ConnectionError):
        await Connector(peer.address, on_connect=refuse, reconnect=reconnect).connect()


OPERATIONS = {
    "open_connection": open_and_close,
    "with Abort": lambda peer: open_and_close(peer, policy=Policy(Abort())),
    "from a local address": lambda peer: open_and_close(peer, local_addr=("127.0.0.1", 0)),
    "create_connection": by_protocol,
    "by name": by_name,
    "Connector": by_connector,
    "Connector that waits": by_connector_that_waits,
}


@pytest.mark.parametrize("operation", list(OPERATIONS.values()), ids=list(OPERATIONS))
def test_a_cancelled_connection_leaves_nothing(loop: Loop, peer: Peer, operation: Any) -> None:
    async def main() -> None:
        async with as_before(peer) as check:
            await after_each_step(lambda: operation(peer), check)
            await operation(peer)
            await check()

    loop.run(main())


async def to_its_end(end: Any) -> None:
    """What the TLS peer does with a client that may go at any time."""

    def live() -> None:
        with contextlib.suppress(OSError, EOFError, ssl.SSLError):
            end.handshake()
            end.read_tls_to_end()
            end.close_notify()
        end.close()

    await asyncio.to_thread(live)


@pytest.mark.parametrize("late", [False, True], ids=["ssl", "start_tls"])
def test_a_cancelled_handshake_leaves_nothing(
    loop: Loop, tls: TlsPeer, certificates: Certificates, late: bool
) -> None:
    context = certificates.client()

    async def operation() -> None:
        options: Any = {} if late else {"ssl": context, "server_hostname": NAME}
        _, writer = await open_connection(*tls.address, **options)
        if late:
            await writer.start_tls(context, server_hostname=NAME)
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        for step in range(40):
            task = asyncio.ensure_future(operation())
            accepted = asyncio.ensure_future(asyncio.to_thread(tls.accept_tls))
            end = await accepted if step else None
            living = asyncio.ensure_future(to_its_end(end or await accepted))
            await turns(step)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await living  # It ends: the peer has seen EOF or RST.
            await turns(3)
        gc.collect()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    loop.run(main())
    gc.collect()
    assert not [
        state
        for (local, _), state in kernel.connections().items()
        if local[1] == tls.address[1] and state in ("ESTABLISHED", "CLOSE_WAIT")
    ]


@pytest.mark.parametrize("cut", ["cancelled", "reset"])
def test_after_a_handshake_that_failed_the_end_is_told(
    loop: Loop, peer: Peer, certificates: Certificates, cut: str
) -> None:
    """asyncio's own writer waits for ever."""

    async def main() -> None:
        reader, writer = await open_connection(*peer.address)
        end = await asyncio.to_thread(peer.accept)
        upgrade = asyncio.ensure_future(
            writer.start_tls(certificates.client(), server_hostname=NAME)
        )
        await asyncio.to_thread(end.read, 5)  # Of the ClientHello: it waits for an answer.
        if cut == "reset":
            end.rst()
        else:
            upgrade.cancel()
        with pytest.raises((ConnectionError, asyncio.CancelledError)):
            await upgrade
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(TIMEOUT):
                await writer.wait_closed()
        assert await answered(reader)
        assert writer.close_report is not None

    loop.run(main())


async def answered(reader: asyncio.StreamReader) -> bool:
    """Whether a read comes back."""
    async with asyncio.timeout(TIMEOUT):
        try:
            return await reader.read(1) == b""
        except ConnectionResetError:
            return True


READS = {
    "read": lambda reader: reader.read(),
    "readexactly": lambda reader: reader.readexactly(100),
    "readline": lambda reader: reader.readline(),
    "readuntil": lambda reader: reader.readuntil(b"end"),
    "anext": lambda reader: anext(reader),
}


@pytest.mark.parametrize("read", list(READS.values()), ids=list(READS))
def test_a_cancelled_read_loses_nothing(loop: Loop, peer: Peer, read: Any) -> None:
    """It is cancelled in the iteration in which data comes, before and after it."""

    async def main() -> None:
        reader, writer = await open_connection(*peer.address)
        end = await asyncio.to_thread(peer.accept)
        said = b""
        for step in range(12):
            task = asyncio.ensure_future(read(reader))
            await turns(2)
            said += b"%d," % step
            end.say(b"%d," % step)
            await turns(step % 4)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                pytest.fail(f"there is not that much: {await task!r}")
        end.fin()
        assert await reader.read() == said
        writer.close()
        await writer.wait_closed()

    loop.run(main())


def test_timeouts_behave_and_the_stream_goes_on(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        reader, writer = await open_connection(*peer.address)
        end = await asyncio.to_thread(peer.accept)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await reader.readexactly(2)
        end.say(b"a")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(2), 0.05)
        end.say(b"bc")
        assert await reader.readexactly(2) == b"ab"
        assert await reader.readexactly(1) == b"c"
        writer.close()
        assert await asyncio.to_thread(end.read_to_end) == (b"", EOF)

    loop.run(main())


def test_a_cancelled_close_has_closed(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        _, writer = await open_connection(*peer.address)
        end = await asyncio.to_thread(peer.accept)

        async def close() -> None:
            writer.close()
            await writer.wait_closed()

        task = asyncio.ensure_future(close())
        await turns(1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(end.read_to_end) == (b"", EOF)

    loop.run(main())


@pytest.mark.parametrize("limit", [1000, 2**16, 2**17])
def test_a_fast_peer_fills_no_more_than_the_limit_twice_and_one_read(
    loop: Loop, peer: Peer, limit: int
) -> None:
    most = 2 * limit + max(limit, 2**16)

    async def main() -> None:
        reader, writer = await open_connection(*peer.address, limit=limit)
        end = await asyncio.to_thread(peer.accept)
        size = 20_000_000  # More than the kernels take.
        saying = asyncio.ensure_future(asyncio.to_thread(end.say, bytes(size)))
        sock = writer.get_extra_info("socket")
        while not (reader._paused and kernel.unread(sock)):  # Nobody reads.
            await asyncio.sleep(0)
        assert 2 * limit < len(reader._buffer) <= most
        while size:
            size -= len(await reader.readexactly(min(size, 10 * limit)))
            assert len(reader._buffer) <= most
        await saying
        writer.close()
        await writer.wait_closed()

    loop.run(main())
