"""TLS for `safesock connect`, in memory: what comes and goes on the wire is bytes.

Why not a `SafeSSLSocket`: after the end of input the peer is still to be read. OpenSSL can do that,
but `ssl.SSLSocket.unwrap` sends close_notify and looks for the peer's in one call, and data that
it meets there instead is a fatal error (APPLICATION_DATA_AFTER_CLOSE_NOTIFY). Here it meets only
what it was given, and so nothing.
"""

from __future__ import annotations

import contextlib
import ssl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from safesock._socket import SafeSocket

_CHUNK = 65536


class Tls:
    """The TLS of one connection after the other, each begun by `begin`."""

    def __init__(self, context: ssl.SSLContext, hostname: str) -> None:
        # Without renegotiation, writing never has to read.
        context.options |= ssl.OP_NO_RENEGOTIATION
        self._context = context
        self._hostname = hostname

    def begin(self, sock: SafeSocket) -> None:
        """The handshake: blocking, for `Connector(on_connect=...)`."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._engine = self._context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=self._hostname
        )
        # The peer's close_notify has come; ours has been made.
        self.ended = self.has_ended = False
        self.error: ssl.SSLError | None = None
        while not self._shake(sock):
            data = sock.recv(_CHUNK)
            if not data:
                raise ConnectionError("the peer closed the connection in the TLS handshake")
            self._incoming.write(data)

    def _shake(self, sock: SafeSocket) -> bool:
        try:
            self._engine.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(self.output())
            return False
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                sock.sendall(self.output())  # The peer is told, if it is there.
            raise
        sock.sendall(self.output())
        return True

    def output(self) -> bytes:
        """What is to be sent."""
        return self._outgoing.read()

    def ready(self) -> int:
        """The bytes in `output`."""
        return self._outgoing.pending

    def has_input(self) -> bool:
        """Whether there is something to decrypt that `begin` has read."""
        return self._incoming.pending > 0

    def encrypt(self, data: Buffer) -> int:
        """How much of it is in `output` now."""
        return self._engine.write(data)

    def decrypt(self, data: bytes) -> bytes:
        """What has come whole. Then `ended` or `error` may be set."""
        self._incoming.write(data)
        plain = bytearray()
        try:
            while part := self._engine.read(_CHUNK):
                plain += part
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            self.error = error
        return bytes(plain)

    def end(self) -> None:
        """close_notify, in `output`. All that has come must have been decrypted."""
        if not self.has_ended:
            self.has_ended = True
            try:
                self._engine.unwrap()
            except ssl.SSLError:
                pass  # The peer's has not come yet; or after an error there is none to be sent.
