"""trio takes the methods of socket.socket out of the class when it is imported: what becomes of a
socket later would not reach it."""

from __future__ import annotations

import functools
import socket
import sys

from safesock._kept import Kept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

_plain: Any = None


def teach() -> None:
    """From now on it asks the class of a socket that has been released. Where trio has not been
    imported there is nobody to teach: no socket of its own can have been released."""
    global _plain
    module: Any = sys.modules.get("trio._socket")
    helper = getattr(getattr(module, "_SocketType", None), "_nonblocking_helper", None)
    if helper is not None and _plain is None:
        _plain = helper
        module._SocketType._nonblocking_helper = _asking(helper)


def forget() -> None:
    """It is as it was before."""
    global _plain
    if _plain is not None:
        sys.modules["trio._socket"]._SocketType._nonblocking_helper = _plain
        _plain = None


def _asking(helper: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(helper)
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        kind = type(self._sock)
        if issubclass(kind, Kept):
            args = tuple(_of(kind, one) for one in args)
        return await helper(self, *args, **kwargs)

    return call


def _of(kind: type, one: Any) -> Any:
    """The method by which this class replaces that one, if it is a method of socket.socket."""
    name: Any = getattr(one, "__name__", None)
    is_method = name is not None and one is getattr(socket.socket, name, None)
    return getattr(kind, name) if is_method else one
