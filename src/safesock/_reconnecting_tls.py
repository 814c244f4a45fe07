"""`ReconnectingSocket` with TLS."""

from __future__ import annotations

import ssl
from typing import cast

from safesock._reconnecting import ReconnectingSocket, dials_before
from safesock._socket import SafeSocket
from safesock._tls import SafeSSLSocket, move_session, prepare_to_move


class ReconnectingSSLSocket(ReconnectingSocket, SafeSSLSocket):  # type: ignore[misc]
    """A `ReconnectingSocket` that is a `SafeSSLSocket`; each connection has its own session."""

    __module__ = "safesock"

    def _move(self, sock: SafeSocket) -> None:
        session = cast("ssl.SSLSocket", sock)
        prepare_to_move(session)
        super()._move(sock)
        move_session(session, self)


dials_before(ReconnectingSSLSocket, "read")
dials_before(ReconnectingSSLSocket, "write")
