"""One attempt to connect: the name, each of its addresses in turn, the local port, TLS."""

from __future__ import annotations

import contextlib
import errno
import socket
import time

from safesock import _kernel
from safesock._budget import PortWait
from safesock._open import connect_from
from safesock._policy import Policy, mode_within
from safesock._reconnect import is_hopeless
from safesock._resolve import Answers, numeric, resolve
from safesock._socket import SafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from typing import Any

    from safesock._resolve import Resolved


def end(sock: SafeSocket) -> None:
    """Closes it, also where files of it are open."""
    sock._io_refs = 0
    sock.close()


def hurry(sock: SafeSocket, until: float) -> None:
    """Before the close of an attempt that has failed: it is not to outlast the deadline."""
    if sock._connection is not None and sock._connection.may_block():
        sock._close_by(mode_within(sock.policy.close, until - time.monotonic()))


class Dialler:
    """Where to connect to, and how."""

    def __init__(
        self,
        address: tuple[Any, ...],
        local_address: tuple[Any, ...] | None,
        policy: Policy,
        timeout: float | None,
        ssl_context: ssl.SSLContext | None,
        server_hostname: str | None,
        sleep: Callable[[float], None],
        refuse_if_closed: Callable[[], None],
    ) -> None:
        self.address = address
        self.local_address = local_address
        self.policy = policy
        self._timeout = timeout
        self.ssl_context = ssl_context
        self._server_hostname = server_hostname
        self._sleep = sleep
        self._refuse_if_closed = refuse_if_closed
        self._under_way: SafeSocket | None = None
        self._numeric = numeric(address)
        self._answers = Answers()

    def dial(self, until: float) -> SafeSocket:
        """A connection, made before *until*. Raises what the last address gave, or a certificate
        that did not verify, with notes of the others."""
        failures: list[OSError] = []
        try:
            for made, sockaddr in self._numeric or self._resolve(until):
                try:
                    return self._dial_one(made, sockaddr, until)
                except OSError as error:
                    error.add_note(f"at {sockaddr[0]} port {sockaddr[1]}")
                    failures.append(error)
            if not failures:
                raise OSError(f"{self.address[0]!r} resolves to no address")
            told = max(reversed(failures), key=is_hopeless)
            for failure in failures:
                if failure is not told:
                    told.add_note(f"{failure!r} {failure.__notes__[0]}")
            raise told
        finally:
            failures.clear()  # Their tracebacks hold this frame: a reference cycle.

    def _resolve(self, until: float) -> list[Resolved]:
        self._answers = Answers()
        self._refuse_if_closed()
        return resolve(self.address, until, self._answers)

    @contextlib.contextmanager
    def working_on(self, sock: SafeSocket, until: float) -> Iterator[None]:
        """While *sock* is in the making; it is closed when that fails."""
        self._under_way = sock
        try:
            self._refuse_if_closed()
            yield
        except BaseException:
            hurry(sock, until)
            end(sock)
            raise
        finally:
            self._under_way = None

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

    def seconds_for_one(self, until: float) -> float:
        """What the timeout and *until* leave for the next step. Raises TimeoutError for nothing."""
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return left if self._timeout is None else min(left, self._timeout)

    def _dial_one(self, made: tuple[int, int, int], sockaddr: Any, until: float) -> SafeSocket:
        sock = self._connect(made, sockaddr, until)
        if self.ssl_context is None:
            return sock
        from safesock._tls import before_handshake

        with self.working_on(sock, until):
            sock.settimeout(self.seconds_for_one(until))
            tls = before_handshake(sock, self.ssl_context, self._server_hostname)
        with self.working_on(tls, until):
            tls.do_handshake()
        return tls

    def _connect(self, made: tuple[int, int, int], sockaddr: Any, until: float) -> SafeSocket:
        """With the local port, once it is free."""
        seconds = self.seconds_for_one(until)
        wait = PortWait(until, time.monotonic() + seconds)
        while True:
            try:
                return self._connect_now(made, sockaddr, until, seconds)
            except OSError as error:
                pause = wait.pause(error, time.monotonic())
                if pause is None:
                    raise
                self._sleep(pause)
                left = until - time.monotonic()
                if left <= 0:
                    raise  # It says more than that the time is over.
                seconds = min(left, seconds)

    def _connect_now(
        self, made: tuple[int, int, int], sockaddr: Any, until: float, seconds: float
    ) -> SafeSocket:
        sock = SafeSocket(*made, policy=self.policy)
        with self.working_on(sock, until):
            sock.settimeout(seconds)
            connect_from(sock, self.local_address, sockaddr)
            if _kernel.local_name(sock) == _kernel.peer_name(sock):
                # A simultaneous open (RFC 9293, 3.5): its SYN met itself, as nobody listens there.
                raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")
        return sock
