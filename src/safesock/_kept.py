"""What is kept beside a plain socket whose connection is governed, and what a plain socket becomes
when that has been ended under it."""

from __future__ import annotations

import errno
import os
import socket
import weakref

from safesock import _kernel
from safesock._governed import GovernedSocket
from safesock._kernel import Raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from safesock._connection import Connection
    from safesock._policy import Policy

    class Ward:
        """What is kept beside a plain socket."""

        connection: Connection
        policy: Policy

        def vanished(self) -> None: ...


class _Wards:
    """By socket, as those have no room for it; by identity, as their classes may compare them as
    they like. Each call is one look into a dictionary, so that threads need no lock."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[socket.socket], Any]] = {}

    def get(self, sock: socket.socket) -> Any:
        """None where nothing is kept."""
        found = self._found.get(id(sock))
        return found[1] if found is not None and found[0]() is sock else None

    def keep(self, sock: socket.socket, ward: Any) -> None:
        """Until the socket is collected."""
        number = id(sock)

        def forget(ref: weakref.ref[socket.socket]) -> None:
            found = self._found.get(number)
            if found is not None and found[0] is ref:
                del self._found[number]
                ward.vanished()

        self._found[number] = weakref.ref(sock, forget), ward

    def drop(self, sock: socket.socket) -> Any:
        """What was kept."""
        ward = self.get(sock)
        return None if ward is None else self._found.pop(id(sock), (None, None))[1]

    def all(self) -> list[tuple[socket.socket, Any]]:
        """Those of sockets that exist."""
        found = [(ref(), ward) for ref, ward in list(self._found.values())]
        return [(sock, ward) for sock, ward in found if sock is not None]


wards = _Wards()


class Kept(GovernedSocket):
    """Connection and policy are in `wards`. Where its owner cannot tell it from a plain socket, it
    is one."""

    __slots__ = ()

    # The class that it had.
    _plain: Callable[..., socket.socket]

    __repr__ = socket.socket.__repr__

    @property
    def _connection(self) -> Connection | None:  # type: ignore[override]
        ward = wards.get(self)
        return None if ward is None else ward.connection

    @property
    def _policy(self) -> Policy:
        policy: Policy = wards.get(self).policy
        return policy

    @_policy.setter
    def _policy(self, value: Policy) -> None:
        wards.get(self).policy = value

    def dup(self) -> Any:
        """dup(2): a plain socket."""
        made = self.family, self.type, self.proto
        duplicate = type(self)._plain(*made, fileno=os.dup(self.fileno()))
        duplicate.settimeout(self.gettimeout())
        return duplicate

    def shutdown(self, how: int, /) -> None:
        """shutdown(2). The kernel has been told before, but not by its owner."""
        connection = self._connection
        if connection is not None and connection.shut_by_owner:
            socket.socket.shutdown(self, how)
        else:
            super().shutdown(how)

    def detach(self) -> int:
        """Gives the descriptor away, and what is kept with it."""
        return socket.socket.detach(self)

    def _refuse_if_released(self) -> None:
        """`ssl`, which asks for SO_TYPE, is told by `getpeername` that it is connected."""

    # A connection that has been reset is an unused socket again to the kernel.

    def connect(self, _: Any, /) -> None:
        """Refused: it has been connected."""
        raise _kernel.os_error(self._refusal(errno.EISCONN))

    def connect_ex(self, _: Any, /) -> int:
        """Refused: it has been connected."""
        return self._refusal(errno.EISCONN)

    def bind(self, _: Any, /) -> None:
        """Refused: it has an address."""
        raise _kernel.os_error(self._refusal(errno.EINVAL))

    def listen(self, *_: int) -> None:
        """Refused: it has been connected."""
        raise _kernel.os_error(self._refusal(errno.EINVAL))

    def _refusal(self, number: int) -> int:
        return errno.EBADF if Raw.fileno(self) < 0 else number
