"""`ReconnectingSocket`: one socket object for life, whose connection is dialled again after a loss.

It takes over each connection that its connector has made: the descriptor, the record, the TLS
session. The loss of one is told by one call, as ever; the next that reads or writes dials.
"""

from __future__ import annotations

import functools
import socket

from safesock import _watch
from safesock._governed import broken_pipe
from safesock._kernel import Raw
from safesock._socket import SafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from typing_extensions import Buffer

    from safesock._policy import Policy


class ReconnectingSocket(SafeSocket):
    """A `SafeSocket` for life: what `Connector.socket` gives.

    Each loss is told once, by the call that meets it, as `SafeSocket` tells it. The next call that
    reads or writes dials again, within the budget of its connector, and so it may raise
    `ReconnectError`. All other calls speak of the connection that is there, or was last:
    `fileno()` is -1 in between, and another number afterwards. The timeout and what was set with
    `setsockopt` are carried over. Files that `makefile` made stay with their connection: at its end
    they end. `close()` is for good, and closes the connector.
    """

    __module__ = "safesock"

    _redial: Callable[[ReconnectingSocket], None] | None = None
    _when_closed: Callable[[], None] | None = None
    # What setsockopt was called with, by level and name.
    _options: dict[tuple[Any, ...], tuple[Any, ...]]

    @classmethod
    def unconnected(
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
        return self

    def take_over(self, sock: SafeSocket) -> None:
        """Goes on with the connection of *sock*, which is left detached."""
        timeout = self.gettimeout() if self._connection is not None else socket.getdefaulttimeout()
        connection = sock._connection
        self._move(sock)
        self._connection = connection
        self._policy = sock.policy
        self.settimeout(timeout)
        if self._policy.watch:
            _watch.watch(self)
        for option in self._options.values():
            super().setsockopt(*option)

    def _move(self, sock: SafeSocket) -> None:
        made = (sock.family, sock.type, sock.proto)
        Raw.__init__(self, *made, sock.detach())

    def has_no_connection(self) -> bool:
        """Whether the loss of the last one has been told, and there is none yet."""
        return self.fileno() < 0 and not self._is_closed()

    # There need not have been a loss: on_connect may have failed.
    _is_gone = has_no_connection

    def come_back(self) -> None:
        """Dials, where there is no connection."""
        if self._redial is not None and self.has_no_connection():
            self._redial(self)

    def makefile(self, *args: Any, **kwargs: Any) -> Any:
        """As in the standard library. The file belongs to this connection, not to the next."""
        self.come_back()
        this: Any = _ThisConnection(self)
        return socket.socket.makefile(this, *args, **kwargs)

    def setsockopt(self, *args: Any) -> None:
        """setsockopt(2), on this connection and on those to come."""
        if not self._is_gone():
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
        super().close()
        if self._when_closed is not None:
            self._when_closed()


class _ThisConnection:
    """What a file takes for its socket: its connection, and none that comes after."""

    def __init__(self, sock: ReconnectingSocket) -> None:
        self._sock = sock
        self._connection = sock._connection

    def _is_over(self) -> bool:
        return self._sock._is_gone() or self._sock._connection is not self._connection

    def recv_into(self, buffer: Buffer) -> int:
        return 0 if self._is_over() else self._sock.recv_into(buffer)

    def send(self, data: Buffer) -> int:
        if self._is_over():
            raise broken_pipe()
        return self._sock.send(data)

    def fileno(self) -> int:
        return -1 if self._is_over() else self._sock.fileno()

    def _decref_socketios(self) -> None:
        self._sock._decref_socketios()  # type: ignore[attr-defined]

    @property
    def _io_refs(self) -> int:
        return self._sock._io_refs

    @_io_refs.setter
    def _io_refs(self, count: int) -> None:
        self._sock._io_refs = count


def dials_before(cls: type[SafeSocket], name: str) -> None:
    """Makes this method of *cls* dial first, where the connection has been lost."""
    method = getattr(cls, name)

    @functools.wraps(method)
    def call(self: ReconnectingSocket, *args: Any, **kwargs: Any) -> Any:
        self.come_back()
        return method(self, *args, **kwargs)

    setattr(cls, name, call)


for _name in (*SafeSocket.__dict__,):
    if _name.startswith(("recv", "send")):
        dials_before(ReconnectingSocket, _name)
