"""What the kernel says of this process's sockets: /proc/self/fd joined with /proc/self/net/tcp.

No socket object is asked: what it says of itself would prove nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from safesock._kernel import TcpState

_DESCRIPTORS = "/proc/self/fd"
_TABLE, _TABLE6 = "/proc/self/net/tcp", "/proc/self/net/tcp6"


class Count(NamedTuple):
    """Of some sockets: how many are in CLOSE_WAIT, and how many descriptors hold them."""

    close_wait: int
    descriptors: int


class _Entry(NamedTuple):
    """One line of /proc/net/tcp. The inode is 0 when no descriptor is left."""

    inode: int
    local_port: int
    state: int


def can_tell() -> bool:
    """Whether this system has the two tables."""
    return os.path.isdir(_DESCRIPTORS) and os.path.isfile(_TABLE)


def sockets() -> list[int]:
    """The inode of every socket descriptor of this process, twice for a duplicated one."""
    inodes = []
    for name in os.listdir(_DESCRIPTORS):
        try:
            target = os.readlink(f"{_DESCRIPTORS}/{name}")
        except FileNotFoundError:
            continue  # The one that listdir itself had open, or closed meanwhile.
        if target.startswith("socket:["):
            inodes.append(int(target[len("socket:[") : -1]))
    return inodes


def counts(*groups: Collection[int]) -> list[Count]:
    """Of each group of sockets, given by their inodes."""
    held = sockets()
    waiting = {entry.inode for entry in _entries() if entry.state == TcpState.CLOSE_WAIT}
    return [
        Count(len(waiting.intersection(held, group)), sum(inode in group for inode in held))
        for group in groups
    ]


def state_of_port(port: int) -> TcpState | None:
    """The state of the connection from this local port, None when there is none.

    This process's own, if it has one; else that of another, or one that nobody holds any more.
    """
    own = set(sockets())
    states = {entry.inode in own: entry.state for entry in _entries() if entry.local_port == port}
    state = states.get(True, states.get(False))
    return None if state is None else TcpState(state)


def free_descriptors() -> int:
    """How many descriptors this process may still open."""
    import resource  # There is none on Windows.

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (2**31 if limit == resource.RLIM_INFINITY else limit) - len(os.listdir(_DESCRIPTORS))


def _entries() -> list[_Entry]:
    entries = []
    for table in (_TABLE, _TABLE6):
        if not os.path.isfile(table):
            continue  # There is no tcp6 without IPv6.
        with open(table, encoding="ascii") as lines:
            next(lines)
            for line in lines:
                fields = line.split()
                port = int(fields[1].rpartition(":")[2], 16)
                entries.append(_Entry(int(fields[9]), port, int(fields[3], 16)))
    return entries
