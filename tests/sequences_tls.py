"""The same sequences over TLS, and one more act of the peer's: close_notify."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

from sequences import FAR, Line
from tls_peer import NAME, Certificates

from safesock import secure

TLS_FAR = (*FAR, "close_notify")
_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
_STEPS = 100


class Contexts:
    """One for our side as it is, one for it governed, one for the peer."""

    def __init__(self, certificates: Certificates) -> None:
        self.plain, self.governed = certificates.client(), secure(certificates.client())
        self.server = certificates.server()
        self.server.num_tickets = 0  # They would be unread input.


class TlsLine(Line):
    def __init__(self, contexts: Contexts, *arguments: Any) -> None:
        self._contexts = contexts
        super().__init__(*arguments)

    def _shake(self) -> None:
        contexts = self._contexts
        context = contexts.plain if self.policy is None else contexts.governed
        self.sock = context.wrap_socket(
            self.sock, server_hostname=NAME, do_handshake_on_connect=False
        )
        self.far = contexts.server.wrap_socket(
            self.far, server_side=True, do_handshake_on_connect=False
        )
        left = {self.sock, self.far}
        for _ in range(_STEPS):
            for end in tuple(left):
                with contextlib.suppress(*_AGAIN):
                    end.do_handshake()
                    left.discard(end)
            if not left:
                return
        raise AssertionError("no handshake")

    def _recv(self) -> object:
        # After a shutdown it is cipher text, which is never the same.
        return f"{len(self.sock.recv(64))} bytes"

    def _far_do(self, name: str) -> None:
        with contextlib.suppress(BlockingIOError):
            # A RST is told here, as OpenSSL would not tell it.
            socket.socket.recv(self.far, 1, socket.MSG_PEEK)
        if name != "close_notify":
            super()._far_do(name)
            return
        with contextlib.suppress(*_AGAIN):
            self.far.unwrap()

    def _far_recv(self) -> bytes:
        try:
            # By the kernel's word: not all Pythons tell a RST from an end.
            if not self.far.pending() and not socket.socket.recv(self.far, 1, socket.MSG_PEEK):
                return b""
            if data := super()._far_recv():
                return data
        except ssl.SSLError as error:
            if isinstance(error, _AGAIN):
                raise
        # After a close_notify, an alert, or what is no TLS: only TCP's end counts.
        while socket.socket.recv(self.far, 65536):
            pass
        return b""
