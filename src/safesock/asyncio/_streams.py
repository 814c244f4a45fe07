"""A reader and a writer that take the place of asyncio's.

The reader keeps what came last as it came, a `bytes` and a position, so that a line or a message is
one slice of it. What does not fit that is asyncio's own code, on its own buffer.
"""

from __future__ import annotations

import asyncio
import warnings
import weakref

from safesock.asyncio._base import SafeTransport
from safesock.asyncio._create import create_connection
from safesock.asyncio._tls import start_tls
from safesock.asyncio._transport import MOST, SocketTransport
from safesock.asyncio._wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable
    from typing import Any

    from safesock._loss import CloseReport, Loss
    from safesock._policy import Policy

# What is left of a chunk is copied in front of the next one up to here; beyond, the buffer grows.
_REST = 4096
# As in asyncio.
LIMIT = 2**16


class SafeStreamReader(asyncio.StreamReader):
    """An `asyncio.StreamReader`.

    Where it differs: a second task that reads while another one waits for data gets RuntimeError
    whatever there is to read; a `read` to the end that is cancelled leaves what it had for the next
    one; and when neither this nor its writer is referred to any more, the connection ends by its
    policy.
    """

    __module__ = "safesock.asyncio"

    # What came last, and how far it has been read; `_store` has what comes before or after it.
    _chunk = b""
    _pos = 0
    _store: bytearray
    # A task waits for data.
    _busy = False
    # Of asyncio.StreamReader.
    _eof: bool
    _exception: BaseException | None
    _limit: int
    _loop: asyncio.AbstractEventLoop
    _paused: bool
    _transport: Any
    _waiter: Any

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """As in asyncio."""
        super().set_transport(transport)
        if isinstance(transport, SocketTransport):
            transport.read_size = min(max(self._limit, LIMIT), MOST)

    def _replace_transport(self, transport: SafeTransport) -> None:
        """After start_tls."""
        self._transport = transport

    # The buffer --------------------------------------------------------------------------------

    @property
    def _buffer(self) -> bytearray:
        """For asyncio's own code."""
        if self._chunk:
            self._store += memoryview(self._chunk)[self._pos :]
            self._chunk, self._pos = b"", 0
        return self._store

    @_buffer.setter
    def _buffer(self, value: bytearray) -> None:
        self._store = value

    def feed_data(self, data: Any) -> None:
        """As in asyncio."""
        assert not self._eof, "feed_data after feed_eof"
        if not data:
            return
        rest = len(self._chunk) - self._pos
        if self._store or rest > _REST:
            self._buffer.extend(data)
            size = len(self._store)
        else:
            self._chunk = self._chunk[self._pos :] + data if rest else bytes(data)
            self._pos = 0
            size = len(self._chunk)
        if size > 2 * self._limit and self._transport is not None and not self._paused:
            self._pause()
        waiter = self._waiter
        if waiter is not None:  # Last, as the task may go on, and read, within.
            self._waiter = None
            if not waiter.cancelled():
                waiter.set_result(None)

    def _pause(self) -> None:
        try:
            self._transport.pause_reading()
        except NotImplementedError:
            self._transport = None  # As in asyncio: it cannot be paused.
        else:
            self._paused = True

    def _resume(self) -> None:
        if len(self._chunk) - self._pos + len(self._store) <= self._limit:
            self._paused = False
            self._transport.resume_reading()

    def _wakeup_waiter(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.cancelled():
            waiter.set_result(None)

    async def _wait_for_data(self, func_name: str) -> None:
        if self._busy or self._waiter is not None:
            raise RuntimeError(_TWO.format(func_name))
        assert not self._eof, "_wait_for_data after EOF"
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._busy = True
        self._waiter = Wake(self._loop)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._busy = False

    def _refuse_two(self, func_name: str) -> None:
        if self._busy:
            raise RuntimeError(_TWO.format(func_name))

    # Reading -----------------------------------------------------------------------------------

    async def readline(self) -> bytes:
        """As in asyncio."""
        self._refuse_two("readuntil")
        while self._exception is None and not self._store:
            pos = self._pos
            end = self._chunk.find(b"\n", pos) + 1
            if end:
                if end - pos > self._limit + 1:
                    break
                self._pos = end
                if self._paused:
                    self._resume()
                return self._chunk[pos:end]
            if self._eof or len(self._chunk) - pos >= min(_REST, self._limit):
                break
            await self._wait_for_data("readuntil")
        return await super().readline()

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        """As in asyncio; a tuple of separators is for Python 3.13 and later."""
        self._refuse_two("readuntil")
        return await super().readuntil(separator)

    async def readexactly(self, n: int) -> bytes:
        """As in asyncio."""
        self._refuse_two("readexactly")
        while self._exception is None and not self._store and n > 0:
            end = self._pos + n
            if end <= len(self._chunk):
                return self._take(end)
            if self._eof or n > _REST:
                break
            await self._wait_for_data("readexactly")
        return await super().readexactly(n)

    async def read(self, n: int = -1) -> bytes:
        """As in asyncio."""
        self._refuse_two("read")
        if n < 0:
            return await self._read_to_end()
        if n == 0 or self._exception is not None or self._store:
            return await super().read(n)
        if self._pos == len(self._chunk) and not self._eof:
            await self._wait_for_data("read")
        if self._pos < len(self._chunk) and not self._store and self._exception is None:
            return self._take(min(self._pos + n, len(self._chunk)))
        return await super().read(n)

    async def _read_to_end(self) -> bytes:
        blocks = []
        try:
            while block := await self.read(self._limit):
                blocks.append(block)
        except asyncio.CancelledError:
            self._buffer[:0] = b"".join(blocks)  # For the next one.
            raise
        return b"".join(blocks)

    def _take(self, end: int) -> bytes:
        pos, chunk = self._pos, self._chunk
        if end == len(chunk):
            # Not kept until more comes, and not copied if it is all.
            self._chunk, self._pos = b"", 0
        else:
            self._pos = end
        if self._paused:
            self._resume()
        return chunk[pos:end]

    def __del__(self) -> None:
        transport = getattr(self, "_transport", None)
        if not isinstance(transport, SafeTransport) or transport.is_closing():
            return
        if self._loop.is_closed():
            return  # Then the transport ends when it is collected.
        # Its writer holds it, so nobody has that either.
        warnings.warn(f"unclosed stream {transport!r}", ResourceWarning, 2, source=self)
        transport._drop()


_TWO = "{}() called while another coroutine is already waiting for incoming data"


class StreamProtocol(asyncio.StreamReaderProtocol):
    """asyncio's, by a shorter way."""

    # Of asyncio's.
    _stream_reader_wr: weakref.ref[SafeStreamReader] | None
    _drain_waiters: Iterable[asyncio.Future[None]]

    def data_received(self, data: bytes) -> None:
        """To the reader, if anybody has it."""
        reader = self._stream_reader_wr() if self._stream_reader_wr is not None else None
        if reader is not None:
            reader.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        """As in asyncio; whoever waits in `drain` is told that it was in vain."""
        for waiter in self._drain_waiters if error is None else ():
            if not waiter.done():
                waiter.set_exception(ConnectionResetError("Connection lost"))
        super().connection_lost(error)


class SafeStreamWriter(asyncio.StreamWriter):
    """An `asyncio.StreamWriter` that knows how its connection has ended."""

    __module__ = "safesock.asyncio"

    # Of asyncio.StreamWriter.
    _loop: asyncio.AbstractEventLoop
    _protocol: Any
    _reader: SafeStreamReader | None
    _transport: Any

    @property
    def transport(self) -> SafeTransport:
        """The transport, with TLS or without."""
        made: SafeTransport = self._transport
        return made

    @property
    def policy(self) -> Policy:
        """The policy of this connection."""
        return self.transport.policy

    @property
    def loss(self) -> Loss | None:
        """How the connection was lost, or None while it is not known to be."""
        return self.transport.loss

    @property
    def close_report(self) -> CloseReport | None:
        """How the connection was closed, or None while it is open."""
        return self.transport.close_report

    async def drain(self) -> None:
        """As in asyncio."""
        # What asyncio's looks at.
        reader = self._reader
        failed = reader is not None and reader._exception is not None
        if failed or self._transport.is_closing() or self._protocol._paused:
            await super().drain()

    async def start_tls(
        self,
        sslcontext: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """As in asyncio; on uvloop too."""
        if not isinstance(self._transport, SafeTransport):  # Of a server.
            await super().start_tls(sslcontext, server_hostname=server_hostname)
            return
        await self.drain()
        self._transport = await start_tls(
            self._transport,
            self._protocol,
            sslcontext,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        self._protocol._over_ssl = True
        self._protocol._transport = self._transport
        if self._reader is not None:
            self._reader._replace_transport(self._transport)


async def open_connection(
    host: str | None = None,
    port: int | str | None = None,
    *,
    limit: int = LIMIT,
    policy: Policy | None = None,
    **as_in_asyncio: Any,
) -> tuple[SafeStreamReader, SafeStreamWriter]:
    """Connects, and gives a reader and a writer: `asyncio.open_connection` with a *policy*.

    The other arguments are those of `create_connection`. The reader and the writer do all that
    asyncio's do, with the same results and exceptions; where the connection is closed at the peer's
    FIN (see `SafeTransport`), a `drain` from then on raises ConnectionResetError. `writer.loss` and
    `writer.close_report` say how the connection has ended. *limit*: the longest line, in bytes;
    twice as much is read ahead of you, and one recv(2) more, of at most *limit* or 64 KiB. Raises
    OSError; nothing is left open then, nor after a cancellation.
    """
    reader, protocol = unconnected(limit)
    transport, _ = await create_connection(
        lambda: protocol, host, port, policy=policy, **as_in_asyncio
    )
    return reader, writer_of(transport, protocol, reader)


def unconnected(limit: int) -> tuple[SafeStreamReader, StreamProtocol]:
    """A reader, and the protocol that feeds it."""
    loop = asyncio.get_running_loop()
    reader = SafeStreamReader(limit=limit, loop=loop)
    return reader, StreamProtocol(reader, loop=loop)


def writer_of(
    transport: SafeTransport, protocol: StreamProtocol, reader: SafeStreamReader
) -> SafeStreamWriter:
    """The writer that goes with them."""
    return SafeStreamWriter(transport, protocol, reader, asyncio.get_running_loop())
