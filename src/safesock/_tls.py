"""TLS: `SafeSSLSocket`, and `secure`, which makes an `SSLContext` give it.

An `SSLSocket` reads and writes through OpenSSL, which keeps the number of the descriptor: the TLS
object has to be dropped before the descriptor is closed, or it would read a stranger's.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time

from safesock import _kernel, _watch
from safesock._connection import Connection
from safesock._governed import broken_pipe
from safesock._kernel import Raw, TcpState
from safesock._loss import Cause
from safesock._policy import DEFAULT, Policy, policy_or_default
from safesock._socket import SafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Self, TypeVar

    from typing_extensions import Buffer

    Result = TypeVar("Result")


# The socket that is half made, in this thread.
_making = threading.local()


def _lost_before_the_handshake() -> ssl.SSLEOFError:
    return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the connection was lost before the handshake")


def secure(context: ssl.SSLContext, policy: Policy | None = None) -> ssl.SSLContext:
    """Makes `context.wrap_socket` give a `SafeSSLSocket`. Changes *context* and returns it.

    A `SafeSocket` that is wrapped keeps its own policy, any other socket gets *policy*. Server-side
    sockets are left alone. Raises TypeError for what is no SSLContext.
    """
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"secure takes an ssl.SSLContext: not {context!r}")
    attributes = {"_context_policy": policy_or_default(policy), "__module__": "safesock"}
    context.sslsocket_class = type("SafeSSLSocket", (SafeSSLSocket,), attributes)
    return context


def before_handshake(
    sock: SafeSocket, context: ssl.SSLContext, server_hostname: str | None
) -> SafeSSLSocket:
    """A connected socket goes over to TLS, with a context that `secure` need not have changed. The
    handshake is still to be done."""
    return SafeSSLSocket._create(
        sock, context=context, server_hostname=server_hostname, do_handshake_on_connect=False
    )


class SafeSSLSocket(ssl.SSLSocket, SafeSocket):  # type: ignore[misc]
    """An `ssl.SSLSocket` that is a `SafeSocket`: made by a context that `secure` has changed, or by
    `wrap`.

    A close_notify ends the connection as a FIN does, for it is the end of what can be read. A FIN
    without one is told as in the standard library, and `loss.error` is the SSLEOFError also where
    suppress_ragged_eofs hides it. The peer's close_notify is answered with ours before the
    connection is closed; `close` alone sends none, as in the standard library: `unwrap` does. After
    a loss, `unwrap` does nothing and gives this socket; with on_loss="release" it still answers.
    """

    __module__ = "safesock"

    _context_policy = DEFAULT
    # The SSLSocket that this one was taken over from: its TLS object works while it exists.
    _engine: ssl.SSLSocket | None = None
    # Of ssl.SSLSocket.
    _sslobj: Any
    _connected: bool
    do_handshake_on_connect: bool
    suppress_ragged_eofs: bool

    @classmethod
    def _create(
        cls,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | None = None,
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> Self:
        connection = sock._connection if isinstance(sock, SafeSocket) else None
        policy = sock.policy if isinstance(sock, SafeSocket) else cls._context_policy
        if connection is not None and connection.loss is not None:
            # The kernel calls it unconnected, and ssl would put off the handshake.
            sock.close()
            raise _lost_before_the_handshake()
        _making.half, _making.is_on = None, True
        try:
            # The handshake waits until the connection is governed, as it may be lost in it.
            self: Self = super()._create(  # type: ignore[misc]
                sock, server_side, False, suppress_ragged_eofs, server_hostname, context, session
            )
        except BaseException:
            if _making.half is not None:
                _making.half.close()  # Not all Pythons do that.
            raise
        finally:
            _making.half, _making.is_on = None, False
        if connection is not None and connection.peer is not None and self._sslobj is None:
            # It has been reset, and ssl took it for one that is yet to be connected.
            self.close()
            raise _lost_before_the_handshake()
        self.do_handshake_on_connect = do_handshake_on_connect
        self._policy = policy
        try:
            if self._sslobj is not None and not server_side:
                self._govern(connection)
            if self._sslobj is not None and do_handshake_on_connect:
                if self.gettimeout() == 0.0:
                    raise ValueError(
                        "do_handshake_on_connect should not be specified for non-blocking sockets"
                    )
                self.do_handshake()
        except BaseException:
            self.close()
            raise
        return self

    def getpeername(self) -> Any:
        """getpeername(2), which the kernel refuses once a connection has ended."""
        if getattr(_making, "is_on", False):
            _making.half = self  # ssl asks for it while it makes one.
        return super().getpeername()

    def do_handshake(self, block: bool = False) -> None:
        """As `ssl.SSLSocket.do_handshake`; the connection may be lost in it."""
        if self._sslobj is None and self._is_gone():
            raise broken_pipe()
        try:
            self._wait_for(lambda: super(SafeSSLSocket, self).do_handshake(block))
        except OSError as error:
            self._failed(error)
            raise

    def read(self, len: int = 1024, buffer: Buffer | None = None) -> Any:
        """As `ssl.SSLSocket.read`; b"", or 0, after a loss."""
        if self._sslobj is None:
            return super().read(len, buffer)
        try:
            arguments = (len,) if buffer is None else (len, buffer)
            answer = self._wait_for(lambda: self._tls().read(*arguments))
            if not answer and (len if buffer is None else memoryview(buffer).nbytes):
                self._read_to_end()
        except OSError as error:
            self._failed(error)
            ragged = isinstance(error, ssl.SSLEOFError) and self.suppress_ragged_eofs
            if not ragged and not self._was_aborted(error) and not self._is_echo():
                raise
            return b"" if buffer is None else 0
        return answer

    def write(self, data: Buffer) -> int:
        """As `ssl.SSLSocket.write`; BrokenPipeError after a loss."""
        if self._sslobj is None:
            return super().write(data)
        connection = self._connection
        try:
            if connection is not None and connection.refuses_send():
                # OpenSSL does not get over a write that failed: the unread text would be lost.
                raise broken_pipe()
            written: int = self._wait_for(lambda: self._tls().write(data))
        except OSError as error:
            size = self._unsent(error, data)
            if size is None:
                raise
            return size
        return written

    def send(self, data: Buffer, flags: int = 0) -> int:
        """As `ssl.SSLSocket.send`."""
        return super().send(data, flags) if self._sslobj is None or flags else self.write(data)

    def unwrap(self) -> Self:
        """As `ssl.SSLSocket.unwrap`: close_notify, then the same socket in clear text."""
        lost = self.loss is not None
        try:
            with self._engine_at_work():
                self._wait_for(super().unwrap)
        except OSError as error:
            self._failed(error)
            if not (lost and isinstance(error, BrokenPipeError)):
                raise
            self._sslobj = None
        return self

    def _tls(self) -> Any:
        return self._sslobj or EndedSession(None)

    def _wait_for(self, call: Callable[[], Result]) -> Result:
        """Calls OpenSSL, which knows only the number of the descriptor."""
        connection = self._connection
        if connection is None:
            return call()
        visit = connection.enter()
        try:
            return self._wait_and(call)
        finally:
            connection.leave(self, visit)

    def _wait_and(self, call: Callable[[], Result]) -> Result:
        """For a session that was taken over the waiting is done here: C would wait on the
        descriptor of the socket that it came from."""
        deadline = None
        while True:
            try:
                return call()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                timeout = self.gettimeout()
                if timeout == 0.0:
                    raise
                if timeout is not None:
                    deadline = deadline or time.monotonic() + timeout
                self._wait(deadline, write=isinstance(error, ssl.SSLWantWriteError))

    def _wait(self, deadline: float | None, *, write: bool) -> None:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if not _kernel.ready(self, left, write=write):
            raise TimeoutError("The TLS operation timed out")

    @contextlib.contextmanager
    def _engine_at_work(self) -> Iterator[None]:
        """Lends the descriptor to the socket that the session came from: SSL_shutdown wants it."""
        engine = self._engine
        if engine is None or self.fileno() < 0:
            yield
            return
        # Non-blocking by its type, which leaves the descriptor's own mode alone.
        kind = self.type | getattr(socket, "SOCK_NONBLOCK", 0)
        Raw.__init__(engine, self.family, kind, self.proto, self.fileno())
        try:
            yield
        finally:
            Raw.detach(engine)

    def _read_to_end(self) -> None:
        connection = self._governed()
        if connection is None or self._is_closed():
            return
        self._raise_untold(connection, connection.close_is_due)
        connection.lose(self, Cause.FIN, None, self._decrypted())
        if self._policy.on_loss == "release" and self._policy.watch:
            return  # The owner may answer it with `unwrap`, and the watcher ends the rest.
        waits = _kernel.tcp_state(self) in _kernel.PEER_OPEN
        if self._policy.on_loss == "close" and waits and not connection.is_visited():
            self._answer_close_notify()
        self._lose(Cause.FIN, None)

    def _answer_close_notify(self) -> None:
        """Our close_notify (RFC 8446, 6.1), for a peer that waits for it; without waiting."""
        timeout = self.gettimeout()
        try:
            self.settimeout(0)
            with self._engine_at_work():
                self._wait_for(lambda: self._tls().shutdown())
        except (OSError, ValueError):
            pass  # It cannot be sent now, and the connection is to be closed.
        finally:
            self.settimeout(timeout)

    def _cause(self, error: OSError) -> Cause | None:
        if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            # Before 3.13 the ssl module says end of file for a RST too, giving no reason.
            reset = not getattr(error, "reason", None) and isinstance(error, ssl.SSLEOFError)
            over = _kernel.tcp_state(self) is TcpState.CLOSE and self.loss is None
            return Cause.RST if reset and over else Cause.FIN
        # The errno of an SSLError is OpenSSL's number, not the system's.
        return None if isinstance(error, ssl.SSLError) else super()._cause(error)

    def _means_broken_pipe(self, error: OSError) -> bool:
        # Writing after our FIN, where a close_notify has come, is "zero return" to OpenSSL.
        tls = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
        return isinstance(error, tls) or super()._means_broken_pipe(error)

    def _decrypted(self) -> int:
        session = getattr(self, "_sslobj", None)  # Unset until the constructor is done.
        # Not while another thread is in it: OpenSSL's objects are not for two at a time.
        busy = self._connection is not None and self._connection.is_visited()
        return 0 if session is None or busy else session.pending()

    def _let_go(self) -> int:
        decrypted = self._decrypted()
        if self._sslobj is not None:
            self._sslobj = EndedSession(self._sslobj)
        return decrypted

    def _govern(self, connection: Connection | None) -> None:
        if connection is None:
            _kernel.prepare(self, self._policy)
        self._connection = connection or Connection(self._policy)
        self._established()
        if self._policy.watch:
            _watch.watch(self)

    def _real_close(self) -> None:
        if self._governed() is not None:
            self._end_connection()
        super()._real_close()


class EndedSession:
    """What stands in for a TLS object when the connection is gone: it still answers questions, and
    touches the descriptor no more."""

    _session: Any

    def __init__(self, session: Any) -> None:
        self._session = session._session if isinstance(session, EndedSession) else session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def read(self, _: int = 0, buffer: Buffer | None = None) -> Any:
        """End of file."""
        return b"" if buffer is None else 0

    def write(self, _: Buffer) -> int:
        """EPIPE."""
        raise broken_pipe()

    def do_handshake(self) -> None:
        """EPIPE."""
        raise broken_pipe()

    def shutdown(self) -> None:
        """There is nobody to send a close_notify to."""

    def pending(self) -> int:
        """What was pending has been counted."""
        return 0


def take_over(sock: ssl.SSLSocket, policy: Policy) -> SafeSSLSocket:
    """The part of `wrap` that is TLS: the session moves, *sock* is left detached."""
    timeout = sock.gettimeout()
    new = SafeSSLSocket.__new__(SafeSSLSocket)
    prepare_to_move(sock)
    made = (sock.family, sock.type, sock.proto)
    SafeSocket.__init__(new, *made, fileno=sock.detach(), policy=policy)
    new.settimeout(timeout)
    move_session(sock, new)
    return new


def prepare_to_move(sock: ssl.SSLSocket) -> None:
    """Before *sock* is detached, for its session to go on with another."""
    # The TLS object goes on asking the old socket for its timeout. Non-blocking there means that C
    # never waits; whether the descriptor blocks is up to the new socket.
    sock.settimeout(0)


def move_session(sock: ssl.SSLSocket, new: SafeSSLSocket) -> None:
    """*new*, which has the descriptor already, gets the TLS session of *sock*."""
    old: Any = sock
    for name in _MOVED:
        setattr(new, name, getattr(old, name))
    if new._sslobj is not None:
        new._sslobj.owner = new
        new._engine = old._engine if isinstance(old, SafeSSLSocket) and old._engine else old
        old._sslobj = None


_MOVED = (
    "_context",
    "_session",
    "_sslobj",
    "_connected",
    "server_side",
    "server_hostname",
    "do_handshake_on_connect",
    "suppress_ragged_eofs",
)
