"""Every way in which a program comes by a connection that is governed, seen alike by a test."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from loops import LOOPS
from peer import TIMEOUT

import safesock
import safesock.asyncio
from safesock import CloseReport, Loss, Policy, SafeSocket

Result = TypeVar("Result")


class Line:
    """A connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self) -> None:
        """Until the end is told, in whatever way."""
        with contextlib.suppress(OSError):
            while self._sock.recv(100):
                pass

    def close(self) -> None:
        self._sock.close()

    def records(self) -> tuple[Loss | None, CloseReport | None]:
        """Those that its owner sees."""
        assert isinstance(self._sock, SafeSocket)
        return self._sock.loss, self._sock.close_report


class Driver:
    """One way. `connect` may be called while the driver is in a `with` block."""

    # What comes with it.
    tells_connecting = True
    has_records = True
    # The owner's reads are not seen: a loss is told by the watcher, or by the close.
    reads_are_seen = True
    # The owner is told of a FIN at once, without asking.
    reads_by_itself = False

    def __init__(self, make: Callable[[Any, Policy], socket.socket]) -> None:
        self._make = make

    def connect(self, address: Any, policy: Policy) -> Any:
        return Line(self._make(address, policy))

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _connect(address: Any, policy: Policy) -> SafeSocket:
    sock = SafeSocket(policy=policy)
    sock.settimeout(TIMEOUT)
    sock.connect(address)
    return sock


def _connect_ex(address: Any, policy: Policy) -> SafeSocket:
    sock = SafeSocket(policy=policy)
    sock.settimeout(TIMEOUT)
    assert sock.connect_ex(address) == 0
    return sock


def _without_waiting(address: Any, policy: Policy) -> SafeSocket:
    sock = SafeSocket(policy=policy)
    sock.setblocking(False)
    assert sock.connect_ex(address) == errno.EINPROGRESS
    assert select.select([], [sock], [], TIMEOUT)[1]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    sock.settimeout(TIMEOUT)
    return sock


def _create_connection(address: Any, policy: Policy) -> SafeSocket:
    return safesock.create_connection(address, TIMEOUT, policy=policy)


def _wrap(address: Any, policy: Policy) -> SafeSocket:
    return safesock.wrap(socket.create_connection(address, TIMEOUT), policy)


def _connector(address: Any, policy: Policy) -> SafeSocket:
    sock = safesock.Connector(address, policy=policy).connect()
    sock.settimeout(TIMEOUT)
    return sock


def _socket_for_life(address: Any, policy: Policy) -> SafeSocket:
    sock = safesock.Connector(address, policy=policy).socket()
    sock.settimeout(TIMEOUT)
    return sock


class Wrapped(Driver):
    tells_connecting = False


class Enforced(Driver):
    """A plain socket of somebody who knows of nothing."""

    has_records = False
    reads_are_seen = False

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def connect(self, address: Any, policy: Policy) -> Line:
        self._stack.enter_context(safesock.enforce(policy))
        return Line(socket.create_connection(address, TIMEOUT))

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class OnLoop(Driver):
    """Of asyncio, with the loop in a thread of its own."""

    reads_by_itself = True

    def __init__(self, loop: str, make: Callable[[Any, Policy], Coroutine[Any, Any, Any]]) -> None:
        self._open = make
        self._name = loop

    def __enter__(self) -> Driver:
        self._loop = LOOPS[self._name]()
        self.thread = threading.Thread(target=self._loop.run_forever)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.thread.join(TIMEOUT)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def connect(self, address: Any, policy: Policy) -> AsyncLine:
        return AsyncLine(self, self.run(self._open(address, policy)))

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(3 * TIMEOUT)


class AsyncLine:
    """A transport, and a future that is done when its protocol is told of the end."""

    def __init__(self, driver: OnLoop, made: tuple[Any, Any]) -> None:
        self._driver = driver
        self._transport, self._end = made

    def read(self) -> None:
        async def read() -> None:
            with contextlib.suppress(ConnectionError):
                await self._end()

        self._driver.run(read())

    def close(self) -> None:
        async def close() -> None:
            self._transport.close()
            await self._transport._wait_ended()

        self._driver.run(close())

    def records(self) -> tuple[Loss | None, CloseReport | None]:
        return self._transport.loss, self._transport.close_report


class _Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self._over = asyncio.get_running_loop().create_future()

    def eof_received(self) -> bool:
        self._tell()
        return True

    def connection_lost(self, _: BaseException | None) -> None:
        self._tell()

    def _tell(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def end(self) -> None:
        await asyncio.shield(self._over)


async def _streams(address: Any, policy: Policy) -> tuple[Any, Any]:
    reader, writer = await safesock.asyncio.open_connection(*address, policy=policy)
    return _kept(reader, writer)


async def _by_connector(address: Any, policy: Policy) -> tuple[Any, Any]:
    reader, writer = await safesock.asyncio.Connector(address, policy=policy).connect()
    return _kept(reader, writer)


def _kept(reader: Any, writer: Any) -> tuple[Any, Any]:
    async def end() -> None:
        await reader.read()
        assert writer is not None  # Held: a stream that nobody has ends.

    return writer.transport, end


async def _transport(address: Any, policy: Policy) -> tuple[Any, Any]:
    transport, protocol = await safesock.asyncio.create_connection(
        _Protocol, *address, policy=policy
    )
    return transport, protocol.end


async def _wrapped_transport(address: Any, policy: Policy) -> tuple[Any, Any]:
    loop = asyncio.get_running_loop()
    plain, protocol = await loop.create_connection(_Protocol, *address)
    return safesock.asyncio.wrap_transport(plain, policy), protocol.end


class WrappedOnLoop(OnLoop):
    tells_connecting = False


SYNCHRONOUS: dict[str, Callable[[], Driver]] = {
    "connect": lambda: Driver(_connect),
    "connect_ex": lambda: Driver(_connect_ex),
    "non-blocking": lambda: Driver(_without_waiting),
    "create_connection": lambda: Driver(_create_connection),
    "wrap": lambda: Wrapped(_wrap),
    "Connector": lambda: Driver(_connector),
    "enforce": Enforced,
}
FOR_LIFE: dict[str, Callable[[], Driver]] = {"socket for life": lambda: Driver(_socket_for_life)}


def _on_loops() -> Iterator[tuple[str, Callable[[], Driver]]]:
    for loop in LOOPS:
        yield f"{loop} streams", lambda loop=loop: OnLoop(loop, _streams)  # type: ignore[misc]
        yield f"{loop} transport", lambda loop=loop: OnLoop(loop, _transport)  # type: ignore[misc]
        yield (
            f"{loop} wrap_transport",
            lambda loop=loop: WrappedOnLoop(loop, _wrapped_transport),  # type: ignore[misc]
        )
        yield f"{loop} Connector", lambda loop=loop: OnLoop(loop, _by_connector)  # type: ignore[misc]


ON_LOOPS: dict[str, Callable[[], Driver]] = dict(_on_loops())
DRIVERS = {**SYNCHRONOUS, **ON_LOOPS}
