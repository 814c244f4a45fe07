"""One attempt to connect: the name, each of its addresses in turn, the local port, TLS."""

from __future__ import annotations

import errno
import socket

from safesock import _kernel
from safesock._attempt import Failures, PortTurns, hurry, refuse_itself
from safesock._open import connect_from
from safesock._resolve import Answers, resolve
from safesock._socket import SafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from safesock._destination import Destination
    from safesock._resolve import Resolved


def end(sock: SafeSocket) -> None:
    """Closes it, also where files of it are open."""
    sock._io_refs = 0
    sock.close()


class _Work:
    """On a socket that is in the making."""

    __slots__ = ("_dialler", "_sock", "_until")

    def __init__(self, dialler: Dialler, sock: SafeSocket, until: float) -> None:
        self._dialler = dialler
        self._sock = sock
        self._until = until

    def __enter__(self) -> None:
        self._dialler._under_way = self._sock
        try:
            self._dialler._refuse_if_closed()
        except BaseException:
            self._fail()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._dialler._under_way = None
        else:
            self._fail()

    def _fail(self) -> None:
        try:
            hurry(self._sock, self._until)
            end(self._sock)
        finally:
            self._dialler._under_way = None


class Dialler:
    """Makes the connections of one connector."""

    def __init__(
        self,
        destination: Destination,
        sleep: Callable[[float], None],
        refuse_if_closed: Callable[[], None],
    ) -> None:
        self._to = destination
        self._sleep = sleep
        self._refuse_if_closed = refuse_if_closed
        self._under_way: SafeSocket | None = None
        self._answers = Answers()

    def dial(self, until: float) -> SafeSocket:
        """A connection, made before *until*. Raises what the last address gave, or a certificate
        that did not verify, with notes of the others."""
        failures = Failures(self._to.address[0])
        for made, sockaddr in self._to.numeric or self._resolve(until):
            with failures.at(sockaddr):
                return self._dial_one(made, sockaddr, until)
        raise failures.told()

    def _resolve(self, until: float) -> list[Resolved]:
        self._answers = Answers()
        self._refuse_if_closed()
        return resolve(self._to.address, until, self._answers)

    def working_on(self, sock: SafeSocket, until: float) -> _Work:
        """While *sock* is in the making; it is closed when that fails."""
        return _Work(self, sock, until)

    def forget(self) -> None:
        """In a forked child: what is under way is the parent's."""
        self._under_way = None

    def interrupt(self) -> None:
        """From another thread, once the connector is closed: wakes the one that is dialling."""
        sock = self._under_way
        self._answers.put(ConnectionAbortedError(errno.ECONNABORTED, "interrupted"))
        connection = sock._connection if sock is not None else None
        if sock is None or connection is None or connection.is_elsewhere():
            return
        if connection.peer is None:
            _kernel.shutdown(sock, socket.SHUT_RDWR)  # close(2) does not wake connect(2).
        else:
            end(sock)

    def _dial_one(self, made: tuple[int, int, int], sockaddr: Any, until: float) -> SafeSocket:
        sock = self._connect(made, sockaddr, until)
        if self._to.ssl_context is None:
            return sock
        from safesock._tls import before_handshake

        with self.working_on(sock, until):
            sock.settimeout(self._to.seconds_for_one(until))
            tls = before_handshake(sock, self._to.ssl_context, self._to.server_hostname)
        with self.working_on(tls, until):
            tls.do_handshake()
        return tls

    def _connect(self, made: tuple[int, int, int], sockaddr: Any, until: float) -> SafeSocket:
        """With the local port, once it is free."""
        turns = PortTurns(until, self._to.seconds_for_one(until))
        while True:
            seconds = turns.seconds()
            with turns:
                return self._connect_now(made, sockaddr, until, seconds)
            self._sleep(turns.pause)

    def _connect_now(
        self, made: tuple[int, int, int], sockaddr: Any, until: float, seconds: float
    ) -> SafeSocket:
        sock = SafeSocket(*made, policy=self._to.policy)
        with self.working_on(sock, until):
            sock._prepare(self._to.previous)
            sock.settimeout(seconds)
            connect_from(sock, self._to.local_address, sockaddr)
            refuse_itself(sock)
        return sock
