"""A TLS peer whose every act a test chooses: `peer.Peer` with a TLS engine in memory, so that what
TLS says (close_notify) and what TCP says (FIN, RST) are separate acts."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import trustme
from peer import TIMEOUT, Peer, PeerEnd

NAME = "localhost"
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
Result = TypeVar("Result")


class Certificates:
    """A certificate authority for one test run."""

    def __init__(self) -> None:
        self.authority = trustme.CA()
        self.certificate = self.authority.issue_cert(NAME, "127.0.0.1", "::1")

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certificate.configure_cert(context)
        return context

    def client(self, version: str = "1.3") -> ssl.SSLContext:
        """A context that trusts the authority and speaks this version only."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = VERSIONS[version]
        self.authority.configure_trust(context)
        return context


class TlsEnd(PeerEnd):
    """The accepted end of one TLS connection. `fin` and `rst` are TCP's, without close_notify."""

    def __init__(self, end: PeerEnd, context: ssl.SSLContext) -> None:
        super().__init__(end.sock)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)

    def handshake(self) -> None:
        self._run(self.tls.do_handshake)

    def say(self, data: bytes) -> None:
        self.tls.write(data)
        self._flush()

    def say_in_clear(self, data: bytes) -> None:
        """Bytes that are no TLS."""
        self.sock.sendall(data)

    def close_notify(self) -> None:
        """Says that nothing more will come; does not wait for the answer."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self._flush()

    def answer_close_notify(self) -> None:
        """Waits for the other side's close_notify, and answers it."""
        self._run(self.tls.unwrap)

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._run(self.tls.read, count - len(data))
            assert part, f"end of file after {data!r}"
            data += part
        return data

    def handshake_and_say(self, data: bytes) -> None:
        """In one segment with the end of the handshake."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._in.write(self.sock.recv(65536))
            else:
                return self.say(data)

    def read_tls_to_end(self) -> bytes:
        """All that comes before close_notify; an EOFError where there is none."""
        data = bytearray()
        while part := self._run(self.tls.read, 65536):
            data += part
        return bytes(data)

    def _run(self, call: Callable[..., Result], *arguments: object) -> Result:
        while True:
            try:
                result = call(*arguments)
            except ssl.SSLWantReadError:
                self._flush()
                data = self.sock.recv(65536)
                if not data:
                    raise EOFError("end of file amid TLS") from None
                self._in.write(data)
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        data = self._out.read()
        if data:
            self.sock.sendall(data)


class TlsPeer(Peer):
    """A listening socket whose connections speak TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.context = context
        self._threads = ThreadPoolExecutor(4)

    def begin(self, call: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Runs *call* in another thread; wait for it with `done`."""
        return self._threads.submit(call, *arguments)

    def accept_tls(self) -> TlsEnd:
        """Accepts; the handshake is still to be made."""
        end = TlsEnd(super().accept(), self.context)
        self.ends.append(end)
        return end

    def accept_and_shake(self) -> TlsEnd:
        end = self.accept_tls()
        end.handshake()
        return end

    def close(self) -> None:
        super().close()
        self._threads.shutdown()


def done(future: Future[Result]) -> Result:
    return future.result(TIMEOUT)
