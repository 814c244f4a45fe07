"""`wrap_transport`: a transport that somebody else has made."""

from __future__ import annotations

import asyncio
import os
import socket

from safesock._open import wrap
from safesock._value import said
from safesock.asyncio._base import SafeTransport
from safesock.asyncio._connect import running_loop
from safesock.asyncio._transport import SocketTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._policy import Policy


def wrap_transport(transport: asyncio.Transport, policy: Policy | None = None) -> SafeTransport:
    """Takes over the TCP connection of *transport*, and gives a `SafeTransport`.

    The protocol goes on with the new transport, and is to use that from now on, as after
    `loop.start_tls`: `connection_made` is not called again. *transport* is left closed; its
    descriptor has been duplicated (dup(2)), and its protocol hears nothing of it any more. It may
    be of any loop, uvloop's too. To be called while the loop runs.

    Raises TypeError for what is no transport and for that of a stream, whose writer would keep it
    (use `open_connection`), and ValueError for one that is closing, has TLS (use
    `create_connection`, or wrap it before start_tls), has not sent all that was written, or is not
    a TCP client's; *transport* is then as it was.
    """
    loop = running_loop()
    protocol = _refuse(transport)
    sock = transport.get_extra_info("socket")
    duplicate = socket.socket(fileno=os.dup(sock.fileno()))
    try:
        safe = wrap(duplicate, policy)
    except BaseException:
        duplicate.close()
        raise
    safe.setblocking(False)
    made = SocketTransport(loop, safe, protocol)
    if not transport.is_reading():
        made.pause_reading()
    transport.pause_reading()
    transport.set_protocol(asyncio.Protocol())
    # It closes its descriptor: with ours there is another, so nothing is sent.
    transport.abort()
    made.begin_to_read()
    return made


def _refuse(transport: Any) -> asyncio.BaseProtocol:
    # uvloop's are none of asyncio's by class.
    if not all(hasattr(transport, name) for name in ("pause_reading", "write", "set_protocol")):
        raise TypeError(f"wrap_transport takes an asyncio.Transport: not {said(transport)}")
    if isinstance(transport, SafeTransport):
        raise ValueError("wrap_transport takes the transport of another: this is a SafeTransport")
    if transport.is_closing():
        raise ValueError("wrap_transport takes an open transport, and this one is closing")
    if transport.get_extra_info("sslcontext") is not None:
        raise ValueError("wrap a transport before start_tls, or use safesock's create_connection")
    if transport.get_extra_info("socket") is None:
        raise ValueError(
            f"wrap_transport takes the transport of a TCP socket: not {said(transport)}"
        )
    protocol: asyncio.BaseProtocol = transport.get_protocol()
    if isinstance(protocol, asyncio.StreamReaderProtocol):
        raise TypeError("a stream keeps its transport: use safesock.asyncio.open_connection")
    if transport.get_write_buffer_size():
        raise ValueError("wrap_transport waits for nothing: send what has been written first")
    return protocol
