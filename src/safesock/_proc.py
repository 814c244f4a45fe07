"""What /proc tells of sockets (Linux): the descriptors of a process, and the tables of a network
namespace, proc(5)."""

from __future__ import annotations

import os
import socket
import sys

from safesock._kernel import TcpState
from safesock._kernel_diag import Row, plain, queues

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TCP = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6}
# Where the inode is in the tables of what is no TCP.
_OTHERS = {"unix": 6, "udp": 9, "udp6": 9, "raw": 9, "raw6": 9, "netlink": 9, "packet": 8}
_SHORTEST = 10
_SOCKET = "socket:["


def sockets_of(pid: int) -> Iterator[tuple[int, int]]:
    """The descriptors of its sockets, with their inodes. Raises OSError for a process that is not
    there, or not ours to look into."""
    folder = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in os.listdir(folder):
            try:
                target = os.readlink(name, dir_fd=folder)
            except FileNotFoundError:
                continue  # Closed meanwhile.
            if target.startswith(_SOCKET):
                yield int(name), int(target[len(_SOCKET) : -1])
    finally:
        os.close(folder)


def network_of(pid: int) -> int:
    """Its network namespace. Raises OSError as above."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def network_here() -> int:
    """The one of this thread, which may be another than its process's."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def processes() -> list[int]:
    """All that there are; a kernel's own thread, which has no command line, is none."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as line:
                    if line.read(1):
                        found.append(int(name))
            except OSError:
                continue
    return found


def command(pid: int) -> str:
    """Its name."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def connections(pid: int) -> tuple[dict[int, Row], set[int]]:
    """The TCP connections of its network namespace, by inode, and the ports listened on there."""
    found, listening = {}, set()
    for name, family in _TCP.items():
        for row in rows(_lines(pid, name), family):
            if row.state is TcpState.LISTEN and row.local is not None:
                listening.add(row.local[1])
            elif row.inode:
                found[row.inode] = row
    return found, listening


def rows(lines: Iterable[str], family: int) -> Iterator[Row]:
    """What the lines of /proc/net/tcp say. Raises ValueError for what is no such line."""
    for line in lines:
        fields = line.split()
        if len(fields) < _SHORTEST:
            raise ValueError(f"a line of /proc/net/tcp that is cut off: {line!r}")
        state = TcpState(int(fields[3], 16))
        sent, received = (int(text, 16) for text in fields[4].split(":"))
        local, peer = (_plain(address(text, family)) for text in fields[1:3])
        yield Row(state, local, peer, *queues(state, received, sent), int(fields[9]))


def address(text: str, family: int) -> tuple[str, int]:
    """As the kernel prints it: words of the host's order, in hexadecimal."""
    digits, _, port = text.partition(":")
    words = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    raw = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return socket.inet_ntop(family, raw), int(port, 16)


def _plain(name: tuple[str, int]) -> tuple[str, int]:
    return plain(name[0]), name[1]


def other_sockets(pid: int) -> set[int]:
    """The inodes of the sockets of its network namespace that are known to be no TCP."""
    found = set()
    for name, column in _OTHERS.items():
        for line in _lines(pid, name):
            fields = line.split()
            if len(fields) > column and fields[column].isdigit():
                found.add(int(fields[column]))
    return found


def _lines(pid: int, table: str) -> list[str]:
    try:
        with open(f"/proc/{pid}/net/{table}", encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()[1:]
    except OSError:
        return []
