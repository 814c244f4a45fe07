"""One connection through the proxy, and what is done to it."""

from __future__ import annotations

import fcntl
import random
import selectors
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from chaos import faults, stream
from chaos.messages import tell

if TYPE_CHECKING:
    from chaos.proxy import Loop

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_LARGE = 65536
# What one side has not taken yet; beyond, the other is not read.
_MOST = 4 * _LARGE


class Link:
    """`end` is how the client ended, as this side sees it: "fin", "rst"; "own" where the proxy has
    reset the connection, "none" where it has waited in vain."""

    def __init__(
        self,
        loop: Loop,
        client: socket.socket,
        address: tuple[str, int],
        server: tuple[str, int],
        rng: random.Random,
        forget: Callable[[Link], None],
    ) -> None:
        self.born = time.monotonic()
        self._loop, self._forget = loop, forget
        self._client, self._address = client, address
        self._fault = faults.draw(rng)
        self._by_reset = rng.random() < 0.5
        self._over = False
        self._server: socket.socket | None = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._to_client, self._to_server = bytearray(), bytearray()
        self._first = b""
        self._received = self._written = self._from_server = 0
        self._end = ""
        # What has been done: to the client a FIN; the fault, and whether it goes on.
        self._fin_sent = self._struck = self._silent = self._truncates = False
        self._server_ended = False
        self._events: dict[socket.socket, int] = {}
        client.setblocking(False)
        self._server.setblocking(False)
        self._server.connect_ex(server)
        self._connected = False
        if self._fault.kind != faults.NONE and self._fault.position == 0:
            self._strike()
        self._listen()

    def is_over(self) -> bool:
        return self._over

    # What is ready ----------------------------------------------------------------------------

    def _listen(self) -> None:
        """For what there is to do now."""
        if self.is_over():
            return
        wanted = 0
        if not self._silent:
            wanted = READ if not self._end and len(self._to_server) < _MOST else 0
            wanted |= WRITE if self._to_client else 0
        self._ask(self._client, wanted, self._client_is_ready)
        if self._server is not None:
            wanted = 0
            if not self._silent:
                wanted = READ if not self._server_ended and len(self._to_client) < _MOST else 0
                wanted |= WRITE if self._to_server or not self._connected else 0
            self._ask(self._server, wanted, self._server_is_ready)

    def _ask(self, sock: socket.socket, events: int, call: Callable[[int], None]) -> None:
        if self._events.get(sock, 0) != events:
            self._events[sock] = events
            self._loop.listen(sock, events, call)

    def _client_is_ready(self, events: int) -> None:
        if self.is_over():
            return
        if events & WRITE:
            self._send_to_client()
        if events & READ and not self._end and not self._silent:
            self._read_client()
        self._go_on()

    def _server_is_ready(self, events: int) -> None:
        if self._server is None:
            return  # Just now.
        if events & WRITE:
            self._connected = True
            self._send_to_server()
        if events & READ and self._server is not None and not self._silent:
            self._read_server()
        self._go_on()

    def _go_on(self) -> None:
        if self.is_over():
            return
        if self._server_ended and not self._to_client and not self._fin_sent and not self._silent:
            self._send_fin()
        if self._end and (self._fin_sent or self._end == "rst"):
            self._finish()
        else:
            self._listen()

    # Passing on -------------------------------------------------------------------------------

    def _read_client(self) -> None:
        try:
            data = self._client.recv(_LARGE)
        except BlockingIOError:
            return
        except OSError:
            self._client_ended("rst")
            return
        if not data:
            self._client_ended("fin")
            return
        before, self._received = self._received, self._received + len(data)
        if len(self._first) < stream.FAR:
            self._first += data[: stream.FAR]
        if self._is_due(before, self._received, down=False):
            head = self._fault.position - before
            self._to_server += data[:head]
            self._send_to_server()
            self._strike()
            if self._server is not None:
                self._to_server += data[head:]
        elif self._server is not None:
            self._to_server += data
        self._send_to_server()

    def _client_ended(self, how: str) -> None:
        self._end = self._end or how
        if self._server is None or how == "rst":
            self._drop_server()
        elif not self._to_server:
            self._shut_server()

    def _send_to_server(self) -> None:
        if self._server is None or not self._connected or self._silent:
            return
        try:
            if self._to_server:
                del self._to_server[: self._server.send(self._to_server)]
        except BlockingIOError:
            return
        except OSError:
            self._server_has_ended()
            return
        if self._end and not self._to_server:
            self._shut_server()

    def _shut_server(self) -> None:
        if self._server is not None and self._connected:
            try:
                self._server.shutdown(socket.SHUT_WR)
            except OSError:
                self._server_has_ended()

    def _read_server(self) -> None:
        assert self._server is not None
        try:
            data = self._server.recv(_LARGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
            if self._by_reset:  # As where the client has the server's kernel before it.
                self._reset()
                return
        if not data:
            self._server_has_ended()
            return
        if self._truncates:
            return
        before, self._from_server = self._from_server, self._from_server + len(data)
        if self._is_due(before, self._from_server, down=True):
            head = self._fault.position - before
            self._to_client += data[:head]
            self._send_to_client()
            self._strike()
            data = data[head:]
        if self._server is not None and not self._truncates:
            self._to_client += data
        if not self._silent:
            self._send_to_client()

    def _send_to_client(self) -> None:
        if self.is_over():
            return
        try:
            if self._to_client:
                size = self._client.send(self._to_client)
                self._written += size
                del self._to_client[:size]
        except BlockingIOError:
            pass
        except OSError:
            self._client_is_gone()

    def _client_is_gone(self) -> None:
        """A send has used up the error that reading would have told; what came before is read."""
        self._to_client.clear()
        self._drop_server()
        self._end = self._end or "rst"
        try:
            while data := self._client.recv(_LARGE):
                self._received += len(data)
                self._first += data[: stream.FAR - len(self._first)]
        except OSError:
            pass

    def _server_has_ended(self) -> None:
        self._server_ended = True
        self._drop_server()

    def _drop_server(self) -> None:
        self._to_server.clear()
        if self._server is not None:
            self._ask(self._server, 0, self._server_is_ready)
            self._server.close()
            self._server = None
            self._server_ended = True

    # Faults -----------------------------------------------------------------------------------

    def _is_due(self, before: int, now: int, *, down: bool) -> bool:
        fault = self._fault
        is_mine = fault.kind != faults.NONE and fault.down == down and not self._struck
        return is_mine and before <= fault.position < now

    def _strike(self) -> None:
        self._struck = True
        self._do(self._fault.kind)

    def _do(self, kind: str) -> None:
        if kind == faults.CUT:
            self._drop_server()
        elif kind == faults.TRUNCATE:
            self._truncates = True
        elif kind == faults.RESET:
            self._reset()
        else:
            self._silent = True
            self._loop.later(self._fault.seconds, self._speak_again)

    def _speak_again(self) -> None:
        if self.is_over():
            return
        self._silent = False
        if self._fault.kind == faults.HOLE:
            self._do(self._fault.then)
        self._go_on()

    def _send_fin(self) -> None:
        self._fin_sent = True
        try:
            self._client.shutdown(socket.SHUT_WR)
        except OSError:
            self._client_is_gone()

    def _reset(self) -> None:
        if self._end:
            return
        self._end = "own"
        self._finish(reset=True)

    def give_up(self) -> None:
        if not self.is_over():
            self._end = "none"
            self._finish(reset=True)

    def _finish(self, *, reset: bool = False) -> None:
        unread = int.from_bytes(
            fcntl.ioctl(self._client, termios.FIONREAD, bytes(4)), sys.byteorder
        )
        self._drop_server()
        self._ask(self._client, 0, self._client_is_ready)
        if reset:
            linger: Any = struct.pack("ii", 1, 0)
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._client.close()
        self._forget(self)
        self._tell(unread, reset)
        self._over = True

    def _tell(self, unread: int, reset: bool) -> None:
        tell(
            "peer",
            token=stream.token_in(self._first),
            port=self._address[1],
            received=self._received,
            unread=unread,
            written=self._written,
            end=self._end,
            fault=self._fault.kind if self._struck else faults.NONE,
            reset=reset,
            fin=self._fin_sent,
        )
