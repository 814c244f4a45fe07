"""Reading and writing with TLS, of a socket whose connection is governed.

An `SSLSocket` reads and writes through OpenSSL, which keeps the number of the descriptor: the TLS
object has to be dropped before the descriptor is closed, or it would read a stranger's.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time

from safesock import _kernel
from safesock._governed import broken_pipe
from safesock._kernel import Raw, TcpState
from safesock._loss import Cause
from safesock._transfer import TransferSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Self, TypeVar

    from typing_extensions import Buffer

    Result = TypeVar("Result")


class GovernedSSLSocket(ssl.SSLSocket, TransferSocket):  # type: ignore[misc]
    """An `ssl.SSLSocket` whose losses are noticed, and told as the standard library does."""

    # The SSLSocket that this one was taken over from: its TLS object works while it exists.
    _engine: ssl.SSLSocket | None = None
    # Of ssl.SSLSocket.
    _sslobj: Any
    _connected: bool
    do_handshake_on_connect: bool
    suppress_ragged_eofs: bool

    def do_handshake(self, block: bool = False) -> None:
        """As `ssl.SSLSocket.do_handshake`; the connection may be lost in it."""
        if self._sslobj is None and self._is_gone():
            raise broken_pipe()
        try:
            self._wait_for(lambda: super(GovernedSSLSocket, self).do_handshake(block))
        except OSError as error:
            ended_here = self._was_ended_here(error)
            self._failed(error)
            if ended_here:
                raise _ragged_end() from None  # As where it can still be sent, and is not answered.
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
            has_gap = self._has_gap()  # What follows one cannot be decrypted.
            self._failed(error)
            ragged = isinstance(error, ssl.SSLEOFError) and self.suppress_ragged_eofs
            is_end = ragged or has_gap or self._was_aborted(error) or self._is_echo()
            if not is_end:
                raise
            return b"" if buffer is None else 0
        return answer

    def write(self, data: Buffer) -> int:
        """As `ssl.SSLSocket.write`; BrokenPipeError after a loss."""
        if self._sslobj is None:
            return super().write(data)
        connection = self._connection
        if connection is not None and connection.may_forgive():
            self._refuse_after_ragged_end()
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

    def _refuse_after_ragged_end(self) -> None:
        """Where a read has met the end without a close_notify, OpenSSL writes nothing any more."""
        try:
            self._tls().write(b"")
        except ssl.SSLError:
            raise _ragged_end() from None

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
            ended_here = self._was_ended_here(error)
            self._failed(error)
            if ended_here and self._is_first_send():
                self._read_close_notify()
            elif not (lost and isinstance(error, BrokenPipeError)):
                raise
            self._sslobj = None
        return self

    def _read_close_notify(self) -> None:
        """Ours can no longer be sent: what is told is what the peer has said."""
        try:
            after = self._tls().read(1)
        except ssl.SSLZeroReturnError:
            return
        if after:
            self._sslobj = EndedSession(self._sslobj)
            reason = "APPLICATION_DATA_AFTER_CLOSE_NOTIFY"
            error: Any = ssl.SSLError(
                ssl.SSL_ERROR_SSL, f"[SSL: {reason}] application data after close notify"
            )
            error.library, error.reason = "SSL", reason
            raise error from None

    def _is_first_send(self) -> bool:
        """Whether what cannot be sent is to seem to be; from then on nothing is."""
        connection = self._connection
        first = connection is not None and connection.may_forgive()
        if first and connection is not None:
            connection.forgive(0)
        return first

    def _was_ended_here(self, error: OSError) -> bool:
        """Whether it only says that our own release has ended what is sent."""
        connection = self._governed()
        over = isinstance(error, (BrokenPipeError, ssl.SSLZeroReturnError))
        return over and connection is not None and connection.was_ended_here(Cause.FIN)

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
            del visit
            connection.leave(self)

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
            raise TimeoutError(f"The {'write' if write else 'read'} operation timed out")

    @contextlib.contextmanager
    def _engine_at_work(self) -> Iterator[None]:
        """Lends the descriptor to the socket that the session came from: SSL_shutdown wants it."""
        engine = self._engine
        if engine is None or self.fileno() < 0:
            yield
            return
        # Non-blocking by its type, which leaves the descriptor's own mode alone.
        kind = self.type | getattr(socket, "SOCK_NONBLOCK", 0)
        try:
            Raw.__init__(engine, self.family, kind, self.proto, self.fileno())
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
            connection.tell()
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

    def _real_close(self) -> None:
        if self._governed() is not None:
            self._end_connection()
        super()._real_close()


def _ragged_end() -> ssl.SSLEOFError:
    return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol")


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
