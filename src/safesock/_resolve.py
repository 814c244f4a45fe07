"""Name resolution that a deadline can cut: getaddrinfo(3) itself knows no timeout."""

from __future__ import annotations

import queue
import socket
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    # What `socket.socket` is made with, and the address to connect to.
    Resolved: TypeAlias = tuple[tuple[int, int, int], tuple[Any, ...]]


def is_numeric(host: str) -> bool:
    """Whether this is an IP address, which needs no resolver."""
    return bool(numeric((host, 0)))


def check_port(port: Any) -> None:
    """Raises OverflowError for a number that is no port: the resolver takes it modulo."""
    if isinstance(port, int) and not 0 <= port <= 0xFFFF:
        raise OverflowError(f"port must be 0-65535: not {port}")


def numeric(
    address: tuple[Any, ...], family: int = 0, proto: int = 0, flags: int = 0
) -> list[Resolved]:
    """The address of *address*, if that needs no resolver; else nothing."""
    host, port = address[:2]
    try:
        return lookup(host, port, family, proto, flags | socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return []


class Answers(queue.SimpleQueue["list[Resolved] | Exception"]):
    """Where the answer comes: or an exception, from whoever wants to end the waiting."""


def resolve(address: tuple[Any, ...], until: float, answers: Answers) -> list[Resolved]:
    """The TCP addresses of *address*, a pair of host and port, in the system's order.

    Raises socket.gaierror, or TimeoutError at *until* (of time.monotonic). The thread that waits
    for the system's resolver is then left to it: it ends when the resolver gives up.
    """
    host, port = address[:2]

    def work() -> None:
        try:
            answers.put(lookup(host, port))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=work, name="safesock-resolver", daemon=True).start()
    try:
        answer = answers.get(timeout=max(until - time.monotonic(), 0.0))
    except queue.Empty:
        raise TimeoutError(f"{host!r} was not resolved before the deadline") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def lookup(host: Any, port: Any, family: int = 0, proto: int = 0, flags: int = 0) -> list[Resolved]:
    """getaddrinfo(3), for TCP. Raises ValueError for a host with a null, where C would see the end
    of the name, and so another host."""
    if host and ("\0" if isinstance(host, str) else b"\0") in host:
        raise ValueError("embedded null character in the name of the host")
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, proto, flags)
    return [((family, kind, proto), where) for family, kind, proto, _, where in found]
