"""`Connector`: one connection after the other to the same peer, within bounds."""

from __future__ import annotations

import contextlib
import inspect
import socket
import threading
import time
import weakref

import tenacity

from safesock import _forks
from safesock._attempt import CUT, hurry, refuse_lost
from safesock._destination import Destination, check_on_connect
from safesock._dial import Dialler, end
from safesock._loss import Cause
from safesock._policy import Abort
from safesock._reconnect import Recovery
from safesock._reconnecting import ReconnectingSocket
from safesock._socket import SafeSocket
from safesock._value import said

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Any, Self

    from safesock._connection import Connection
    from safesock._policy import Policy
    from safesock._reconnect import Reconnect


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
        self._to = Destination(
            address, local_address, policy, timeout, ssl_context, server_hostname
        )
        check_on_connect(on_connect, "sock")
        if inspect.iscoroutinefunction(on_connect):
            raise TypeError("on_connect takes a plain function; safesock.asyncio has coroutines")
        if not isinstance(abort_previous, bool):
            raise TypeError(f"abort_previous takes True or False: not {said(abort_previous)}")
        self._recovery = Recovery(reconnect, self._to)
        self._dialler = Dialler(self._to, self._sleep, self._recovery.refuse_if_closed)
        self._on_connect = on_connect
        self._aborts = abort_previous and self._to.has_fixed_port()
        self._retrying = tenacity.Retrying(sleep=self._sleep, **self._recovery.strategies())
        # Held until the connector is closed. Not a threading.Event, which a KeyboardInterrupt in
        # the middle of its `wait` may leave locked for ever.
        self._open = threading.Lock()
        self._open.acquire()
        # Held while dialling.
        self._lock = threading.RLock()
        self._dialling = False
        # Weak: a connection that its owner drops ends at once.
        self._last: weakref.ref[SafeSocket] | None = None
        self._for_life: weakref.ref[ReconnectingSocket] | None = None
        _forks.remember(self)

    def __repr__(self) -> str:
        sock = self._last() if self._last is not None else None
        return f"<safesock.Connector to {self._to.address}, connection={sock!r}>"

    # Connecting -----------------------------------------------------------------------------------

    def connect(self) -> SafeSocket:
        """A connection, a `SafeSSLSocket` with TLS. The one before is closed first.

        Raises `ReconnectError` when the budget of this outage is used up, and
        ConnectionAbortedError when the connector is closed.
        """
        self._refuse_for_life()
        return self._connect(None)

    def socket(self) -> SafeSocket:
        """Connects, and gives one socket for life: see `ReconnectingSocket`. With TLS it is a
        `SafeSSLSocket` as well.

        Raises as `connect`, ValueError where the policy's on_loss is not "close", and RuntimeError
        for a second one: a connector belongs to its socket.
        """
        self._refuse_for_life()
        policy = self._to.policy
        if policy.on_loss != "close":
            raise ValueError(
                'a socket that reconnects closes what it has lost: its policy takes on_loss="close"'
                f", not {policy.on_loss!r}"
            )
        kind = ReconnectingSocket
        if self._to.ssl_context is not None:
            from safesock._reconnecting_tls import ReconnectingSSLSocket as kind  # noqa: N813
        sock = kind._unconnected(policy, self._redial, self._stop)
        self._for_life = weakref.ref(sock)
        try:
            self._connect(sock)
        except BaseException:
            self._for_life = None
            raise
        return sock

    def confirm(self) -> None:
        """Grants a new budget: all attempts, all the time, and the backoff from its beginning.

        To be called when a connection has proved good, for instance once the peer has answered
        sensibly; and after a `ReconnectError`, to try again later.
        """
        self._recovery.confirm()

    def close(self) -> None:
        """Ends the connection by its policy, for good; from any thread, or a signal handler.

        Whoever is in `connect` gets ConnectionAbortedError, and iteration ends. A read that is
        under way in another thread gives b"" (there is no `loss` then); the one that a signal
        handler has interrupted raises OSError (EBADF), as in the standard library.
        """
        self._stop()
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

    def _after_fork(self) -> None:
        """In the child: the parent's other threads are not here, and let go of no lock."""
        self._lock = threading.RLock()
        self._dialling = False
        if not self._recovery.closed:
            self._open = threading.Lock()
            self._open.acquire()
        self._dialler.forget()
        sock = self._for_life() if self._for_life is not None else None
        if sock is not None:
            sock._after_fork()

    def _stop(self) -> None:
        """There is no further connection."""
        self._recovery.closed = True
        try:
            self._open.release()
        except RuntimeError:
            pass  # It has been before.
        self._dialler.interrupt()

    def _turns(self) -> Iterator[SafeSocket]:
        sock = None
        try:
            while True:
                try:
                    sock = self._connect(None)
                except ConnectionAbortedError:
                    if self._recovery.closed:
                        return
                    raise
                yield sock
        finally:
            if sock is not None:
                end(sock)

    def _connect(self, into: ReconnectingSocket | None) -> SafeSocket:
        with self._lock:
            if self._dialling:
                raise RuntimeError("on_connect cannot connect by its own connector")
            self._recovery.refuse_if_closed()
            if not self._aborts and into is None:
                self._end_last(abort=False)
            self._dialling = True
            try:
                with self._recovery:
                    return self._attempt_once_or_more(into)
            except BaseException:
                if into is None:
                    self._end_last(abort=False)
                raise
            finally:
                self._dialling = False

    def _redial(self, sock: ReconnectingSocket) -> None:
        """For a call on the socket for life, which has lost its connection."""
        with self._lock:
            if sock._has_no_connection():  # Else another thread has done it.
                self._connect(sock)

    def _attempt_once_or_more(self, into: ReconnectingSocket | None) -> SafeSocket:
        if not self._recovery.goes_on():
            try:
                return self._attempt(into)
            except Exception as error:
                self._recovery.leave_to_loop(error)
        return self._retrying(self._attempt, into)

    def _attempt(self, into: ReconnectingSocket | None) -> SafeSocket:
        until = self._recovery.begins()
        try:
            return self._make(until) if into is None else self._make_into(into, until)
        except BaseException as error:
            self._recovery.failed(error)
            raise

    def _make(self, until: float) -> SafeSocket:
        self._end_last(abort=self._aborts)  # Now the port is needed.
        sock = self._dialler.dial(until)
        sock.settimeout(socket.getdefaulttimeout())
        with self._dialler.working_on(sock, until):
            return self._introduce(sock, until)

    def _make_into(self, into: ReconnectingSocket, until: float) -> SafeSocket:
        into._wait_for_calls(until)
        sock = self._dialler.dial(until)
        try:
            into._take_over(sock)
            return self._introduce(into, until)
        except BaseException:
            if into._connection is not None:
                hurry(into, until)
                into._end_connection()
            raise
        finally:
            into._open_to_all()

    def _introduce(self, sock: SafeSocket, until: float) -> SafeSocket:
        self._last = weakref.ref(sock)  # From here on, `close` ends it.
        self._recovery.refuse_if_closed()
        if self._on_connect is not None:
            self._greet(sock, self._on_connect, until)
            self._recovery.refuse_if_closed()
        assert sock._connection is not None
        self._recovery.made(sock._connection)
        return sock

    def _greet(
        self, sock: SafeSocket, on_connect: Callable[[SafeSocket], object], until: float
    ) -> None:
        timeout = sock.gettimeout()
        # A value that nobody else sets, to know whether on_connect has set one.
        seconds = self._to.seconds_for_one(until) * 0.999999
        sock.settimeout(seconds)
        in_force = sock.gettimeout()
        try:
            with _cut_at(until, sock):
                on_connect(sock)
        finally:
            # Without a descriptor too: a socket for life takes it to the next connection.
            if sock.gettimeout() == in_force and (sock.fileno() >= 0 or not sock._closed):
                sock.settimeout(timeout)
        refuse_lost(sock)

    def _sleep(self, seconds: float) -> None:
        if self._open.acquire(timeout=seconds):
            self._open.release()
        self._recovery.refuse_if_closed()

    def _end_last(self, *, abort: bool) -> None:
        sock = self._last() if self._last is not None else None
        connection = sock._connection if sock is not None else None
        if sock is None or (connection is not None and connection.close_is_due):
            return
        if abort and connection is not None and not connection.is_elsewhere():
            sock._close_by(Abort())
        end(sock)

    def _refuse_for_life(self) -> None:
        sock = self._for_life() if self._for_life is not None else None
        if sock is not None and not sock._is_closed():
            raise RuntimeError("this connector belongs to its socket(): make another one")


@contextlib.contextmanager
def _cut_at(until: float, sock: SafeSocket) -> Iterator[None]:
    """Ends the connection at that time, which wakes whoever waits for it."""

    # Whoever takes it out ends it. Not the end of the thread is waited for: where the interpreter
    # is on its way out there is none, and this runs there too, as a generator that is collected.
    turn = [(weakref.ref(sock), sock._connection)]
    timer = threading.Timer(until - time.monotonic(), _cut, (turn,))
    timer.daemon = True
    try:
        timer.start()
        yield
    except Exception as error:
        if time.monotonic() >= until:
            raise TimeoutError(CUT) from error
        raise
    finally:
        timer.cancel()
        try:
            turn.pop()
        except IndexError:
            timer.join()  # It is at it: the connection has ended when this is done.
    if time.monotonic() >= until:
        raise TimeoutError(CUT)


def _cut(turn: list[tuple[weakref.ref[SafeSocket], Connection | None]]) -> None:
    try:
        ref, connection = turn.pop()
    except IndexError:
        return  # on_connect is done.
    sock = ref()
    if sock is None or sock._connection is not connection:
        return  # It has been closed, or given away.
    hurry(sock, time.monotonic())
    sock._lose(Cause.ABORTED, None)
    sock._end_connection()
