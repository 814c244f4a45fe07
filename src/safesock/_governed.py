"""A socket whose TCP connection is governed: made, watched, lost and closed by its policy.

What its calls mean for the connection is decided in `_connection`; here it is acted on, with the
descriptor. `_transfer` adds the reads and writes.
"""

from __future__ import annotations

import errno
import socket
import threading

from safesock import _kernel, _life, _options, _watch
from safesock._beside import apart
from safesock._connection import Connection
from safesock._kernel import Raw
from safesock._life import Event
from safesock._loss import Cause, CloseReport, Loss, cause_of
from safesock._policy import CloseMode, Policy, mode_by_linger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

_finalize: Any = Raw.__del__  # type: ignore[attr-defined]

# Seconds until the watcher tries again what it could not do.
_RETRY = 0.1
# And until it looks how far a RST that takes a while has come.
_LOOK = 0.5


class GovernedSocket(socket.socket):
    """All of it but reading and writing. Where the connection and the policy are kept is left to
    those that derive from it."""

    __slots__ = ()

    _connection: Connection | None
    _policy: Policy
    # Of socket.socket: closed by its owner, and the number of open files made of it.
    _closed: bool
    _io_refs: int

    @property
    def policy(self) -> Policy:
        """The policy of this socket."""
        return self._policy

    @property
    def loss(self) -> Loss | None:
        """How the connection was lost, or None while it is not known to be."""
        return None if self._connection is None else self._connection.loss

    @property
    def close_report(self) -> CloseReport | None:
        """How the connection was closed, or None while it is open."""
        return None if self._connection is None else self._connection.report

    def __repr__(self) -> str:
        connection = getattr(self, "_connection", None)  # Unset before __init__.
        if connection is None or connection.peer is None:
            return super().__repr__()
        state = None if self._is_closed() else _kernel.tcp_state(self)
        news = f", state={state.name}" if state else ""
        if connection.loss is not None:
            news += f", lost by {connection.loss.cause.name}"
        return f"{super().__repr__()[:-1]}{news}, close={self._policy.close!r}>"

    # Making a connection -------------------------------------------------------------------

    def bind(self, address: Any, /) -> None:
        """bind(2). A fixed TCP port gets SO_REUSEADDR, or what the policy's reuse_address says."""
        self._refuse_if_gone()
        if _kernel.is_tcp(self):
            chosen = self._policy.reuse_address
            fixed = isinstance(address, tuple) and len(address) > 1 and address[1] != 0
            if chosen is not None or fixed:
                _kernel.set_reuse_address(self, chosen is None or chosen)
        super().bind(address)

    def connect(self, address: Any, /) -> None:
        """connect(2), after the policy's options have been set."""
        self._before_connect(address)
        try:
            super().connect(address)
        except OSError as error:
            # The socket module's own timeout has no errno: the kernel goes on connecting.
            self._connect_failed(errno.EINPROGRESS if error.errno is None else error.errno)
            if self._is_closed():  # By another thread: that is no reset by the peer.
                raise _kernel.os_error(errno.EBADF) from None
            raise
        except BaseException:  # KeyboardInterrupt: the kernel goes on here too.
            self._connect_failed(errno.EINPROGRESS)
            raise
        self._established(just_now=True)

    def connect_ex(self, address: Any, /) -> int:
        """As `connect`, but gives the errno instead of raising it."""
        if self._is_gone():
            return errno.ENOTCONN
        self._before_connect(address)
        result = super().connect_ex(address)
        if result:
            self._connect_failed(result)
            if self._is_closed():
                return errno.EBADF
        else:
            self._established(just_now=True)
        return result

    def getsockopt(self, *args: Any) -> Any:
        """getsockopt(2). SO_ERROR, with which a non-blocking connect ends, and by which a loss may
        be told, is taken note of. SO_TYPE raises ENOTCONN once the watcher has ended the
        connection: `ssl` asks for it, and would put off the handshake for ever."""
        if args == _kernel.TYPE:
            self._refuse_if_released()
        try:
            value = super().getsockopt(*args)
        except OSError:
            self._refuse_if_gone()
            raise
        if self._connection is not None and args == _kernel.ERROR:
            return self._socket_error(value)
        return value

    def _refuse_if_released(self) -> None:
        if self._connection is not None and self._connection.released:
            raise _kernel.os_error(errno.ENOTCONN)

    def _before_connect(self, address: Any) -> None:
        self._refuse_if_gone()
        self._prepare()
        if self._connection is not None and self._connection.peer is None:
            self._connection.begins(self, address)
            self._tell()

    def _prepare(self, previous: int | None = None) -> None:
        """For a connect. *previous*: the number of the connection that it comes back from."""
        if self._connection is None and _kernel.is_tcp(self):
            _options.prepare(self, self._policy)
            self._connection = Connection(self._policy)
            self._connection.comes_after(previous)

    def _established(self, *, just_now: bool = False) -> None:
        connection = self._connection
        if connection is not None and connection.peer is None:
            connection.established(self, just_now=just_now)
            if self._policy.watch:
                _watch.watch(self)
            self._tell()

    def _connect_failed(self, number: int) -> None:
        if self._connection is None or number == errno.EISCONN:
            self._established()
        elif number not in _kernel.CONNECT_GOES_ON:
            self._connection.failed()
        elif self._policy.watch:
            _watch.watch(self, connecting=True)

    def _tell(self) -> None:
        """What has become of the connection, to those who listen."""
        connection = self._connection
        if connection is not None and connection.story is not None:
            if _watch.is_watching_thread():
                connection.tell_later()
            else:
                connection.tell()

    def _governed(self) -> Connection | None:
        """The connection, if it has been made."""
        connection = self._connection
        if connection is not None:
            connection.let_the_watcher_pass()
            if connection.peer is None and _kernel.was_established(self):
                self._established()
        return connection if connection is not None and connection.peer is not None else None

    def _socket_error(self, number: int) -> int:
        connection = self._governed()
        if connection is None:
            if number and self._connection is not None:
                self._connection.failed()
            return number
        self._tell()
        untold, connection.untold = connection.untold, None
        if untold is not None:
            number = untold.errno or 0
        if number:
            self._failed(_kernel.os_error(number))
        return number

    # Losing and closing ------------------------------------------------------------------------

    def shutdown(self, how: int, /) -> None:
        """shutdown(2). After a loss by FIN it does nothing, as there is nothing left to do."""
        connection = self._connection
        state = None if connection is None else _kernel.tcp_state(self)
        try:
            super().shutdown(how)
        except OSError:
            loss = self._told_loss()
            if loss is None or loss.cause is not Cause.FIN:
                self._refuse_if_gone()
                raise
        if connection is not None and how != socket.SHUT_RD:
            connection.owner_has_shut(state)

    def close(self) -> None:
        """Ends the connection as the policy says, and closes the descriptor; see the close modes.

        Takes no longer than the policy allows, wakes threads that are blocked on the socket (with
        `Drain` when it is done), and may be called again, from any thread or a signal handler.
        Never raises OSError for a connection that is governed. As in the standard library, files
        that `makefile` made keep the connection until the last of them is closed. In a forked child
        only the child's descriptor is closed.
        """
        super().close()

    def detach(self) -> int:
        """Gives the descriptor away: safesock no longer governs it."""
        _watch.unwatch(self)
        self._connection = None
        return super().detach()

    def dup(self) -> Self:
        """A duplicate, which is not governed; closing this socket ends the connection of both."""
        self._refuse_if_gone()
        duplicate = super().dup()
        duplicate._policy = self._policy
        return duplicate

    def __del__(self) -> None:
        try:
            connection = getattr(self, "_connection", None)  # Unset when __init__ raised.
            # Where it was the watcher that happened to collect it, others wait for the watcher.
            waits = connection and _watch.is_watching_thread() and connection.may_block()
            if not (waits and apart(self._end_collected)):
                self._end_collected()
        except BaseException:  # KeyboardInterrupt, which may have struck before.
            self._end_collected()
            raise

    def _end_collected(self) -> None:
        try:
            self._finish_collected()
        except BaseException:
            self._finish_collected(again=True)
            raise
        finally:
            _finalize(self)  # The ResourceWarning, and close(2).
            if (connection := getattr(self, "_connection", None)) is not None:
                connection.tell_later()

    def _finish_collected(self, *, again: bool = False) -> None:
        connection = getattr(self, "_connection", None)
        if connection and not connection.close_is_due and self._governed() is not None:
            _watch.unwatch(self)
            connection.finish_unseen(self, self._decrypted(), again=again)

    def _real_close(self, *args: Any) -> None:
        if self._connection is not None and self._governed() is not None:
            self._end_connection()
        else:
            _watch.unwatch(self)
            if self._connection is not None and not self._connection.is_elsewhere():
                _kernel.stop_connecting(self)
            super()._real_close(*args)  # type: ignore[misc]

    def _end_connection(self, end: dict[str, Any] | None = None) -> None:
        connection = self._connection
        if connection is None or self.fileno() < 0:
            return  # It has been done, or another thread has detached it.
        try:
            _watch.unwatch(self)
            connection.close(self, self._let_go(), end)
        except BaseException:  # KeyboardInterrupt, before it has begun: the watcher is to do it.
            if self._policy.watch and not connection.close_is_due:
                _watch.watch(self)
            raise

    def _lose(self, cause: Cause, error: OSError | None) -> None:
        """The owner is being told of the loss: what the policy says is done now."""
        connection = self._connection
        if connection is None:
            return  # Another thread has detached it.
        end = connection.lose(self, cause, error, self._decrypted())
        then = _life.NEXT[self._policy.on_loss]
        if then is Event.CLOSE:
            self._end_connection(end)
        elif then is Event.END:
            connection.release(self)
        connection.tell()

    def _failed(self, error: OSError) -> None:
        """After a call that failed with *error*: is it the end? Raises what is to be told instead
        of *error*, where the kernel had only that left to say."""
        connection = self._governed()
        cause = self._cause(error)
        if connection is None or cause is None or self._is_closed():
            return
        told = connection.close_is_due
        if connection.loss is not None or connection.is_over_by(self, error, cause):
            self._lose(cause, error)
        self._raise_untold(connection, told)

    def _raise_untold(self, connection: Connection, told: bool) -> None:
        """Raises, once, the error that the watcher kept for the owner, unless another call has
        *told* of the loss meanwhile."""
        untold, connection.untold = connection.untold, None
        if untold is not None and not told:
            try:
                raise untold from None
            finally:
                del untold  # Its traceback holds this frame: a reference cycle.

    def _cause(self, error: OSError) -> Cause | None:
        return cause_of(error)

    def _decrypted(self) -> int:
        """The bytes that have left the kernel and not reached the owner."""
        return 0

    def _let_go(self) -> int:
        """Drops what else holds the descriptor, and gives what `_decrypted` gave."""
        return 0

    # For the watcher -----------------------------------------------------------------------------

    def _peer_has_closed(self) -> float | None:
        connection = self._connection
        if connection is None:
            return None
        if connection.peer is None:
            self._governed()  # Its connect is done, and if it was made it is now watched for FIN.
            return None
        if connection.released:
            connection.settle(self)
            return 0.0 if connection.is_dying else None
        return self._policy.grace

    def _step_in(self) -> float | None:
        connection = self._connection
        if connection is None or connection.step_in(self, self._decrypted()):
            return None
        return _LOOK if connection.is_dying else max(self._policy.grace, _RETRY)

    # After a loss -------------------------------------------------------------------------------

    def getpeername(self) -> Any:
        """getpeername(2), which the kernel refuses once a connection has ended."""
        loss = self._told_loss()
        return super().getpeername() if loss is None else loss.peer

    def getsockname(self) -> Any:
        """getsockname(2)."""
        loss = self._told_loss()
        return super().getsockname() if loss is None else loss.local

    def _told_loss(self) -> Loss | None:
        """The loss, if the kernel no longer answers because of it."""
        connection = self._connection
        if connection is None or self._is_closed():
            return None
        connection.let_the_watcher_pass()  # It records what it has done when that is done.
        return connection.loss

    def settimeout(self, value: float | None, /) -> None:
        """As in the standard library."""
        try:
            super().settimeout(value)
        except OSError:
            if not self._is_gone():
                raise

    def setblocking(self, flag: bool, /) -> None:
        """As in the standard library."""
        try:
            super().setblocking(flag)
        except OSError:
            if not self._is_gone():
                raise

    def setsockopt(self, *args: Any) -> None:
        """setsockopt(2). SO_LINGER changes the policy of this socket: (1, 0) is `Abort`, other
        seconds are `Linger`, and off is `Graceful` where it was one of these."""
        try:
            super().setsockopt(*args)
        except OSError:
            self._refuse_if_gone()
            raise
        linger = _kernel.linger_in(args)
        if linger is not None:
            self._close_by(mode_by_linger(self._policy.close, *linger))

    def listen(self, *backlog: int) -> None:
        """listen(2)."""
        self._refuse_if_gone()
        super().listen(*backlog)

    def accept(self) -> tuple[socket.socket, Any]:
        """accept(2). The accepted socket is not governed."""
        self._refuse_if_gone()
        return super().accept()

    def get_inheritable(self) -> bool:
        """As in the standard library."""
        self._refuse_if_gone()
        return super().get_inheritable()

    def set_inheritable(self, inheritable: bool) -> None:
        """As in the standard library."""
        self._refuse_if_gone()
        super().set_inheritable(inheritable)

    def _close_by(self, mode: CloseMode) -> None:
        _options.prepare_mode(self, mode)
        self._policy = self._policy.__replace__(close=mode)
        if self._connection is not None:
            self._connection.policy = self._policy

    def _is_closed(self) -> bool:
        """Whether the owner has closed it, and all its files."""
        return self._closed and self._io_refs <= 0

    def _was_aborted(self, error: OSError) -> bool:
        """Whether its owner has aborted it, in another thread, while this one waited."""
        return self._is_closed() and isinstance(error, (BrokenPipeError, ConnectionResetError))

    def _is_echo(self) -> bool:
        """Whether the error of a call comes of what another thread did, which had been told of the
        loss."""
        connection = self._connection
        teller = None if connection is None else connection.teller
        return teller not in (None, threading.get_ident()) and self._is_gone()

    def _is_gone(self) -> bool:
        """Whether the loss has been told and the descriptor closed, but not yet by the owner."""
        return self.fileno() < 0 and self.loss is not None and not self._is_closed()

    def _refuse_if_gone(self) -> None:
        if self._is_gone():
            raise OSError(errno.ENOTCONN, "the connection was lost and closed: see sock.loss")


def broken_pipe() -> OSError:
    """What sending raises after a loss."""
    return _kernel.os_error(errno.EPIPE)
