"""The asynchronous `Connector`: one connection after the other to the same peer, within bounds."""

from __future__ import annotations

import asyncio
import inspect
import time
import weakref

import tenacity

from safesock._attempt import CUT, hurry, refuse_lost
from safesock._destination import Destination, check_on_connect
from safesock._reconnect import Recovery
from safesock._value import said
from safesock.asyncio._connect import running_loop
from safesock.asyncio._dial import dial, within
from safesock.asyncio._streams import LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType
    from typing import Any, Self

    from safesock._policy import Policy
    from safesock._reconnect import Reconnect
    from safesock.asyncio._base import SafeTransport
    from safesock.asyncio._dial import Streams
    from safesock.asyncio._streams import SafeStreamReader, SafeStreamWriter


class Connector:
    """`safesock.Connector` for asyncio: connects to *address* again and again, a bounded number of
    times, and gives streams.

    There are two ways to use it, one at a time:

    - `await connect()` gives a reader and a writer, those of `open_connection`.
    - `async for reader, writer in connector:` gives them once per turn, and closes them when the
      turn is over.

    `async with` closes it at the end. The connection before is closed before the next is dialled,
    whichever task had it; if that waits for what has been written to be sent, it does so until the
    deadline.

    The arguments are those of `safesock.Connector`, and mean the same, but for these:

    timeout: seconds for each address, for connect(2) and for the TLS handshake, and for
        `on_connect`; None leaves only the deadline.
    on_connect: called with the reader and the writer of every connection before anybody else gets
        them; a coroutine function, or a plain one. When it raises, the connection is closed and
        the attempt has failed.
    limit: the longest line, in bytes, as in `open_connection`.

    It belongs to the loop that runs when it first connects, and to that loop's thread. Raises
    ValueError and TypeError for arguments that cannot be meant.
    """

    __module__ = "safesock.asyncio"

    def __init__(
        self,
        address: tuple[Any, ...],
        *,
        local_address: tuple[Any, ...] | None = None,
        policy: Policy | None = None,
        reconnect: Reconnect | None = None,
        timeout: float | None = 10.0,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        on_connect: Callable[[SafeStreamReader, SafeStreamWriter], object] | None = None,
        abort_previous: bool = False,
        limit: int = LIMIT,
    ) -> None:
        self._to = Destination(
            address, local_address, policy, timeout, ssl_context, server_hostname
        )
        check_on_connect(on_connect, "reader", "writer")
        if not isinstance(abort_previous, bool):
            raise TypeError(f"abort_previous takes True or False: not {said(abort_previous)}")
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"limit takes a number of bytes: not {said(limit)}")
        if limit <= 0:
            raise ValueError(f"limit takes a number of bytes above 0: not {said(limit)}")
        self._limit = limit
        self._on_connect = on_connect
        self._aborts = abort_previous and self._to.has_fixed_port()
        self._recovery = Recovery(reconnect, self._to)
        # One task at a time dials; `close` ends what it waits for.
        self._lock = asyncio.Lock()
        self._dialling: asyncio.Task[Any] | None = None
        self._scope: asyncio.Timeout | None = None
        # Weak: a connection that its owner drops ends at once.
        self._last: weakref.ref[SafeTransport] | None = None

    def __repr__(self) -> str:
        transport = self._last_one()
        return f"<safesock.asyncio.Connector to {self._to.address}, connection={transport!r}>"

    # Connecting -----------------------------------------------------------------------------------

    async def connect(self) -> tuple[SafeStreamReader, SafeStreamWriter]:
        """A connection: a reader and a writer. The one before is closed first.

        Raises `ReconnectError` when the budget of this outage is used up, and
        ConnectionAbortedError when the connector is closed.
        """
        running_loop()
        if self._is_dialling_here():
            raise RuntimeError("on_connect cannot connect by its own connector")
        async with self._lock:
            self._recovery.refuse_if_closed()
            self._dialling = asyncio.current_task()
            try:
                async with asyncio.timeout(None) as self._scope:
                    return await self._connect()
            except TimeoutError:
                self._recovery.refuse_if_closed()
                raise
            finally:
                self._dialling = self._scope = None

    def confirm(self) -> None:
        """Grants a new budget: all attempts, all the time, and the backoff from its beginning.

        To be called when a connection has proved good, for instance once the peer has answered
        sensibly; and after a `ReconnectError`, to try again later.
        """
        self._recovery.confirm()

    def close(self) -> None:
        """Ends the connection by its policy, for good. Whoever is in `connect` gets
        ConnectionAbortedError, and iteration ends. To be called in the loop's thread."""
        if self._scope is not None and not self._recovery.closed:
            self._scope.reschedule(0)
        self._recovery.closed = True
        transport = self._last_one()
        if transport is not None:
            transport._end()

    async def wait_closed(self) -> None:
        """After `close`: until the connection has ended, and nobody is in `connect` any more."""
        transport = self._last_one()
        if transport is not None:
            await transport._wait_ended()
        if not self._is_dialling_here():
            async with self._lock:
                pass

    def __aiter__(self) -> AsyncIterator[tuple[SafeStreamReader, SafeStreamWriter]]:
        """One connection per turn. It is closed by its policy at the end of the turn, or when the
        loop is left. Raises `ReconnectError`; ends when the connector is closed."""
        return _Turns(self)

    async def __aenter__(self) -> Self:
        """Itself. At the end of `async with`: `close` and `wait_closed`."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        await self.wait_closed()

    # What is behind it ---------------------------------------------------------------------------

    async def _connect(self) -> Streams:
        retrying = tenacity.AsyncRetrying(sleep=asyncio.sleep, **self._recovery.strategies())
        last = self._last_one()
        if last is not None and not self._aborts:
            last._end()
        with self._recovery:
            return await retrying(self._attempt)

    async def _attempt(self) -> Streams:
        until = self._recovery.begins()
        try:
            return await self._make(until)
        except BaseException as error:
            self._recovery.failed(error)
            raise

    async def _make(self, until: float) -> Streams:
        await self._end_last(until)
        reader, writer = await dial(self._to, until, self._limit)
        self._last = weakref.ref(writer.transport)  # From here on, `close` ends it.
        sock = writer.transport._sock
        try:
            if self._on_connect is not None:
                await self._greet(self._on_connect(reader, writer), until)
                refuse_lost(sock)
            self._recovery.refuse_if_closed()
        except BaseException:
            hurry(sock, until)
            writer.transport._end()
            raise
        assert sock._connection is not None
        self._recovery.made(sock._connection)
        return reader, writer

    async def _greet(self, answer: object, until: float) -> None:
        if inspect.isawaitable(answer):
            async with within(self._to.seconds_for_one(until), CUT):
                await answer

    async def _end_last(self, until: float) -> None:
        """Now its port is needed."""
        last = self._last_one()
        if last is None:
            return
        if self._aborts:
            last.abort()
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await last._wait_ended()
        except TimeoutError:
            last.abort()
            raise

    def _last_one(self) -> SafeTransport | None:
        return self._last() if self._last is not None else None

    def _is_dialling_here(self) -> bool:
        return self._dialling is not None and self._dialling is asyncio.current_task()


class _Turns:
    """The iterator: not a generator, which would end its connection only some time after the loop
    has been left."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._transport: SafeTransport | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Streams:
        try:
            reader, writer = await self._connector.connect()
        except ConnectionAbortedError:
            if self._connector._recovery.closed:
                raise StopAsyncIteration from None
            raise
        self._transport = writer.transport
        return reader, writer

    def __del__(self) -> None:
        if self._transport is not None:
            self._transport._drop()
