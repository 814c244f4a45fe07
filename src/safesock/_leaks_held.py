"""Which sockets an object holds, directly or not: a client that lives longer than a test holds the
connections of its pool."""

from __future__ import annotations

import contextvars
import gc
import os
import sys
import types

from safesock._kernel import Raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# Through these everything is reached: no way leads on from them.
_EVERYBODYS = (types.ModuleType, type, types.CodeType, types.FrameType, contextvars.Context)
_FRAMEWORKS = ("_pytest.", "pluggy.")
_MOST = 200_000


def held_by(root: object, wanted: set[int]) -> set[int]:
    """Those of the *wanted* inodes whose `socket.socket` is reached from *root*."""
    found: set[int] = set()
    seen = {id(root)}
    ways = [root]
    while ways and found != wanted and len(seen) < _MOST:
        one = ways.pop()
        if isinstance(one, Raw):
            found |= wanted & _inode(one)
        for next_one in _ways_from(one):
            if id(next_one) not in seen:
                seen.add(id(next_one))
                ways.append(next_one)
    return found


def _inode(sock: Raw) -> set[int]:
    try:
        return {os.fstat(Raw.fileno(sock)).st_ino}
    except OSError:
        return set()  # It has been closed.


def _ways_from(one: Any) -> Iterable[object]:
    kind = type(one)
    if issubclass(kind, types.FunctionType):  # But for its globals.
        return [cell for cell in (one.__closure__, one.__defaults__, one.__dict__) if cell]
    if issubclass(kind, _EVERYBODYS + _loops()) or str(kind.__module__).startswith(_FRAMEWORKS):
        return ()
    return gc.get_referents(one)


def _loops() -> tuple[type, ...]:
    """An event loop knows the connections of all."""
    events = sys.modules.get("asyncio.events")
    return () if events is None else (events.AbstractEventLoop,)
