"""A TLS peer for our own tests: the certificates, and handshakes that a test makes itself."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import trustme
from peer import TIMEOUT, Peer, PeerEnd

from safesock.testing import End
from safesock.testing._tls_acts import TlsActs

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
    """The accepted end of one TLS connection, whose handshake a test makes when it wants to.
    `read_to_end` gives what is on the wire."""

    def __init__(self, end: PeerEnd, context: ssl.SSLContext) -> None:
        super().__init__(end.sock)
        self._acts: TlsActs = TlsActs(self._acts, context)
        self.tls = self._acts.tls

    def handshake(self) -> None:
        self._turn(self.tls.do_handshake)

    def say_in_clear(self, data: bytes) -> None:
        """Bytes that are no TLS."""
        self.sock.sendall(data)

    def answer_close_notify(self) -> None:
        """Waits for the other side's close_notify, and answers it."""
        self._turn(self.tls.unwrap)

    def handshake_and_say(self, data: bytes) -> None:
        """In one segment with the end of the handshake."""

        def both() -> None:
            self.tls.do_handshake()
            self.tls.write(data)

        self._turn(both)

    def read_to_end(self) -> tuple[bytes, End]:
        return PeerEnd(self.sock).read_to_end()

    def read_tls_to_end(self) -> bytes:
        """All that comes before close_notify; an EOFError where there is none."""
        data, how = super().read_to_end()
        if how is not End.CLOSE_NOTIFY:
            raise EOFError("end of file amid TLS")
        return data

    def _turn(self, call: Callable[[], object]) -> None:
        self._run(self._acts.turn(call), "the client's part of TLS")


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
