"""What a plain socket becomes when its connection has been ended under it.

Until then it is left as it is, with the methods that C gave it, and costs nothing. Then the object
changes its class, to one of the same layout whose calls tell what those of a plain socket would
have told: unread bytes first, then the end; a first send that seems to succeed.
"""

from __future__ import annotations

import functools
import socket
import sys
import weakref

from safesock import _trio
from safesock._kept import Kept
from safesock._transfer import TransferSocket


class ReleasedSocket(Kept, TransferSocket):
    """Of socket.socket."""

    __slots__ = ()


# What a class becomes: for as long as there is an object of that.
_kinds: weakref.WeakKeyDictionary[type, weakref.ref[type]] = weakref.WeakKeyDictionary()
_set_class = object.__dict__["__class__"].__set__


def change_class(sock: socket.socket) -> None:
    """To what reads and writes as a plain socket does whose peer has closed.

    A client's own class may not allow that, or have attributes of the names that are needed here.
    Then it stays as it is, and what it loses is the first send that seems to succeed.
    """
    kind = type(sock)
    if issubclass(kind, Kept):
        return
    base = _base(kind)
    try:
        if _ours(base).isdisjoint(getattr(sock, "__dict__", ())):
            made = _released(kind, base)
            if made is not None:
                _trio.teach()
                _set_class(sock, made)
    except Exception:
        pass  # Whatever a metaclass or `__init_subclass__` may raise.


def _released(kind: type[socket.socket], base: type) -> type | None:
    found = _kinds.get(kind)
    made = None if found is None else found()
    if made is None and _ours(base).isdisjoint(dir(kind)):
        # What the class of the client has changed goes on being asked first.
        bases = (kind, base) if kind not in base.__mro__ else (base,)
        # By its old name: who prints it sees what it was.
        names = ("__module__", "__qualname__", "__doc__")
        about = {name: getattr(kind, name) for name in names}
        made = type(kind.__name__, bases, {**about, "__slots__": (), "_plain": kind})
        _kinds[kind] = weakref.ref(made)
    return made


@functools.cache
def _ours(base: type) -> frozenset[str]:
    """The names that such a socket has, and a plain one has not."""
    plain = next(one for one in base.__mro__ if one.__module__ in ("socket", "ssl"))
    return frozenset(dir(base)).difference(dir(plain))


def _base(kind: type[socket.socket]) -> type:
    ssl = sys.modules.get("ssl")
    if ssl is None or not issubclass(kind, ssl.SSLSocket):
        return ReleasedSocket
    from safesock._released_tls import ReleasedSSLSocket

    return ReleasedSSLSocket
