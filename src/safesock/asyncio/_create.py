"""`create_connection`: from an address, or a socket, to a transport and its protocol."""

from __future__ import annotations

import asyncio
import ssl as _ssl

from safesock._attempt import hurry
from safesock._open import wrap
from safesock._policy import policy_or_default
from safesock._socket import SafeSocket
from safesock.asyncio._connect import addresses, connect_to_one_of, running_loop
from safesock.asyncio._tls import TLSProtocol
from safesock.asyncio._transport import SocketTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any, TypeVar

    from safesock._policy import Policy
    from safesock.asyncio._base import SafeTransport
    from safesock.asyncio._connect import Local

    Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)


async def create_connection(
    protocol_factory: Callable[[], Protocol],
    host: str | None = None,
    port: int | str | None = None,
    *,
    policy: Policy | None = None,
    ssl: _ssl.SSLContext | bool | None = None,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    sock: socket.socket | None = None,
    local_addr: tuple[str | None, int] | None = None,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    happy_eyeballs_delay: float | None = None,
    interleave: int | None = None,
    all_errors: bool = False,
) -> tuple[SafeTransport, Protocol]:
    """Connects, and gives a `SafeTransport` and the protocol: `loop.create_connection` with a
    *policy*, on every loop that has `add_reader` (on Windows, not the proactor).

    Where it differs: a *local_addr* with a port other than 0 gets SO_REUSEADDR (see
    `Policy.reuse_address`), its host may be "" or None for any, and its addresses are tried one
    after the other whatever *happy_eyeballs_delay* says; where the port is held, the OSError is a
    `LocalPortBusyError`. *sock*, a connected TCP socket, is taken over as by `safesock.wrap`; a
    `SafeSocket` is used as it is, unless it gets another *policy*.
    Nothing is left open after an exception or a cancellation. Raises NotImplementedError on a loop
    without `add_reader`.
    """
    chosen = policy_or_default(policy)
    running_loop()
    if not ssl:
        _refuse_without_tls(server_hostname, ssl_handshake_timeout, ssl_shutdown_timeout)
    elif server_hostname is None:
        if not host:
            raise ValueError("You must set server_hostname when using ssl without a host")
        server_hostname = host
    if host is None and port is None:
        if sock is None:
            raise ValueError("host and port was not specified and no sock specified")
        safe = _taken_over(sock, policy)
    elif sock is not None:
        raise ValueError("host/port and sock can not be specified at the same time")
    else:
        hints = {"family": family, "proto": proto, "flags": flags}
        safe = await connect_to_one_of(
            await addresses((host, port), **hints),
            await _local(local_addr, hints),
            chosen,
            delay=happy_eyeballs_delay,
            interleave=interleave,
            all_errors=all_errors,
        )
    try:
        protocol = protocol_factory()
    except BaseException:
        safe.close()
        raise
    context = None if isinstance(ssl, bool) else ssl
    tls = (context, server_hostname, ssl_handshake_timeout, ssl_shutdown_timeout) if ssl else None
    return await start(safe, protocol, tls), protocol


async def start(
    sock: SafeSocket,
    protocol: asyncio.BaseProtocol,
    tls: tuple[Any, ...] | None,
    until: float | None = None,
) -> SafeTransport:
    """A transport, over TLS where its arguments are given, that has called `connection_made`. Where
    that fails, the connection is ended by its policy, but before *until*."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    if tls is None:
        below = SocketTransport(loop, sock, protocol)
        made: SafeTransport = below
        below.begin(waiter)
    else:
        context, server_hostname, handshake_timeout, shutdown_timeout = tls
        try:
            over = TLSProtocol(
                loop,
                protocol,
                context,
                waiter,
                server_hostname=server_hostname,
                ssl_handshake_timeout=handshake_timeout,
                ssl_shutdown_timeout=shutdown_timeout,
            )
        except BaseException:
            sock.close()
            raise
        below = SocketTransport(loop, sock, over)
        made = over.is_over(below)
        below.begin()
    try:
        await waiter
    except BaseException:
        if until is not None:
            hurry(sock, until)
        below._force_close(None)
        raise
    return made


def _refuse_without_tls(
    server_hostname: str | None, handshake_timeout: float | None, shutdown_timeout: float | None
) -> None:
    if server_hostname is not None:
        raise ValueError("server_hostname is only meaningful with ssl")
    if handshake_timeout is not None:
        raise ValueError("ssl_handshake_timeout is only meaningful with ssl")
    if shutdown_timeout is not None:
        raise ValueError("ssl_shutdown_timeout is only meaningful with ssl")


def _taken_over(sock: socket.socket, policy: Policy | None) -> SafeSocket:
    if isinstance(sock, _ssl.SSLSocket):
        raise TypeError("Socket cannot be of type SSLSocket")
    governed = isinstance(sock, SafeSocket) and sock._connection is not None
    safe = sock if governed and policy is None else wrap(sock, policy)
    safe.setblocking(False)
    return safe  # type: ignore[return-value]


async def _local(local_addr: tuple[str | None, int] | None, hints: dict[str, int]) -> list[Local]:
    """Where to bind to, with the family; None is for the one at hand."""
    if local_addr is None:
        return []
    if not local_addr[0]:  # Any address of this host: see bind(2).
        return [(None, ("", local_addr[1]))]
    return [(made[0], where) for made, where in await addresses(local_addr, **hints)]
