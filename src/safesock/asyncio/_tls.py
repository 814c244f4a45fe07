"""TLS over a `SafeTransport`: asyncio's own protocol for it, on every loop."""

from __future__ import annotations

import asyncio
import ssl
from asyncio import sslproto

from safesock._loss import Cause
from safesock._value import said
from safesock.asyncio._base import SafeTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock.asyncio._transport import SocketTransport

_HANDSHAKE = sslproto.SSLProtocolState.DO_HANDSHAKE
_HAS_CONNECTION = sslproto.AppProtocolState.STATE_CON_MADE


class SafeSSLTransport(SafeTransport, sslproto._SSLProtocolTransport):
    """A `SafeTransport` with TLS."""

    # The transport below, without TLS.
    socket_transport: SocketTransport
    _protocol: Any
    # Of asyncio's.
    _closed: bool

    def __repr__(self) -> str:
        state = "closing" if self._closed else "open"
        return f"<safesock.asyncio.SafeTransport {state}, TLS, {self._sock!r}>"

    def close(self) -> None:
        """Sends close_notify, and ends the connection by its policy when the peer has answered."""
        if not self._closed:
            super().close()
        self._protocol.lose_what_is_held()

    def _end(self) -> None:
        """As `close`, but does not wait for the peer's close_notify (RFC 8446, 6.1)."""
        self.close()
        if not self._protocol._get_write_buffer_size():
            self.socket_transport._end()

    async def _wait_ended(self) -> None:
        """Until the descriptor is closed and `connection_lost` has been called."""
        await self.socket_transport._wait_ended()

    def abort(self) -> None:
        """RST, at once; what has not been sent is dropped, and counted."""
        self._closed = True
        self.socket_transport.abort()
        self._protocol.lose_what_is_held()


class TLSProtocol(sslproto.SSLProtocol):
    """asyncio's, which also records a loss, and loses nothing that has been received.

    A close_notify ends the connection as a FIN does, for it is the end of what can be read.
    """

    # The end of the connection is told when what has come before it has been read.
    _holds_the_end = False
    # Reading goes on soon.
    _resumes = False
    # The peer has said that nothing more will come.
    _is_at_end = False
    # Of asyncio's.
    _app_protocol: asyncio.BaseProtocol
    _app_reading_paused: bool
    _app_state: Any
    _app_transport: Any
    _incoming: ssl.MemoryBIO
    _loop: asyncio.AbstractEventLoop
    _state: Any
    _transport: Any

    def _get_app_transport(self) -> SafeSSLTransport:
        if self._app_transport is None:
            self._app_transport = SafeSSLTransport(self._loop, self)
            self._app_transport._protocol = self
        made: SafeSSLTransport = self._app_transport
        return made

    def is_over(self, transport: SafeTransport) -> SafeSSLTransport:
        """Tells what it is over, and gives the transport with TLS."""
        made = self._get_app_transport()
        made._sock = transport._sock
        below = transport.socket_transport if isinstance(transport, SafeSSLTransport) else transport
        made.socket_transport = below  # type: ignore[assignment]
        return made

    def _call_eof_received(self) -> None:
        if self._is_at_end:
            return  # It is being closed for that.
        made = self._app_transport
        if made is not None and not made.is_closing() and made._sock._connection is not None:
            made._sock._connection.lose(made._sock, Cause.FIN, None)
            if made.policy.on_loss == "close":
                self._is_at_end = True
                self._start_shutdown()
                self._transport.close()
            made._sock._tell()
        super()._call_eof_received()  # type: ignore[misc]

    def connection_lost(self, error: BaseException | None) -> None:
        """At once, or when the owner, who has paused reading, has got what came before it."""
        if error is None and self._is_yet_to_be_read():
            self._holds_the_end = True
            return
        # asyncio does not tell whoever had a connection before the handshake, which is not over.
        untold = self._state is _HANDSHAKE and self._app_state is _HAS_CONNECTION
        protocol = self._app_protocol
        super().connection_lost(error)
        if untold:
            self._loop.call_soon(protocol.connection_lost, error)  # type: ignore[arg-type]

    def _is_yet_to_be_read(self) -> bool:
        """Whether something that has come waits for an owner who may still want it."""
        if self._app_transport is None or self._app_transport._closed:
            return False
        return bool((self._app_reading_paused or self._resumes) and self._incoming.pending)

    def _resume_reading(self) -> None:
        super()._resume_reading()  # type: ignore[misc]
        self._resumes = True
        self._loop.call_soon(self._has_resumed)

    def _has_resumed(self) -> None:
        self._resumes = False
        if not self._is_yet_to_be_read():
            self.lose_what_is_held()

    def lose_what_is_held(self) -> None:
        """Nobody is going to read any more, or all has been read."""
        if self._holds_the_end:
            self._holds_the_end = False
            super().connection_lost(None)


async def start_tls(
    transport: SafeTransport,
    protocol: asyncio.BaseProtocol,
    sslcontext: ssl.SSLContext,
    *,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
) -> SafeSSLTransport:
    """`loop.start_tls`, for a client, on every loop."""
    if not isinstance(sslcontext, ssl.SSLContext):
        raise TypeError(f"sslcontext takes an ssl.SSLContext: not {said(sslcontext)}")
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    tls = TLSProtocol(
        loop,
        protocol,
        sslcontext,
        waiter,
        server_hostname=server_hostname,
        call_connection_made=False,
        ssl_handshake_timeout=ssl_handshake_timeout,  # type: ignore[arg-type]
        ssl_shutdown_timeout=ssl_shutdown_timeout,
    )
    made = tls.is_over(transport)
    # Before `connection_made` no data may come.
    transport.pause_reading()
    transport.set_protocol(tls)
    calls = [
        loop.call_soon(tls.connection_made, transport),
        loop.call_soon(transport.resume_reading),
    ]
    try:
        await waiter
    except BaseException:
        transport.close()
        for call in calls:
            call.cancel()
        raise
    return made
