"""Who holds a local port: what /proc knows of it (Linux). Elsewhere nothing is known."""

from __future__ import annotations

import os
import socket
import sys

from safesock import _kernel
from safesock._errors import PortHolder
from safesock._kernel import Raw, TcpState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_TABLES = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6}
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
    owners = _owners({row.inode for row in rows if row.inode != "0"})
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

    def __init__(self, fields: list[str], family: int) -> None:
        self._family = family
        self._host = _address(fields[1], family)[0]
        self.local = _plain(self._host), _address(fields[1], family)[1]
        peer_host, peer_port = _address(fields[2], family)
        self.peer = _plain(peer_host), peer_port
        self._state = TcpState(int(fields[3], 16))
        timer, _, ticks = fields[5].partition(":")
        # FIN_WAIT2 has such a timer too, but it ends when the peer sends FIN or RST.
        timed = timer == _TIME_WAIT_TIMER and self._state is TcpState.TIME_WAIT
        self._left = int(ticks, 16) / os.sysconf("SC_CLK_TCK") if timed else None
        self.inode = fields[9]

    def is_at(self, family: int, host: str) -> bool:
        return _overlap(self._family, self._host, family, host)

    def is_with(self, peer: tuple[Any, ...] | None) -> bool:
        return peer is None or self.peer == (_plain(peer[0]), peer[1])

    def holder(self, pid: int | None, command: str | None, descriptor: int | None) -> PortHolder:
        peer = None if self.peer[1] == 0 else self.peer
        state = self._state.name
        return PortHolder(state, self.local, peer, pid, command, descriptor, self._left)


def _distinct(rows: Iterable[_Row]) -> list[_Row]:
    """The table is read in parts: where connections come and go, a row may be met twice."""
    return list({(row.inode, row.local, row.peer): row for row in rows}.values())


def _rows(port: int) -> Iterator[_Row]:
    ending = f":{port:04X}"
    for name, family in _TABLES.items():
        try:
            # Of the thread: it may be in a network namespace of its own.
            with open(f"/proc/thread-self/net/{name}", encoding="ascii") as table:
                next(table)
                for line in table:
                    fields = line.split()
                    if fields[1].endswith(ending):
                        yield _Row(fields, family)
        except OSError:
            continue


def _address(text: str, family: int) -> tuple[str, int]:
    digits, _, port = text.partition(":")
    words = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    raw = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return socket.inet_ntop(family, raw), int(port, 16)


def _plain(host: str) -> str:
    """Without what says that IPv4 is spoken by an IPv6 socket, and without a scope."""
    return host.removeprefix(_MAPPED).partition("%")[0]


def _overlap(one_family: int, one: str, other_family: int, other: str) -> bool:
    """Whether two local addresses get in each other's way."""
    if _speaks_ipv4(one_family, one) == _speaks_ipv4(other_family, other):
        return _plain(one) == _plain(other) or _plain(one) in _ANY or _plain(other) in _ANY
    # The IPv6 one is for IPv4 too, unless it has IPV6_V6ONLY: that is not to be seen.
    ipv6 = other if _speaks_ipv4(one_family, one) else one
    return ipv6 in _ANY


def _speaks_ipv4(family: int, host: str) -> bool:
    return family == socket.AF_INET or host.startswith(_MAPPED)


def _owners(inodes: set[str]) -> dict[str, list[tuple[int, str, int]]]:
    """The processes and descriptors that have these sockets open, this process first."""
    found: dict[str, list[tuple[int, str, int]]] = {}
    if not inodes:
        return found
    own = os.getpid()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for pid in sorted(pids, key=lambda pid: (pid != own, pid)):
        for descriptor, inode in _sockets_of(pid):
            if inode in inodes:
                found.setdefault(inode, []).append((pid, _command(pid), descriptor))
    return found


def _sockets_of(pid: int) -> Iterator[tuple[int, str]]:
    """The descriptors of its sockets, with their inodes; none of a process of another user."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            kind, _, inode = os.readlink(f"{folder}/{name}").partition(":")
        except OSError:
            continue
        if kind == "socket":
            yield int(name), inode.strip("[]")


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def _bound_here(family: int, host: str, port: int) -> Iterator[PortHolder]:
    own = os.getpid()
    for descriptor, _ in _sockets_of(own):
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
            where = _plain(name[0]), port
            yield PortHolder(TcpState.CLOSE.name, where, None, own, _command(own), descriptor)
