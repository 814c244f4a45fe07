"""What /proc tells of sockets (Linux): the descriptors of a process, and the tables of a network
namespace, proc(5)."""

from __future__ import annotations

import os
import re
import socket
import sys
from typing import NamedTuple

from safesock._kernel import TcpState
from safesock._kernel_diag import Row, plain, queues

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TCP = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6}
# Where the inode is in the tables of what is no TCP.
_OTHERS = {"unix": 6, "udp": 9, "udp6": 9, "raw": 9, "raw6": 9, "netlink": 9, "packet": 8}
_INODE = re.compile("[0-9]{1,20}")
_SOCKET = re.compile(r"socket:\[([0-9]{1,20})\]")
# As the kernel prints it: addresses, state, queues, timer, owner, inode and more.
_NUMBER = r"([0-9A-F]+)"
_ADDRESS = r"((?:[0-9A-F]{8}){1,4}:[0-9A-F]{4})"
_LINE = re.compile(
    rf" *[0-9]+: {_ADDRESS} {_ADDRESS} ([0-9A-F]{{2}}) {_NUMBER}:{_NUMBER} {_NUMBER}:{_NUMBER} "
    r"[0-9A-F]+ +[0-9]+ +[0-9]+ ([0-9]{1,20}) .*"
)


class Line(NamedTuple):
    """A line of /proc/net/tcp."""

    local: tuple[str, int]
    peer: tuple[str, int]
    state: TcpState
    sent: int
    received: int
    timer: str
    ticks: int
    inode: int


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
            if found := _SOCKET.fullmatch(target):
                yield int(name), int(found[1])
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
    for name, family in TCP.items():
        for row in rows(lines(pid, name), family):
            if row.state is TcpState.LISTEN and row.local is not None:
                listening.add(row.local[1])
            elif row.inode:
                found[row.inode] = row
    return found, listening


def rows(lines: Iterable[str], family: int) -> Iterator[Row]:
    """What the lines of /proc/net/tcp say."""
    for line in lines:
        found = parsed(line, family)
        if found is not None:
            local, peer = _plain(found.local), _plain(found.peer)
            numbers = queues(found.state, found.received, found.sent)
            yield Row(found.state, local, peer, *numbers, found.inode)


def parsed(line: str, family: int) -> Line | None:
    """None for what is no such line, or is in a state that a later kernel knows: what it is about
    can still be asked by its descriptor."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    local, peer, state, sent, received, timer, ticks, inode = found.groups()
    try:
        return Line(
            _address(local, family),
            _address(peer, family),
            TcpState(int(state, 16)),
            int(sent, 16),
            int(received, 16),
            timer,
            int(ticks, 16),
            int(inode),
        )
    except ValueError:
        return None


def _address(text: str, family: int) -> tuple[str, int]:
    """As the kernel prints it: words of the host's order, in hexadecimal."""
    digits, _, port = text.partition(":")
    words = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    raw = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return socket.inet_ntop(family, raw), int(port, 16)


def _plain(name: tuple[str, int]) -> tuple[str, int]:
    return plain(name[0]), name[1]


def other_sockets(pid: int) -> set[int]:
    """The inodes of the sockets of its network namespace that are known to be no TCP."""
    found: set[int] = set()
    for name, column in _OTHERS.items():
        found |= inodes(lines(pid, name), column)
    return found


def inodes(lines: Iterable[str], column: int) -> set[int]:
    """Those in this column of a table."""
    words = ("".join(line.split(maxsplit=column + 1)[column : column + 1]) for line in lines)
    return {int(word) for word in words if _INODE.fullmatch(word)}


def lines(pid: int | str, table: str) -> list[str]:
    """A table of the network namespace, without its head; nothing where it is not there."""
    try:
        # The name of a Unix socket may have any character in it, and others end no line.
        with open(
            f"/proc/{pid}/net/{table}", encoding="utf-8", errors="replace", newline="\n"
        ) as file:
            return file.read().split("\n")[1:]
    except OSError:
        return []
