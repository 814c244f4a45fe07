"""How many connects to an address were begun: what a closed port itself tells nobody.

The kernel answers a SYN to a closed port by itself, and counts it for no process. Python tells its
audit hooks of each connect(2), in the thread that makes it and before it is made.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

Address = tuple[str, int]

_lock = threading.Lock()
_watched: dict[Address, Callable[[], None]] = {}
_has_hook = False


def watch(address: Address, called: Callable[[], None]) -> None:
    """Calls it before each connect to *address*, in the thread that connects."""
    global _has_hook
    with _lock:
        _watched[address] = called
        if not _has_hook:
            sys.addaudithook(_hook)  # There is no taking it away: later it does nothing.
            _has_hook = True


def forget(address: Address) -> None:
    """Undoes `watch`. May be called again."""
    with _lock:
        _watched.pop(address, None)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "socket.connect" or not _watched:
        return
    sock, address = arguments
    if isinstance(address, tuple) and len(address) >= 2 and _is_tcp(sock):
        for one, called in list(_watched.items()):
            if address[1] == one[1] and one[0] in _hosts(sock, address):
                called()


def _is_tcp(sock: Any) -> bool:
    return bool(
        sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6)
    )


def _hosts(sock: Any, address: tuple[Any, ...]) -> set[Any]:
    # As connect(2) itself is about to look it up.
    with contextlib.suppress(OSError, UnicodeError, TypeError):
        found = socket.getaddrinfo(address[0], address[1], sock.family, sock.type)
        return {name[0] for *_, name in found}
    return set()
