"""What is kept beside a plain socket whose connection is governed, and what a plain socket becomes
when that has been ended under it."""

from __future__ import annotations

import os
import socket
import weakref

from safesock._governed import GovernedSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._connection import Connection
    from safesock._policy import Policy

    class Ward:
        """What is kept beside a plain socket."""

        connection: Connection
        policy: Policy


# By socket, as those have no room for it.
wards: weakref.WeakKeyDictionary[socket.socket, Any] = weakref.WeakKeyDictionary()
# What a class becomes.
kinds: dict[type, type] = {}


class Kept(GovernedSocket):
    """Connection and policy are in `wards`."""

    __slots__ = ()

    @property
    def _connection(self) -> Connection | None:
        ward = wards.get(self)
        return None if ward is None else ward.connection

    @_connection.setter
    def _connection(self, value: Connection | None) -> None:
        assert value is None
        wards.pop(self, None)

    @property
    def _policy(self) -> Policy:
        policy: Policy = wards[self].policy
        return policy

    @_policy.setter
    def _policy(self, value: Policy) -> None:
        wards[self].policy = value

    def dup(self) -> Any:
        """dup(2): a plain socket."""
        made = self.family, self.type, self.proto
        duplicate = plain_class(type(self))(*made, fileno=os.dup(self.fileno()))
        duplicate.settimeout(self.gettimeout())
        return duplicate


def plain_class(kind: type) -> Any:
    """What it was before."""
    return next(plain for plain, released in kinds.items() if released is kind)
