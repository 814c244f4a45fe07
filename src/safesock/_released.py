"""What a plain socket becomes when its connection has been ended under it.

Until then it is left as it is, with the methods that C gave it, and costs nothing. Then the object
changes its class, to one of the same layout whose calls tell what those of a plain socket would
have told: unread bytes first, then the end; a first send that seems to succeed.
"""

from __future__ import annotations

import socket
import sys

from safesock import _trio
from safesock._kept import Kept, kinds
from safesock._transfer import TransferSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ReleasedSocket(Kept, TransferSocket):
    """Of socket.socket."""

    __slots__ = ()


def change_class(sock: socket.socket) -> None:
    """To what reads and writes as a plain socket does whose peer has closed."""
    if not isinstance(sock, Kept):
        _trio.teach()
        sock.__class__ = _released(type(sock))


def _released(kind: type[socket.socket]) -> Any:
    made = kinds.get(kind)
    if made is None:
        base = _base(kind)
        # What the class of the client has changed goes on being asked first.
        bases = (kind, base) if kind not in base.__mro__ else (base,)
        # By its old name: who prints it sees what it was.
        about = {"__slots__": (), "__module__": kind.__module__, "__doc__": kind.__doc__}
        made = kinds.setdefault(kind, type(kind.__name__, bases, about))
    return made


def _base(kind: type[socket.socket]) -> type:
    ssl = sys.modules.get("ssl")
    if ssl is None or not issubclass(kind, ssl.SSLSocket):
        return ReleasedSocket
    from safesock._released_tls import ReleasedSSLSocket

    return ReleasedSSLSocket
