"""A plain socket of somebody's client, under a policy it knows nothing of.

It keeps its own methods for as long as its connection lives. The watcher is told of the peer's FIN
by the kernel; when the owner has not closed by the end of the grace, the connection is ended, the
descriptor stays, and the object changes its class (see `_released`).
"""

from __future__ import annotations

import socket
import weakref
from os import fstat

from safesock import _forks, _hub, _kernel, _options, _watch
from safesock._kept import Kept, wards
from safesock._kernel import Raw, TcpState
from safesock._plain import PlainConnection
from safesock._policy import Abort, Graceful
from safesock._released import change_class

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from safesock._policy import Policy
    from safesock._story import Story

# Seconds until the watcher tries again what it could not do.
_RETRY = 0.1
# And until it looks how far a RST that takes a while has come.
_LOOK = 0.5


_claiming = _forks.lock()


class Ward:
    """What is kept beside one socket; the watcher knows it instead of the socket."""

    __slots__ = (
        "connection",
        "policy",
        "tell",
        "_story",
        "_made",
        "_sock",
        "_heir",
        "_forks",
        "_inode",
        "_is_claimed",
        "__weakref__",
    )

    def __init__(
        self,
        sock: socket.socket,
        made: Callable[[socket.socket, Ward], object],
        story: Story | None = None,
    ) -> None:
        # None until the connection has been made, of which *made* is told.
        self.connection: PlainConnection | None = None
        self.policy: Policy | None = None
        self.tell: Callable[[str], object] | None = None
        # What has been told of its connect.
        self._story = story
        self._made = made
        self._sock = weakref.ref(sock)
        self._heir: weakref.ref[socket.socket] | None = None
        self._forks = _forks.forked()
        self._is_claimed = False
        # Of the kernel's socket, as a number may be closed by os.close and be a stranger's then.
        self._inode = _inode(sock)

    def begins(self, sock: socket.socket, policy: Policy, tell: Callable[[str], object]) -> None:
        """The connection has been made; *tell* is called with what becomes of it."""
        self.policy, self.tell = policy, tell
        self.connection = PlainConnection(policy, self._story)
        if self._story is not None:
            self.connection.asked = self._story.peer
        self.connection.established(sock, just_now=True)
        if policy.watch:
            _watch.watch(self)
        if _watch.is_watching_thread():
            self.connection.tell_later()
        else:
            self.connection.tell()

    def claim(self) -> bool:
        """Whether nobody has taken note yet that the connection has been made: its owner and the
        watcher may find so at the same moment."""
        with _claiming:
            first, self._is_claimed = not self._is_claimed, True
            return first

    def leaves(self, sock: socket.socket, policy: Policy | None, tell: Any = None) -> None:
        """Its enforcement is over: another one goes on with it, by *policy*, or none."""
        if self.policy is not None and isinstance(self.policy.close, Abort):
            _kernel.set_linger(sock, None)
        if self.connection is None or policy is None:
            dismiss(sock)
            return
        _options.prepare_mode(sock, policy.close)
        self.policy = self.connection.policy = policy
        self.tell = tell

    def is_wanted_by(self, sock: socket.socket) -> None:
        """Another object has been made for the descriptor; ssl does that, and then detaches the
        first."""
        self._heir = weakref.ref(sock)

    def moves_on(self, fd: int) -> None:
        """The first object has given the descriptor away: to the other one, if there is one."""
        heir = None if self._heir is None else self._heir()
        if heir is None or Raw.fileno(heir) != fd:
            return
        self._sock = weakref.ref(heir)
        wards.keep(heir, self)
        if self.connection is None:
            _watch.watch(self, connecting=True)
            return
        if self.connection.released:
            change_class(heir)
        if self.policy is not None and self.policy.watch:
            _watch.watch(self)

    def owner(self) -> socket.socket | None:
        """The socket, as long as it exists."""
        return self._sock()

    def fileno(self) -> int:
        """The descriptor, -1 when it is closed."""
        sock = self._sock()
        return -1 if sock is None else Raw.fileno(sock)

    def is_shared(self) -> bool:
        """Whether a forked process may have the connection as well."""
        elsewhere = self.connection is not None and self.connection.is_elsewhere()
        return elsewhere or self._forks != _forks.forked()

    # For the watcher -----------------------------------------------------------------------------

    def _peer_has_closed(self) -> float | None:
        sock = self._sock()
        if sock is None:
            return None
        connection = self.connection
        if connection is None or self.policy is None:
            if _kernel.was_established(sock):
                self._made(sock, self)
            return None
        if connection.released:
            connection.settle(sock)
            return 0.0 if connection.is_dying else None
        return self.policy.grace

    def _step_in(self) -> float | None:
        sock, connection, policy = self._sock(), self.connection, self.policy
        if sock is None or connection is None or policy is None or policy.on_loss == "keep":
            return None
        was_released = connection.released
        if not was_released:
            if _inode(sock) != self._inode:
                return None
            if _kernel.tcp_state(sock) is not TcpState.CLOSE_WAIT:
                return None  # Reset: the kernel tells its owner, and holds nothing but a number.
            change_class(sock)  # Before: a call that comes in between is told as after it.
        done = connection.step_in(sock, _decrypted(sock))
        if connection.released and not was_released and self.tell is not None:
            self.tell("aborted" if isinstance(policy.close, Abort) else "released")
        if done:
            return None
        return _LOOK if connection.is_dying else max(policy.grace, _RETRY)

    # For the owner -------------------------------------------------------------------------------

    def close(self, sock: socket.socket) -> None:
        """Before close(2), by the policy."""
        if self.connection is None or self.policy is None:
            return
        if not self.is_shared() and not isinstance(self.policy.close, Graceful):
            self.connection.close(sock)
        elif _hub.is_heard():
            self.connection.closes(sock)

    def closed(self) -> None:
        """After close(2)."""
        if self.connection is not None:
            self.connection.tell()

    def vanished(self) -> None:
        """The socket has been collected."""
        if self.connection is not None and _hub.is_heard():
            self.connection.vanished()


def _inode(sock: socket.socket) -> int | None:
    try:
        return fstat(Raw.fileno(sock)).st_ino
    except OSError:
        return None  # Somebody else has closed it.


def _decrypted(sock: Any) -> int:
    if not isinstance(sock, Kept):
        return 0  # It has no TLS, or a class of its owner's that could not be changed.
    session = getattr(sock, "_sslobj", None)
    return 0 if session is None else sock._decrypted()


def ward_of(sock: Any) -> Ward | None:
    """What is kept beside this socket."""
    ward: Ward | None = wards.get(sock)
    return ward


def dismiss(sock: Any) -> Ward | None:
    """It is left alone from here on."""
    ward: Ward | None = wards.drop(sock)
    if ward is not None:
        _watch.unwatch(ward)
    return ward
