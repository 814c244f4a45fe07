"""A server's stand-in that passes on what clients send, and sees how they end."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from typing import Self

import kernel
from peer import TIMEOUT

from safesock.testing import End

_LARGE = 65536


class Relay:
    """Between `with`, it listens on `port`, and goes on to the server at *address*."""

    def __init__(self, address: tuple[str, int], host: str = "127.0.0.1") -> None:
        self._address = address
        self._listener = socket.create_server((host, 0))
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

    def __exit__(self, *_: object) -> None:
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

    def _serve(self, accepted: socket.socket) -> None:
        with self.secure(accepted) as client, self.greet(client) as server:
            self._ends.append(_pass_on(client, server))

    def secure(self, client: socket.socket) -> socket.socket:
        """The same, or its TLS."""
        return client

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
                data = _received(client)
                if not data:
                    return _end_of(client)
                with contextlib.suppress(OSError):  # A server that has gone.
                    server.sendall(data)
            if server in readable:
                data = _or_nothing(server)
                if data:
                    client.sendall(data)
                else:
                    watched.remove(server)
                    with contextlib.suppress(OSError):  # Where it has been reset, which recv tells.
                        client.shutdown(socket.SHUT_WR)
    except ConnectionResetError:
        return End.RST


def _end_of(client: socket.socket) -> End:
    # The ssl module calls a reset the end of file, before Python 3.13.
    hidden = isinstance(client, ssl.SSLSocket) and kernel.state_of(client) == "CLOSE"
    return End.RST if hidden else End.FIN


def _received(sock: socket.socket) -> bytes:
    data = sock.recv(_LARGE)
    while isinstance(sock, ssl.SSLSocket) and sock.pending():
        data += sock.recv(_LARGE)
    return data


def _or_nothing(server: socket.socket) -> bytes:
    try:
        return _received(server)
    except ConnectionResetError:
        return b""


class Proxy(Relay):
    """An HTTP proxy that knows CONNECT only, and that one address; over TLS with a *context*."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None = None) -> None:
        super().__init__(address)
        self._context = context

    def secure(self, client: socket.socket) -> socket.socket:
        if self._context is None:
            return client
        return self._context.wrap_socket(client, server_side=True)

    def greet(self, client: socket.socket) -> socket.socket:
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            asked += client.recv(1)
        assert asked.startswith(b"CONNECT %s:%d " % (self._address[0].encode(), self._address[1]))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return super().greet(client)
