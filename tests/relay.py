"""A server's stand-in that passes on what clients send, and sees how they end."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from types import TracebackType
from typing import Self

from peer import TIMEOUT

from safesock.testing import End

_LARGE = 65536


class Relay:
    """Between `with`, it listens on `port`, and goes on to the server at *address*."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept)
        self._passing: list[threading.Thread] = []
        self._ends: list[End] = []

    def ends(self) -> list[End]:
        """How the clients have ended, once all of them have."""
        for thread in self._passing:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a client has not ended"
        return self._ends

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(TIMEOUT)
        self._listener.close()
        self.ends()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._passing.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, self.greet(client) as server:
            self._ends.append(_pass_on(client, server))

    def greet(self, client: socket.socket) -> socket.socket:
        """The connection to the server for this client."""
        del client
        return socket.create_connection(self._address)


def _pass_on(client: socket.socket, server: socket.socket) -> End:
    """Until the client ends. In one thread, as the kernel tells of a reset once only."""
    watched = [client, server]
    try:
        while True:
            readable = select.select(watched, [], [], TIMEOUT)[0]
            assert readable, "nothing happens"
            if client in readable:
                data = client.recv(_LARGE)
                if not data:
                    return End.FIN
                with contextlib.suppress(OSError):  # A server that has gone.
                    server.sendall(data)
            if server in readable:
                data = _received(server)
                if data:
                    client.sendall(data)
                else:
                    watched.remove(server)
                    client.shutdown(socket.SHUT_WR)
    except ConnectionResetError:
        return End.RST


def _received(server: socket.socket) -> bytes:
    try:
        return server.recv(_LARGE)
    except ConnectionResetError:
        return b""


class Proxy(Relay):
    """An HTTP proxy that knows CONNECT only, and that one address."""

    def greet(self, client: socket.socket) -> socket.socket:
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            asked += client.recv(1)
        assert asked.startswith(b"CONNECT %s:%d " % (self._address[0].encode(), self._address[1]))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return super().greet(client)
