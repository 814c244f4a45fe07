"""`ReconnectingSocket`: one socket object for life, whose connection is dialled again after a loss.

It takes over each connection that its connector has made: the descriptor, the record, the TLS
session. The loss of one is told by one call, as ever; the next that reads or writes dials.

A call works on one connection from beginning to end: before the next connection is dialled, those
that are under way in other threads are waited for. The loss has woken them.
"""

from __future__ import annotations

import errno
import functools
import socket
import threading
import time
import weakref

from safesock import _kernel, _watch
from safesock._governed import broken_pipe
from safesock._kernel import Raw
from safesock._policy import Abort
from safesock._socket import SafeSocket
from safesock._transfer import TransferSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from typing_extensions import Buffer

    from safesock._connection import Connection
    from safesock._policy import Policy

# Seconds that calls in other threads, which have been woken, may take to come back.
_PATIENCE = 10.0
# Seconds between two looks whether others have come to an end, as not all of them say so: the
# watcher does not, nor does a call that a KeyboardInterrupt has struck.
_LOOK = 0.002


class _Call:
    """A call that is under way. It lives in a local variable, so that wherever a KeyboardInterrupt
    strikes, it ends; but the traceback of that keeps it, so it says so, too."""

    __slots__ = ("__weakref__", "over", "thread")

    def __init__(self) -> None:
        self.over = False
        self.thread = threading.get_ident()


