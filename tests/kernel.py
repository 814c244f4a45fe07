"""What the kernel says: connection states from /proc/net/tcp, and this process's descriptors."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import ipaddress
import os
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safesock import _watch

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


def connections(
    port: int | None = None, peer_port: int | None = None
) -> dict[tuple[tuple[str, int], tuple[str, int]], str]:
    """The state of every TCP connection of this network namespace, by local and peer address.

    *port*, *peer_port*: only those with this local port, or with this port of the peer's, which is
    much quicker where there are thousands.
    """
    found = {}
    ending, peer_ending = ("" if one is None else f":{one:04X}" for one in (port, peer_port))
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with open(table, encoding="ascii") as lines:
            for line in list(lines)[1:]:
                fields = line.split()
                if fields[1].endswith(ending) and fields[2].endswith(peer_ending):
                    found[_address(fields[1]), _address(fields[2])] = STATES[int(fields[3], 16)]
    return found


def state(local: Any, peer: Any) -> str | None:
    """The state of one connection, None when the kernel has nothing left of it."""
    if not _has_sock_diag():
        return connections(local[1]).get((tuple(local[:2]), tuple(peer[:2])))
    found = _sock_diag(local, peer)
    return None if found == "LISTEN" else found  # What it answers where there is nothing better.


def _sock_diag(local: Any, peer: Any) -> str | None:
    # sock_diag(7): /proc/net/tcp takes a thousand times as long where thousands are in TIME_WAIT.
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    hosts = b"".join(socket.inet_pton(family, host).ljust(16, b"\0") for host, *_ in (local, peer))
    question = struct.pack("=BBxxI", family, socket.IPPROTO_TCP, 0xFFFFFFFF)
    question += struct.pack("!HH", local[1], peer[1]) + hosts + struct.pack("=Iii", 0, -1, -1)
    header = struct.pack("=IHHII", 16 + len(question), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.send(header + question)
        answer = netlink.recv(8192)
    (kind,) = struct.unpack_from("=4xH", answer)
    return STATES[answer[17]] if kind == _SOCK_DIAG_BY_FAMILY else None


_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST = 4, 20, 1


@functools.cache
def _has_sock_diag() -> bool:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            return _sock_diag(listener.getsockname(), ("127.0.0.1", 1)) == "LISTEN"
        except OSError:
            return False


def states_of_process(pid: int, peer_port: int) -> dict[int, str]:
    """The states of the connections that this process has to this port of a peer's, by local
    port."""
    names = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.add(os.readlink(link))
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in names and _address(fields[2])[1] == peer_port:
                found[_address(fields[1])[1]] = STATES[int(fields[3], 16)]
    return found


def state_of(sock: socket.socket) -> str:
    """The state of the connection that this descriptor holds (TCP_INFO)."""
    info = socket.socket.getsockopt(sock, socket.IPPROTO_TCP, socket.TCP_INFO, 8)
    return STATES[info[0]]


def unread(sock: socket.socket) -> int:
    """The bytes that wait to be read (FIONREAD)."""
    return _queue(sock, termios.FIONREAD)


def unacknowledged(sock: socket.socket) -> int:
    """The bytes that the peer's kernel has not acknowledged (SIOCOUTQ)."""
    return _queue(sock, termios.TIOCOUTQ)


def _queue(sock: socket.socket, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(sock, request, bytes(4)), sys.byteorder)


def is_asleep(thread: threading.Thread | int) -> bool:
    """Whether it waits in the kernel, and not for a lock: it is in its system call."""
    number = thread if isinstance(thread, int) else thread.native_id
    with open(f"/proc/self/task/{number}/wchan", encoding="ascii") as file:
        where = file.read()
    return where not in ("", "0") and "futex" not in where


def descriptors() -> set[int]:
    """The descriptors that are open in this process."""
    return set(_named())


def left_open(before: set[int]) -> list[str]:
    """What has been opened since, but for what the watcher has for itself, and made once.

    A socket is told at once; what is none only where it stays, as other threads open files for a
    moment, such as one that looks up a name.
    """
    found = _since(before)
    until = time.monotonic() + 1
    while found and time.monotonic() < until:
        if sockets := [name for _, name in found if name.startswith("socket:")]:
            return sockets
        time.sleep(0.002)
        found &= _since(before)
    return [name for _, name in found]


def _since(before: set[int]) -> set[tuple[int, str]]:
    watcher = _watch._watcher
    own = set() if watcher is None else {watcher._epoll.fileno(), watcher._bell, watcher._rope}
    return {(fd, name) for fd, name in _named().items() if fd not in before | own}


def _named() -> dict[int, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        # What is closed meanwhile is not open: by now that is so of what listdir itself opened.
        with contextlib.suppress(FileNotFoundError):
            found[int(number)] = os.readlink(f"/proc/self/fd/{number}")
    return found


def wait_until(
    condition: Callable[[], object],
    what: str = "condition",
    timeout: float = 20.0,
    pause: float = 0.002,
) -> None:
    """For what the kernel does and signals to nobody: looks again until it is so."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(pause)


def wait_until_blocked(thread: threading.Thread) -> None:
    """Until *thread* waits in the kernel for something else than a lock."""

    def blocked() -> bool:
        with open(f"/proc/self/task/{thread.native_id}/wchan", encoding="ascii") as place:
            name = place.read()
        return name != "0" and not name.startswith("futex")

    wait_until(blocked, "the thread waits in a system call")
