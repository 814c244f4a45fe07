"""How many connects to an address were begun: what a closed port itself tells nobody.

The kernel answers a SYN to a closed port by itself, and counts it for no process. Python tells its
audit hooks of each connect(2), in the thread that makes it and before it is made.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

Address = tuple[str, int]
Host = ipaddress.IPv4Address | ipaddress.IPv6Address

_lock = threading.Lock()
_watched: list[tuple[Address, Callable[[], None]]] = []
_has_hook = False


def watch(address: Address, called: Callable[[], None]) -> Callable[[], None]:
    """Calls it before each connect to *address*, in the thread that connects, until what this gives
    is called."""
    global _has_hook
    one = address, called
    with _lock:
        _watched.append(one)
        if not _has_hook:
            sys.addaudithook(_hook)  # There is no taking it away: later it does nothing.
            _has_hook = True
    return lambda: _watched.remove(one)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "socket.connect" or not _watched:
        return
    sock, address = arguments
    if isinstance(address, tuple) and len(address) >= 2 and _is_tcp(sock) and _begins(sock):
        for (host, port), called in list(_watched):
            if address[1] == port and _reaches(_hosts(sock, address), ipaddress.ip_address(host)):
                called()


def _is_tcp(sock: Any) -> bool:
    return bool(
        sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6)
    )


def _begins(sock: Any) -> bool:
    # Other calls of connect(2) tell what has become of one that went on in the background: then the
    # socket has an error, or does not hang up any more.
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return [events for _, events in poll.poll(0)] == [select.POLLHUP]


def _hosts(sock: Any, address: tuple[Any, ...]) -> set[Host]:
    """As connect(2) itself is about to look it up: what is no address at all is this host's own."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = socket.getaddrinfo(address[0] or None, address[1], sock.family, sock.type)
        return {_loopback(ipaddress.ip_address(name[0])) for *_, name in found}
    return set()


def _loopback(host: Host) -> Host:
    if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped
    if host.is_unspecified:
        return ipaddress.ip_address("127.0.0.1" if host.version == 4 else "::1")
    return host


def _reaches(hosts: set[Host], listener: Host) -> bool:
    return bool(hosts) if listener.is_unspecified else listener in hosts