class ReconnectingSocket(SafeSocket):
    """A `SafeSocket` for life: what `Connector.socket` gives.

    Each loss is told once, to one thread, by the call that meets it, as `SafeSocket` tells it. The
    next call that reads or writes dials again, within the budget of its connector: it may take up
    to the deadline, whatever the socket's timeout is, and raise `ReconnectError`. It is for classes
    that take a socket and neither close nor connect it, and not for event loops.

    All other calls speak of the connection that is there, or was last: `fileno()` is -1 in between,
    and another number afterwards. The timeout and what was set with `setsockopt` are carried over.
    Files that `makefile` made stay with their connection: at its end they end. To give up a
    connection, `shutdown(SHUT_RDWR)`; `close()` is for good, and closes the connector.
    """

    __module__ = "safesock"

    _redial: Callable[[ReconnectingSocket], None] | None = None
    _when_closed: Callable[[], None] | None = None
    # What setsockopt was called with, by level and name.
    _options: dict[tuple[Any, ...], tuple[Any, ...]]
    # The calls that are under way, and the lock under which they begin, and a connection changes.
    # Not a threading.Condition, which a KeyboardInterrupt may leave locked for ever.
    _calls: list[weakref.ref[_Call]]
    _changing: Any
    # Whether one is under way in this thread.
    _at_work: threading.local
    # The thread in which on_connect has the connection, before anybody else.
    _greeter: int | None = None

    @classmethod
    def _unconnected(
        cls,
        policy: Policy,
        redial: Callable[[ReconnectingSocket], None],
        when_closed: Callable[[], None],
    ) -> Self:
        """Without a descriptor, until it takes over a connection."""
        self = cls.__new__(cls)
        self._connection = None
        self._policy = policy
        self._closed = False
        self._io_refs = 0
        self._options = {}
        self._redial = redial
        self._when_closed = when_closed
        self._calls = []
        self._changing = threading.RLock()
        self._at_work = threading.local()
        return self

    def _take_over(self, sock: SafeSocket) -> None:
        """Goes on with the connection of *sock*, which is left detached. It is for this thread
        alone, until `_open_to_all`."""
        timeout = self.gettimeout() if self._connection is not None else socket.getdefaulttimeout()
        with self._changing:
            self._greeter = threading.get_ident()
            connection = sock._connection
            self._move(sock)
            self._connection = connection
            self._io_refs = 0  # Files of the connection before keep nothing open.
            self._policy = sock.policy
        self.settimeout(timeout)
        if self._policy.watch:
            _watch.watch(self)
        for option in self._options.values():
            try:
                super().setsockopt(*option)
            except OSError:
                pass  # It was for an address of another family.

    def _move(self, sock: SafeSocket) -> None:
        made = (sock.family, sock.type, sock.proto)
        _watch.unwatch(sock)
        _kernel.hand_over(sock, self, lambda fd: Raw.__init__(self, *made, fd))

    def _after_fork(self) -> None:
        """In the child: the calls of the parent's other threads will never end here."""
        self._calls = []
        self._changing = threading.RLock()
        self._at_work = threading.local()
        self._greeter = None

    def _open_to_all(self) -> None:
        """The connection, or that there is none, is now to be seen by all threads."""
        self._greeter = None

    def _has_no_connection(self) -> bool:
        """Whether the last one has ended, and there is none yet."""
        connection = self._connection
        ended = self.fileno() < 0 or (connection is not None and connection.close_is_due)
        return ended and not self._closed

    # There need not have been a loss: on_connect may have failed.
    _is_gone = _has_no_connection

    def _wait_for_calls(self, until: float) -> None:
        """Until the calls that are under way in other threads have come back, and the descriptor is
        closed: they must not go on with the next connection."""
        until = min(until, time.monotonic() + _PATIENCE)
        while self._is_called() or self.fileno() >= 0:
            if time.monotonic() >= until:
                raise TimeoutError("calls in other threads are at work on the connection before")
            if not self._is_called() and self._connection is not None:
                self._connection.close(self)  # A KeyboardInterrupt has struck whoever was to.
            time.sleep(_LOOK)

    def _is_called(self) -> bool:
        """By another thread: what this one has begun before is over, whatever has struck it."""
        me = threading.get_ident()
        calls = [ref() for ref in self._calls]
        return any(call and not call.over and call.thread != me for call in calls)

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a method that reads or writes, on one connection from beginning to end."""
        if self._is_inside():
            return method(*args, **kwargs)
        call = _Call()
        try:
            while not self._enter(call):
                assert self._redial is not None
                self._redial(self)
            self._at_work.inside = True
            return method(*args, **kwargs)
        finally:
            call.over = True  # First, and here: a KeyboardInterrupt may strike where a call begins.
            self._at_work.inside = False
            self._forget(call)

    def _call_on(
        self, connection: Connection | None, method: Callable[..., Any], *args: Any
    ) -> Any:
        """The same on *connection* only. Raises BrokenPipeError when that is over."""
        if self._is_inside():
            return method(*args)
        call = _Call()
        try:
            with self._changing:
                gone = self.fileno() < 0 or self._has_no_connection()
                if self._connection is not connection or gone:
                    raise broken_pipe()
                self._calls.append(weakref.ref(call))
            self._at_work.inside = True
            return method(*args)
        finally:
            call.over = True  # First, and here: a KeyboardInterrupt may strike where a call begins.
            self._at_work.inside = False
            self._forget(call)

    def _is_inside(self) -> bool:
        """Whether one of these calls is under way in this thread: sendfile calls send."""
        return getattr(self._at_work, "inside", False) or self._redial is None

    def _enter(self, call: _Call) -> bool:
        """False: there is no connection."""
        me = threading.get_ident()
        # Not for longer than the connection lives: on_connect may be waiting for this thread.
        while self._greeter not in (None, me) and not self._has_no_connection():
            time.sleep(_LOOK)
        with self._changing:
            if self._greeter is None and self._has_no_connection():
                return False
            self._calls.append(weakref.ref(call))
            return True

    def _forget(self, call: _Call) -> None:
        with self._changing:
            self._calls = [ref for ref in self._calls if ref() not in (None, call)]

    def shutdown(self, how: int, /) -> None:
        """shutdown(2). SHUT_RDWR is how its owner gives up a connection: the next call that reads
        or writes dials."""
        gives_up = how == socket.SHUT_RDWR and self._governed() is not None
        # A FIN before the RST would make a cut-off stream look complete.
        if not (gives_up and isinstance(self._policy.close, Abort) and self._is_alive()):
            super().shutdown(how)
        if gives_up:
            self._end_connection()

    def _is_alive(self) -> bool:
        return self.fileno() >= 0 and self.loss is None

    def connect(self, address: Any, /) -> None:  # noqa: ARG002
        """Raises OSError (EISCONN): the next call that reads or writes connects by itself."""
        raise OSError(errno.EISCONN, "a socket for life dials by itself: just read or write")

    def connect_ex(self, address: Any, /) -> int:  # noqa: ARG002
        """Gives EISCONN."""
        return errno.EISCONN

    def makefile(self, *args: Any, **kwargs: Any) -> Any:
        """As in the standard library. The file belongs to this connection, not to the next."""
        return self._call(self._make_file, *args, **kwargs)

    def _make_file(self, *args: Any, **kwargs: Any) -> Any:
        # Of a closed socket the standard library makes files, too: they give EBADF.
        this: Any = self if self._closed and self.fileno() < 0 else _ThisConnection(self)
        return socket.socket.makefile(this, *args, **kwargs)

    def setsockopt(self, *args: Any) -> None:
        """setsockopt(2), on this connection and on those to come."""
        if not self._has_no_connection():
            super().setsockopt(*args)
        self._options[args[:2]] = args

    def dup(self) -> SafeSocket:  # type: ignore[override]
        """A duplicate of this connection, which is not governed and does not come back."""
        self._refuse_if_gone()
        made = (self.family, self.type, self.proto)
        duplicate = SafeSocket(*made, fileno=socket.dup(self.fileno()), policy=self._policy)
        duplicate.settimeout(self.gettimeout())
        return duplicate

    def close(self) -> None:
        """Ends the connection as the policy says, for good."""
        # First: a thread that has just dialled is to see that, or its connection is seen here.
        if self._when_closed is not None:
            self._when_closed()
        super().close()


class _ThisConnection:
    """What a file takes for its socket: its connection, and none that comes after."""

    def __init__(self, sock: ReconnectingSocket) -> None:
        self._sock = sock
        self._connection = sock._connection

    def recv_into(self, buffer: Buffer) -> int:
        try:
            count: int = self._sock._call_on(self._connection, self._sock.recv_into, buffer)
        except BrokenPipeError:
            return 0
        return count

    def send(self, data: Buffer) -> int:
        count: int = self._sock._call_on(self._connection, self._sock.send, data)
        return count

    def fileno(self) -> int:
        return self._sock.fileno() if self._sock._connection is self._connection else -1

    def _decref_socketios(self) -> None:
        if self._sock._connection is self._connection:
            self._sock._decref_socketios()  # type: ignore[attr-defined]

    @property
    def _io_refs(self) -> int:
        return self._sock._io_refs

    @_io_refs.setter
    def _io_refs(self, count: int) -> None:
        self._sock._io_refs = count


def dials_before(cls: type[SafeSocket], name: str) -> None:
    """Makes this method, which *cls* inherits, dial first where there is no connection."""

    @functools.wraps(getattr(cls, name))
    def call(self: ReconnectingSocket, *args: Any, **kwargs: Any) -> Any:
        return self._call(getattr(super(cls, self), name), *args, **kwargs)

    setattr(cls, name, call)


for _name in (*TransferSocket.__dict__,):
    if _name.startswith(("recv", "send")):
        dials_before(ReconnectingSocket, _name)
