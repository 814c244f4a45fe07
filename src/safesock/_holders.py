"""Who holds a local port: what /proc knows of it (Linux). Elsewhere nothing is known."""

from __future__ import annotations

import os
import socket

from safesock import _kernel, _proc
from safesock._errors import PortHolder
from safesock._kernel import Raw, TcpState
from safesock._kernel_diag import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_TIME_WAIT_TIMER = "03"
_ANY = frozenset({"", "0.0.0.0", "::"})
_MAPPED = "::ffff:"


def holders(
    family: int, local: tuple[Any, ...], peer: tuple[Any, ...] | None = None
) -> list[PortHolder]:
    """The sockets that are in the way of one of this *family* with this *local* address; with
    *peer*, those that are connected to it.

    Listening ones come first. Those that are bound and neither connected nor listening are in no
    table: they are found where this process has them open.
    """
    found: list[PortHolder] = []
    host, port = local[:2]
    if peer is not None and host in _ANY:
        host = _source(family, peer)
    rows = _distinct(row for row in _rows(port) if row.is_at(family, host) and row.is_with(peer))
    owners = _owners({row.inode for row in rows if row.inode != 0})
    for row in rows:
        found += [row.holder(*owner) for owner in owners.get(row.inode, [(None, None, None)])]
    if peer is None:
        known = {holder.descriptor for holder in found if holder.pid == os.getpid()}
        bound = _bound_here(family, host, port)
        found += [one for one in bound if one.descriptor not in known]
    return sorted(found, key=lambda holder: holder.state != TcpState.LISTEN.name)


def _source(family: int, peer: tuple[Any, ...]) -> str:
    """The address that this host has towards *peer*. UDP, so that nothing is sent."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(peer)
            host: str = probe.getsockname()[0]
            return host
    except OSError:
        return ""


class _Row:
    """A line of /proc/net/tcp: proc(5)."""

    def __init__(self, line: _proc.Line, family: int) -> None:
        self._family = family
        self._host = line.local[0]
        self.local = plain(self._host), line.local[1]
        self.peer = plain(line.peer[0]), line.peer[1]
        self._state = line.state
        # FIN_WAIT2 has such a timer too, but it ends when the peer sends FIN or RST.
        timed = line.timer == _TIME_WAIT_TIMER and line.state is TcpState.TIME_WAIT
        self._left = line.ticks / os.sysconf("SC_CLK_TCK") if timed else None
        self.inode = line.inode

    def is_at(self, family: int, host: str) -> bool:
        return _overlap(self._family, self._host, family, host)

    def is_with(self, peer: tuple[Any, ...] | None) -> bool:
        return peer is None or self.peer == (plain(peer[0]), peer[1])

    def holder(self, pid: int | None, command: str | None, descriptor: int | None) -> PortHolder:
        peer = None if self.peer[1] == 0 else self.peer
        state = self._state.name
        return PortHolder(state, self.local, peer, pid, command, descriptor, self._left)


def _distinct(rows: Iterable[_Row]) -> list[_Row]:
    """The table is read in parts: where connections come and go, a row may be met twice."""
    return list({(row.inode, row.local, row.peer): row for row in rows}.values())


def _rows(port: int) -> Iterator[_Row]:
    for name, family in _proc.TCP.items():
        # Of the thread: it may be in a network namespace of its own.
        yield from _rows_in(_proc.lines("thread-self", name), family, port)


def _rows_in(lines: Iterable[str], family: int, port: int) -> Iterator[_Row]:
    text = f":{port:04X} "
    for line in lines:
        if text in line:  # Few are, and there may be thousands.
            found = _proc.parsed(line, family)
            if found is not None and found.local[1] == port:
                yield _Row(found, family)


def _overlap(one_family: int, one: str, other_family: int, other: str) -> bool:
    """Whether two local addresses get in each other's way."""
    if _speaks_ipv4(one_family, one) == _speaks_ipv4(other_family, other):
        return plain(one) == plain(other) or plain(one) in _ANY or plain(other) in _ANY
    # The IPv6 one is for IPv4 too, unless it has IPV6_V6ONLY: that is not to be seen.
    ipv6 = other if _speaks_ipv4(one_family, one) else one
    return ipv6 in _ANY


def _speaks_ipv4(family: int, host: str) -> bool:
    return family == socket.AF_INET or host.startswith(_MAPPED)


def _owners(inodes: set[int]) -> dict[int, list[tuple[int, str, int]]]:
    """The processes and descriptors that have these sockets open, this process first."""
    found: dict[int, list[tuple[int, str, int]]] = {}
    if not inodes:
        return found
    own = os.getpid()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for pid in sorted(pids, key=lambda pid: (pid != own, pid)):
        try:
            for descriptor, inode in _proc.sockets_of(pid):
                if inode in inodes:
                    found.setdefault(inode, []).append((pid, _proc.command(pid), descriptor))
        except OSError:
            continue  # It has ended, or is another user's.
    return found


def _bound_here(family: int, host: str, port: int) -> Iterator[PortHolder]:
    own = os.getpid()
    try:
        descriptors = list(_proc.sockets_of(own))
    except OSError:
        return  # There is no /proc.
    for descriptor, _ in descriptors:
        try:
            duplicate = os.dup(descriptor)
        except OSError:
            continue
        try:
            sock = Raw(fileno=duplicate)
        except OSError:
            os.close(duplicate)  # The number has become something else's.
            continue
        try:
            sock_family = sock.family
            name = _kernel.local_name(sock) if _kernel.is_tcp(sock) else None
        finally:
            sock.close()
        if not isinstance(name, tuple) or name[1] != port:
            continue
        if _overlap(sock_family, name[0], family, host):
            where = plain(name[0]), port
            yield PortHolder(TcpState.CLOSE.name, where, None, own, _proc.command(own), descriptor)
