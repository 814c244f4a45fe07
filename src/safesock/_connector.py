"""`Connector`: one connection after the other to the same peer, within bounds."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
import weakref

import tenacity

from safesock._dial import Dialler
from safesock._loss import Cause
from safesock._policy import Abort, Policy, policy_or_default, seconds_in
from safesock._reconnect import DEFAULT, Reconnect, Recovery
from safesock._reconnecting import ReconnectingSocket
from safesock._socket import SafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Any, Self


class Connector:
    """Connects to *address*, a pair of host and port, again and again, a bounded number of times.

    There are three ways to use it, one at a time:

    - `connect()` gives a connection, a `SafeSocket`.
    - `for sock in connector:` gives one per turn, and closes it when the turn is over.
    - `socket()` gives one object for life, which dials again after a loss.

    The connection before is closed before the next is dialled. Every attempt resolves the name
    afresh (getaddrinfo(3)) and tries all its addresses, one after the other.

    local_address: a pair to bind(2) each socket to, such as ("", 40000), with SO_REUSEADDR. Where
        the port is held, the attempt fails with `LocalPortBusyError`; where the kernel will let it
        go by itself (TIME_WAIT), that is waited for if the deadline allows it.
    policy: the `Policy` of every connection.
    reconnect: a `Reconnect`: attempts, deadline and backoff.
    timeout: seconds for each address, for connect(2) and for the TLS handshake, and the socket's
        timeout as long as `on_connect` runs; None leaves only the deadline. The socket that you get
        has the default timeout (`socket.getdefaulttimeout`), or what `on_connect` has set.
    ssl_context: an `ssl.SSLContext`, for TLS; it is not changed.
    server_hostname: the name that the certificate is for, where that is not the host.
    on_connect: called with every connection before anybody else gets it, to log in for instance.
        When it raises, the connection is closed and the attempt has failed. At the deadline the
        connection is ended under it.
    abort_previous: end a connection with RST (`Abort`) instead of by its policy when, and only
        when, it is still open and the fixed local port is needed for the next one. Whoever closes
        first gets TIME_WAIT, which may hold the port for a minute; RST leaves nothing behind, and
        drops what has not been delivered. For what you have closed yourself it comes too late.

    Raises ValueError and TypeError for arguments that cannot be meant.
    """

    __module__ = "safesock"

    def __init__(
        self,
        address: tuple[Any, ...],
        *,
        local_address: tuple[Any, ...] | None = None,
        policy: Policy | None = None,
        reconnect: Reconnect | None = None,
        timeout: float | None = 10.0,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        on_connect: Callable[[SafeSocket], object] | None = None,
        abort_previous: bool = False,
    ) -> None:
        _check(address, local_address, reconnect, timeout, ssl_context, server_hostname, on_connect)
        self._recovery = Recovery(reconnect or DEFAULT, address)
        self._dialler = Dialler(
            address,
            local_address,
            policy_or_default(policy),
            timeout,
            ssl_context,
            server_hostname or address[0],
            self._sleep,
        )
        self._on_connect = on_connect
        self._aborts = bool(abort_previous and local_address and local_address[1])
        self._retrying = tenacity.Retrying(sleep=self._sleep, **self._recovery.strategies())
        self._closed = threading.Event()
        # Held while dialling.
        self._lock = threading.RLock()
        self._dialling = False
        # Weak: a connection that its owner drops ends at once.
        self._last: weakref.ref[SafeSocket] | None = None
        self._for_life: weakref.ref[ReconnectingSocket] | None = None

    def __repr__(self) -> str:
        sock = self._last() if self._last is not None else None
        return f"<safesock.Connector to {self._dialler.address}, connection={sock!r}>"

    # Connecting -----------------------------------------------------------------------------------

    def connect(self) -> SafeSocket:
        """A connection, a `SafeSSLSocket` with TLS. The one before is closed first.

        Raises `ReconnectError` when the budget of this outage is used up, and
        ConnectionAbortedError when the connector is closed.
        """
        self._refuse_for_life()
        return self._connect(None)

    def socket(self) -> SafeSocket:
        """Connects, and gives one socket for life, a `ReconnectingSocket` (with TLS it is a
        `SafeSSLSocket` as well).

        Raises as `connect`, and ValueError where the policy's on_loss is not "close".
        """
        self._refuse_for_life()
        policy = self._dialler.policy
        if policy.on_loss != "close":
            raise ValueError(
                'a socket that reconnects closes what it has lost: its policy takes on_loss="close"'
                f", not {policy.on_loss!r}"
            )
        kind = ReconnectingSocket
        if self._dialler.ssl_context is not None:
            from safesock._reconnecting_tls import ReconnectingSSLSocket as kind  # noqa: N813
        sock = kind.unconnected(policy, self._redial, self.close)
        self._connect(sock)
        self._for_life = weakref.ref(sock)
        return sock

    def confirm(self) -> None:
        """Says that the connection is good, for instance once the peer has answered sensibly: the
        outage is over, and the next one has all its attempts and its time."""
        self._recovery.confirm()

    def close(self) -> None:
        """Ends the connection by its policy, for good. Whoever is in `connect`, in another thread,
        gets ConnectionAbortedError; iteration ends."""
        if self._closed.is_set():
            return
        self._recovery.closed = True
        self._closed.set()
        self._dialler.interrupt()
        self._end_last(abort=False)

    def __iter__(self) -> Iterator[SafeSocket]:
        """One connection per turn. It is closed by its policy at the end of the turn, or when the
        loop is left. Raises `ReconnectError`; ends when the connector is closed."""
        self._refuse_for_life()
        return self._turns()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What is behind it ---------------------------------------------------------------------------

    def _turns(self) -> Iterator[SafeSocket]:
        try:
            while True:
                try:
                    sock = self._connect(None)
                except ConnectionAbortedError:
                    if self._closed.is_set():
                        return
                    raise
                yield sock
        finally:
            self._end_last(abort=False)

    def _connect(self, into: ReconnectingSocket | None) -> SafeSocket:
        with self._lock:
            if self._dialling:
                raise RuntimeError("on_connect cannot connect by its own connector")
            self._recovery.refuse_if_closed()
            if into is None:
                self._end_last(abort=self._aborts)
            self._dialling = True
            try:
                with self._recovery.wanted():
                    return self._retrying(self._attempt, into)
            finally:
                self._dialling = False

    def _redial(self, sock: ReconnectingSocket) -> None:
        """For a call on the socket for life, which has lost its connection."""
        with self._lock:
            # Another thread may have done it; on_connect is to see the loss of this attempt.
            if not self._dialling and sock.has_no_connection():
                self._connect(sock)

    def _attempt(self, into: ReconnectingSocket | None) -> SafeSocket:
        with self._recovery.attempt() as until:
            sock = self._dialler.dial(until)
            try:
                sock.settimeout(socket.getdefaulttimeout())
                if into is not None:
                    into.take_over(sock)
                    sock = into
                if self._on_connect is not None:
                    self._greet(sock, self._on_connect, until)
                self._recovery.refuse_if_closed()
            except BaseException:
                _end(sock, for_good=into is None)
                raise
            assert sock._connection is not None
            self._last = weakref.ref(sock)
            self._recovery.made(sock._connection)
            return sock

    def _greet(
        self, sock: SafeSocket, on_connect: Callable[[SafeSocket], object], until: float
    ) -> None:
        seconds, timeout = self._dialler.seconds_for_one(until), sock.gettimeout()
        sock.settimeout(seconds)
        with _cut_at(until, sock):
            on_connect(sock)
        if sock.fileno() < 0:
            raise ConnectionError("the connection ended while on_connect ran")
        if sock.gettimeout() == seconds:
            sock.settimeout(timeout)

    def _sleep(self, seconds: float) -> None:
        self._closed.wait(seconds)
        self._recovery.refuse_if_closed()

    def _end_last(self, *, abort: bool) -> None:
        sock = self._last() if self._last is not None else None
        if sock is not None:
            if abort and sock.fileno() >= 0:
                sock._close_by(Abort())
            _end(sock, for_good=True)

    def _refuse_for_life(self) -> None:
        sock = self._for_life() if self._for_life is not None else None
        if sock is not None and not sock._is_closed():
            raise RuntimeError("this connector belongs to its socket(): make another one")


def _end(sock: SafeSocket, *, for_good: bool) -> None:
    """Closes it, also where files of it are open."""
    if for_good:
        sock._io_refs = 0
        sock.close()
    else:
        sock._end_connection()


@contextlib.contextmanager
def _cut_at(until: float, sock: SafeSocket) -> Iterator[None]:
    """Ends the connection at that time, which wakes whoever waits for it."""

    def cut() -> None:
        connection = sock._connection
        if connection is not None and connection.may_block():
            sock._close_by(Abort())  # The time is up: nothing is waited for.
        sock._lose(Cause.ABORTED, None)
        sock._end_connection()

    timer = threading.Timer(until - time.monotonic(), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if time.monotonic() >= until:
            raise TimeoutError("on_connect was not done before the deadline")


def _check(
    address: Any,
    local_address: Any,
    reconnect: Any,
    timeout: Any,
    ssl_context: Any,
    server_hostname: Any,
    on_connect: Any,
) -> None:
    _check_pair("address", address, '("example.org", 443)')
    if local_address is not None:
        _check_pair("local_address", local_address, '("", 40000)')
        _check_port("local_address", local_address[1], least=0)
    if isinstance(address[1], int):
        _check_port("address", address[1], least=1)
    if reconnect is not None and not isinstance(reconnect, Reconnect):
        raise TypeError(f"reconnect takes a safesock.Reconnect or None: not {reconnect!r}")
    if timeout is not None and not seconds_in("timeout", timeout):
        raise ValueError(f"timeout takes seconds above 0, or None: not {timeout!r}")
    if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
        raise TypeError(f"ssl_context takes an ssl.SSLContext or None: not {ssl_context!r}")
    if server_hostname is not None and ssl_context is None:
        raise ValueError("server_hostname is for TLS: it takes an ssl_context too")
    if on_connect is not None and not callable(on_connect):
        raise TypeError(f"on_connect takes a function of the socket, or None: not {on_connect!r}")


def _check_pair(name: str, value: Any, example: str) -> None:
    if not isinstance(value, (tuple, list)) or len(value) < 2 or not isinstance(value[0], str):
        raise TypeError(f"{name} takes a pair of host and port, such as {example}: not {value!r}")


def _check_port(name: str, port: Any, *, least: int) -> None:
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"{name} takes a port number: not {port!r}")
    if not least <= port <= 65535:
        raise ValueError(f"{name} takes a port from {least} to 65535: not {port!r}")
