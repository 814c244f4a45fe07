"""The other side of a connection: `safesock.testing`'s peer, and what only our own tests need."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from safesock import Policy, SafeSocket, create_connection
from safesock.testing import End, PeerEnd, ScriptedPeer

__all__ = ["EOF", "RESET", "TIMEOUT", "Peer", "PeerEnd"]
EOF, RESET = End.FIN, End.RST
TIMEOUT = 20.0


class Peer(ScriptedPeer):
    """On loopback unless *host* says otherwise."""

    def __init__(
        self,
        family: int = socket.AF_INET,
        receive_buffer: int | None = None,
        host: str | None = None,
        port: int = 0,
    ) -> None:
        host = host or ("127.0.0.1" if family == socket.AF_INET else "::1")
        super().__init__(host, port, receive_buffer=receive_buffer, timeout=TIMEOUT)

    def nobody_waits(self) -> bool:
        """Whether there is no connection that it has not accepted."""
        return not select.select([self.listener], [], [], 0)[0]

    @contextmanager
    def connected(
        self, policy: Policy | None = None, timeout: float | None = TIMEOUT
    ) -> Iterator[tuple[SafeSocket, PeerEnd]]:
        """A SafeSocket and the other end of its connection."""
        with create_connection(self.address, timeout, policy=policy) as sock:
            yield sock, self.accept()
