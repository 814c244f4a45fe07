"""The peer for tests that are plain functions: what waits blocks the thread, up to its timeout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, Self, TypeVar

from safesock.testing._acts import End
from safesock.testing._base import AnyEnd, BaseEnd, BasePeer
from safesock.testing._client import ClientCall
from safesock.testing._wait import Steps, Waiting

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
READS = "the client reads what is sent to it: its window is full"


class PeerEnd(BaseEnd):
    """The accepted end of one connection. Its methods are named by what they put on the wire.

    timeout: the seconds after which what waits raises TimeoutError.

    What waits in another thread when this end is closed raises ConnectionAbortedError.
    """

    _waits = Waiting
    _waiting: Waiting

    def say(self, data: bytes) -> None:
        """Sends it. Raises OSError when the connection is over."""
        self._run(self._acts.say(data), READS)

    def read(self, count: int) -> bytes:
        """Exactly *count* bytes. Raises AssertionError when the client's end comes before that."""
        return self._run(self._acts.read(count), f"{count} bytes from the client")

    def read_until(self, separator: bytes) -> bytes:
        """All that comes up to *separator*, and it; what comes after is for the next read. Raises
        AssertionError when the client's end comes before that."""
        return self._run(self._acts.read_until(separator), f"{separator!r} from the client")

    def read_to_end(self) -> tuple[bytes, End]:
        """All that comes, and how it ended: End.FIN or End.RST; with TLS End.CLOSE_NOTIFY, too, and
        what TCP does after that is told by the next call."""
        return self._run(self._acts.read_to_end(), "the client's end, by FIN or RST")

    def goodbye_then_fin(self, data: bytes) -> None:
        """`say` and `fin`: the last words of a server, and nobody is there any more."""
        self.say(data)
        self.fin()

    def handshake(self) -> None:
        """Waits until the TLS handshake, which goes on by itself, is over. Raises ssl.SSLError when
        it has failed, EOFError or ConnectionResetError when the client ended in it."""
        self._run(self._acts.handshake(), "the TLS handshake")

    def close_notify(self) -> None:
        """TLS's own end: says that nothing more will come, and does not wait for the answer. TCP
        goes on, until `fin` or `rst`."""
        self._run(self._acts.close_notify(), "the TLS handshake, before close_notify is sent")

    def _run(self, steps: Steps[Result], what: str) -> Result:
        return self._waiting.run(steps, self.timeout, what)


class BlockingPeer(BasePeer[AnyEnd]):
    """A peer whose `accept` blocks, with ends of any class."""

    _waits = Waiting
    _waiting: Waiting

    def accept(self) -> AnyEnd:
        """The end of the next connection. With TLS its handshake goes on by itself, and what reads
        or writes waits for that, and raises what `handshake` does.

        Raises TimeoutError when none comes within the peer's timeout, ConnectionAbortedError when
        the peer is closed by another thread.
        """
        return self._waiting.run(self._take(), self.timeout, f"a connection to {self.address}")

    def run_client(
        self,
        call: Callable[Parameters, Result],
        *arguments: Parameters.args,
        **options: Parameters.kwargs,
    ) -> ClientCall[Result]:
        """Calls it in a thread of its own: for a client that blocks until the server has acted, as
        an HTTP request does. `result()` of what this gives waits for it, up to the peer's timeout.

        The thread holds nobody up: when the test fails, the peer's `close` ends the client's
        connection, and does not wait for the client.
        """
        return ClientCall(functools.partial(call, *arguments, **options), self.timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ScriptedPeer(BlockingPeer[PeerEnd]):
    """A real server on loopback, each act of which is chosen by a test.

    host, port: where it listens; port 0 is any that is free. A host with colons is IPv6.
    tls: a server's ssl.SSLContext: each connection begins with a TLS handshake.
    timeout: the seconds after which what waits raises TimeoutError, here and at its ends.
    receive_buffer: SO_RCVBUF of its connections in bytes, for a small window from the beginning.
    """

    _end = PeerEnd
