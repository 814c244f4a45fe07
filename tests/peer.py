"""The other side of a connection: a real server on loopback whose every act a test chooses."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from safesock import Policy, SafeSocket, create_connection

EOF, RESET = "eof", "reset"
TIMEOUT = 20.0


class PeerEnd:
    """The accepted end of one connection. Its methods are named by what they put on the wire."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT)

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def half_close(self) -> None:
        """FIN; this side can still read."""
        self.sock.shutdown(socket.SHUT_WR)

    def fin(self) -> None:
        """FIN, and nobody is there any more."""
        self.sock.close()

    def rst(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def read(self, count: int) -> bytes:
        """Exactly *count* bytes."""
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            assert part, f"end of file after {data!r}"
            data += part
        return data

    def read_to_end(self) -> tuple[bytes, str]:
        """All that comes, and how it ended: EOF or RESET."""
        data = bytearray()
        try:
            while part := self.sock.recv(65536):
                data += part
        except ConnectionResetError:
            return bytes(data), RESET
        return bytes(data), EOF

    def close(self) -> None:
        self.sock.close()


class Peer:
    """A listening socket, on loopback unless *host* says otherwise."""

    def __init__(
        self,
        family: int = socket.AF_INET,
        receive_buffer: int | None = None,
        host: str | None = None,
        port: int = 0,
    ) -> None:
        host = host or ("127.0.0.1" if family == socket.AF_INET else "::1")
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer is not None:  # Before the connection: it decides the window.
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.listener.bind((host, port))
        self.listener.listen(128)
        self.listener.settimeout(TIMEOUT)
        self.ends: list[PeerEnd] = []

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.listener.getsockname()[:2]
        return host, port

    def accept(self) -> PeerEnd:
        sock, _ = self.listener.accept()
        self.ends.append(PeerEnd(sock))
        return self.ends[-1]

    @contextmanager
    def connected(
        self, policy: Policy | None = None, timeout: float | None = TIMEOUT
    ) -> Iterator[tuple[SafeSocket, PeerEnd]]:
        """A SafeSocket and the other end of its connection."""
        with create_connection(self.address, timeout, policy=policy) as sock:
            yield sock, self.accept()

    def close(self) -> None:
        for end in self.ends:
            end.close()
        self.listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
