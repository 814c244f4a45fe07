"""What stands in the class `socket.socket` while something is enforced: the methods by which a
connection begins and ends. Reading and writing stay C's own, and cost nothing.

What stood there before goes on being called, be it C's, the standard library's or somebody else's;
and what somebody else has put there meanwhile is not taken away at the end.
"""

from __future__ import annotations

import _socket
import errno
import functools
import weakref

from safesock import _hub, _kernel, _trio, _unraisable, _watch
from safesock._governed import GovernedSocket
from safesock._kept import wards
from safesock._kernel import Raw
from safesock._told import bound_to, new_story
from safesock._ward import Ward, dismiss, ward_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from safesock._story import Story

# By descriptor: whose connection it is, for ssl, which makes a second object for it.
_by_fd: weakref.WeakValueDictionary[int, Ward] = weakref.WeakValueDictionary()
_LEFT_ALONE = "safesock.enforce: the connection is left alone"


class Methods:
    """Those of the class, while they are in place; *made* is told of each connection, and of every
    one when *are_for_all* gives True."""

    def __init__(
        self,
        made: Callable[[socket.socket, Ward], object],
        are_for_all: Callable[[], bool],
    ) -> None:
        self._made = made
        self._are_for_all = are_for_all
        self._kind = _standard_class()
        self._are_over = False
        # What stood in the class itself: nothing, where a method is C's.
        self._before: dict[str, Any] = {}
        self._ours: dict[str, Any] = {}
        for name, make in _MAKERS.items():
            before = vars(self._kind).get(name)
            if before is not None:
                self._before[name] = before
            called = getattr(self._kind, name)
            self._ours[name] = functools.wraps(called)(make(self, called))
            setattr(self._kind, name, self._ours[name])

    def restore(self) -> None:
        """Those that nobody has replaced meanwhile. They are over all the same: whoever has may put
        ours back when we are gone, as mocks do."""
        _trio.forget()
        self._are_over = True
        for name, ours in self._ours.items():
            if vars(self._kind).get(name) is not ours:
                continue
            if name in self._before:
                setattr(self._kind, name, self._before[name])
            else:
                delattr(self._kind, name)  # C's own comes to light again.

    # What is done in the middle of somebody's call, who knows nothing of it: nothing gets out.

    def begins(self, sock: socket.socket, address: Any) -> Story | None:
        """A connect is about to be called: what is told of it to those who listen."""
        if not _hub.is_heard():
            return None
        story: Story | None = self._quietly(self._begins, sock, address)
        return story

    def connected(self, sock: socket.socket, story: Story | None) -> None:
        """A connect has succeeded."""
        self._quietly(self._connected, sock, story)

    def goes_on(self, sock: socket.socket, number: int, story: Story | None) -> None:
        """A connect has given this errno."""
        self._quietly(self._goes_on, sock, number, story)

    def finished(self, sock: socket.socket) -> None:
        """A connect that went on has been made, as far as its owner knows."""
        self._quietly(self._finished, sock)

    def _quietly(self, act: Callable[..., Any], *arguments: Any) -> Any:
        if self._are_over:
            return None
        try:
            return act(*arguments)
        except Exception as error:
            _unraisable.report(error, _LEFT_ALONE)
            return None

    def _begins(self, sock: socket.socket, address: Any) -> Story | None:
        if not _is_candidate(sock) or ward_of(sock) is not None or not self._are_for_all():
            return None
        story = new_story()
        story.connecting(address, bound_to(sock))
        story.tell()
        return story

    def _connected(self, sock: socket.socket, story: Story | None) -> None:
        if not _is_candidate(sock):
            return
        ward = ward_of(sock)
        if ward is None or ward.connection is None:
            self._made(sock, ward or self._begin(sock, story))

    def _goes_on(self, sock: socket.socket, number: int, story: Story | None) -> None:
        if number == errno.EISCONN:
            self._finished(sock)
        elif number in _kernel.CONNECT_GOES_ON and _is_candidate(sock) and ward_of(sock) is None:
            _watch.watch(self._begin(sock, story), connecting=True)

    def _finished(self, sock: socket.socket) -> None:
        ward = ward_of(sock)
        if ward is not None and ward.connection is None and _kernel.was_established(sock):
            self._made(sock, ward)

    def _begin(self, sock: socket.socket, story: Story | None) -> Ward:
        ward = Ward(sock, self._made, story)
        wards.keep(sock, ward)
        _by_fd[Raw.fileno(sock)] = ward
        return ward


def _standard_class() -> Any:
    """The standard library's own, whatever stands in its place (of PySocks, gevent, eventlet)."""
    return next(
        kind
        for kind in _socket.socket.__subclasses__()
        if (kind.__module__, kind.__qualname__) == ("socket", "socket")
    )


def _is_candidate(sock: socket.socket) -> bool:
    return not isinstance(sock, GovernedSocket) and _kernel.is_tcp(sock)


# Each makes what stands in place of *before* ----------------------------------------------------


def _connect(methods: Methods, before: Any) -> Any:
    def connect(self: socket.socket, address: Any, /) -> None:
        story = methods.begins(self, address)
        try:
            before(self, address)
        except OSError as error:
            # The socket module's own timeout has no errno: the kernel goes on connecting.
            number = errno.EINPROGRESS if error.errno is None else error.errno
            methods.goes_on(self, number, story)
            del self  # Or the error, which somebody may keep, would keep the socket.
            raise
        methods.connected(self, story)

    return connect


def _connect_ex(methods: Methods, before: Any) -> Any:
    def connect_ex(self: socket.socket, address: Any, /) -> int:
        story = methods.begins(self, address)
        number: int = before(self, address)
        if number:
            methods.goes_on(self, number, story)
        else:
            methods.connected(self, story)
        return number

    return connect_ex


def _getsockopt(methods: Methods, before: Any) -> Any:
    def getsockopt(self: socket.socket, *args: Any) -> Any:
        value = before(self, *args)
        if not value and args == _kernel.ERROR:
            methods.finished(self)
        return value

    return getsockopt


def _init(_: Methods, before: Any) -> Any:
    def __init__(  # noqa: N807
        self: socket.socket,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
    ) -> None:
        before(self, family, type, proto, fileno)
        ward = None if fileno is None else _by_fd.get(fileno)
        if ward is not None and _is_candidate(self):
            ward.is_wanted_by(self)

    return __init__


def _detach(_: Methods, before: Any) -> Any:
    def detach(self: socket.socket) -> int:
        ward = dismiss(self)
        fd: int = before(self)
        if ward is not None:
            ward.moves_on(fd)
        return fd

    return detach


def _real_close(_: Methods, before: Any) -> Any:
    def _real_close(self: socket.socket, *args: Any) -> None:
        # Still known meanwhile: another thread that closes it is to wait its turn.
        ward = ward_of(self)
        try:
            if ward is not None:
                _watch.unwatch(ward)
                ward.close(self)
        finally:
            dismiss(self)
            before(self, *args)
            if ward is not None:
                ward.closed()

    return _real_close


_MAKERS: dict[str, Callable[[Methods, Any], Any]] = {
    "__init__": _init,
    "connect": _connect,
    "connect_ex": _connect_ex,
    "getsockopt": _getsockopt,
    "detach": _detach,
    "_real_close": _real_close,
}
