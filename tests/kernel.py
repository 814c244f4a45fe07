"""What the kernel says: connection states from /proc/net/tcp, and this process's descriptors."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
}


def _address(text: str) -> tuple[str, int]:
    host, port = text.split(":")
    words = [host[i : i + 8] for i in range(0, len(host), 8)]
    raw = b"".join(struct.pack("=I", int(word, 16)) for word in words)
    return str(ipaddress.ip_address(raw)), int(port, 16)


def connections() -> dict[tuple[tuple[str, int], tuple[str, int]], str]:
    """The state of every TCP connection of this network namespace, by local and peer address."""
    found = {}
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with open(table, encoding="ascii") as lines:
            for line in list(lines)[1:]:
                fields = line.split()
                found[_address(fields[1]), _address(fields[2])] = STATES[int(fields[3], 16)]
    return found


def state(local: Any, peer: Any) -> str | None:
    """The state of one connection, None when the kernel has nothing left of it."""
    return connections().get((tuple(local[:2]), tuple(peer[:2])))


def state_of(sock: socket.socket) -> str:
    """The state of the connection that this descriptor holds (TCP_INFO)."""
    info = socket.socket.getsockopt(sock, socket.IPPROTO_TCP, socket.TCP_INFO, 8)
    return STATES[info[0]]


def descriptors() -> set[int]:
    """The descriptors that are open in this process."""
    return {int(name) for name in os.listdir("/proc/self/fd")} - {_listing()}


def _listing() -> int:
    # listdir itself opens the lowest free number, and closes it again.
    fd = os.open("/", os.O_RDONLY)
    os.close(fd)
    return fd


def wait_until(
    condition: Callable[[], object], what: str = "condition", timeout: float = 20.0
) -> None:
    """For what the kernel does and signals to nobody: looks again until it is so."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.002)
