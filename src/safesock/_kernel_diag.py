"""What Linux tells of TCP connections beyond one's own sockets: sock_diag(7), and pidfd_getfd(2).

sock_diag gives the TCP_INFO of every socket of the network namespace, to anybody, in one go and
without a descriptor. What is in none of its tables, a socket whose connection is over, can only be
asked by a descriptor: for that of another process, a duplicate is taken for a moment.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
from typing import NamedTuple

from safesock import _kernel
from safesock._kernel import Raw, TcpState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator
    from typing import Any

    Address = tuple[str, int]

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_INET_DIAG_INFO = 2
_HEADER = struct.Struct("=IHHII")
# struct inet_diag_req_v2: family, protocol, extensions, states, and a socket that is not named.
_QUESTION = struct.Struct("=BBBxI48x")
# struct inet_diag_msg: family, state, ports, addresses, both queues, inode.
_ANSWER = struct.Struct("=BBxx2s2s16s16s16xII4xI")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 17
_PIDFD_GETFD = 438
_MAX_ERRNO = 4095
_TCP_INFO_RTT, _TCP_INFO_BYTES_ACKED = 68, 120
_NOT_CONNECTIONS = frozenset({TcpState.LISTEN, TcpState.TIME_WAIT, TcpState.NEW_SYN_RECV})
_ASKED = sum(1 << state for state in TcpState if state not in _NOT_CONNECTIONS)
_LISTENING = 1 << TcpState.LISTEN
_STATES = {int(state): state for state in TcpState}
_FAMILIES = {socket.AF_INET: 4, socket.AF_INET6: 16}
# The kernel counts a FIN as a byte: the peer's until it is read, ours until it is acknowledged; and
# so our SYN.
_PEER_CLOSED = frozenset({TcpState.CLOSE_WAIT, TcpState.LAST_ACK, TcpState.CLOSING})
_OURS_COUNTS = frozenset(
    {TcpState.SYN_SENT, TcpState.FIN_WAIT1, TcpState.CLOSING, TcpState.LAST_ACK}
)


class Row(NamedTuple):
    """One TCP connection, as the kernel has it.

    age: seconds since the peer was last heard of, for CLOSE_WAIT only; None where that is not told.
    lost: it is over, and this side has never sent FIN.
    """

    state: TcpState
    local: Address | None
    peer: Address | None
    unread: int | None
    unacknowledged: int | None
    inode: int
    age: float | None = None
    lost: bool = False


def queues(state: TcpState, received: int, sent: int) -> tuple[int, int]:
    """Bytes unread and unacknowledged, from what the kernel's tables have."""
    # Mostly there is nothing.
    unread = received and max(received - (state in _PEER_CLOSED), 0)
    return unread, sent and max(sent - (state in _OURS_COUNTS), 0)


def plain(host: str) -> str:
    """Without what says that IPv4 is spoken by an IPv6 socket, and without a scope."""
    return host.removeprefix("::ffff:").partition("%")[0]


def connections(wanted: Container[int] | None = None) -> dict[int, Row]:
    """Those of this network namespace that somebody has a descriptor of, by inode; only those that
    are *wanted*. Raises OSError where the kernel has no sock_diag."""
    return {row.inode: row for row in _dump(_ASKED, wanted)}


def listening() -> set[int]:
    """The ports of this network namespace that are listened on. Raises OSError as above."""
    return {row.local[1] for row in _dump(_LISTENING, None) if row.local is not None}


def _dump(states: int, wanted: Container[int] | None) -> Iterator[Row]:
    for family in _FAMILIES:
        question = _QUESTION.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), states)
        length = _HEADER.size + len(question)
        netlink = Raw(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        try:
            netlink.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + question)
            done = False
            while not done:
                rows, done = parse(netlink.recv(_BUFFER), wanted)
                yield from rows
        finally:
            netlink.close()


def parse(data: bytes, wanted: Container[int] | None = None) -> tuple[list[Row], bool]:
    """The connections in one answer of sock_diag, and whether it is the last one. Raises OSError
    for an error that it tells, and ValueError for what is no such answer."""
    rows: list[Row] = []
    at = 0
    try:
        while at < len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            body, end = at + _HEADER.size, at + length
            if length < _HEADER.size or end > len(data):
                raise ValueError(f"an answer of sock_diag with a message of {length} bytes")
            if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                _raise_if_error(data[body:end])
                return rows, True
            if kind == _SOCK_DIAG_BY_FAMILY:
                row = _row(data, body, end, wanted)
                if row is not None:
                    rows.append(row)
            at += (length + 3) & ~3
    except struct.error as error:
        raise ValueError(f"an answer of sock_diag that is cut off: {error}") from None
    return rows, False


def _raise_if_error(body: bytes) -> None:
    (number,) = struct.unpack_from("=i", body) if body else (0,)
    if number:
        raise _kernel.os_error(-number if -_MAX_ERRNO <= number < 0 else errno.EPROTO)


def _row(data: bytes, body: int, end: int, wanted: Container[int] | None) -> Row | None:
    found = _ANSWER.unpack_from(data, body)
    family, number, local_port, peer_port, local, peer, received, sent, inode = found
    # No inode: nobody has a descriptor of it, any more or yet.
    if not inode or (wanted is not None and inode not in wanted):
        return None
    state, size = _STATES.get(number), _FAMILIES.get(family)
    if state is None or size is None or body + _ANSWER.size > end:
        raise ValueError(f"an answer of sock_diag with state {number} of family {family}")
    return Row(
        state,
        _address(family, local[:size], local_port),
        _address(family, peer[:size], peer_port),
        *queues(state, received, sent),
        inode,
        _age(data, body + _ANSWER.size, end) if state is TcpState.CLOSE_WAIT else None,
    )


def _address(family: int, host: bytes, port: bytes) -> Address:
    return _host(family, host), int.from_bytes(port, "big")


@functools.lru_cache(4096)
def _host(family: int, host: bytes) -> str:
    return plain(socket.inet_ntop(family, host))


def _age(data: bytes, at: int, end: int) -> float | None:
    while at < end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > end:
            raise ValueError(f"an answer of sock_diag with an attribute of {length} bytes")
        if kind == _INET_DIAG_INFO:
            return _kernel.age_in(data[at + _ATTRIBUTE.size : at + length])
        at += (length + 3) & ~3
    return None


# By descriptor --------------------------------------------------------------------------------


def look(fd: int, accepting: Container[int]) -> Row | None:
    """What this descriptor of our own holds; None for what is no TCP connection and never was one.
    *accepting*: the ports that are listened on, as our SYN counts only where we have connected."""
    sock = Raw.__new__(Raw)
    try:
        Raw.__init__(sock, fileno=fd)  # Within: a KeyboardInterrupt is not to close it.
        info = _kernel.tcp_info(sock)
        state = _STATES.get(info[0]) if info else None
        is_over = state is TcpState.CLOSE
        if state is None or state in _NOT_CONNECTIONS or (is_over and not _was_connected(info)):
            return None
        local = _plain_address(sock.getsockname())
        peer = None if is_over else _plain_address(_kernel.peer_name(sock))
        unacknowledged = _kernel.counts(sock, syn=0, fin_sent=False)[1]
        age = _kernel.age_in(info) if state is TcpState.CLOSE_WAIT else None
        made = local is not None and local[1] not in accepting
        lost = is_over and _kernel.control_bytes(sock) <= made
        inode = os.fstat(fd).st_ino
        return Row(state, local, peer, _kernel.unread(sock), unacknowledged, inode, age, lost)
    except OSError:
        return None  # No TCP; or closed meanwhile.
    finally:
        sock.detach()


def _was_connected(info: bytes) -> bool:
    """A handshake has been timed, or bytes have been counted: acknowledged, or received."""
    timed = any(info[_TCP_INFO_RTT : _TCP_INFO_RTT + 4])
    return timed or any(info[_TCP_INFO_BYTES_ACKED : _TCP_INFO_BYTES_ACKED + 16])


def _plain_address(name: Any) -> Address | None:
    return (plain(name[0]), name[1]) if isinstance(name, tuple) else None


def look_into(pid: int, fds: Iterable[int], accepting: Container[int]) -> dict[int, Row]:
    """As `look`, for descriptors of any process. Raises OSError where that is not allowed: it takes
    what ptrace(2) takes."""
    if pid == os.getpid():
        looked = ((fd, look(fd, accepting)) for fd in fds)
        return {fd: row for fd, row in looked if row is not None}
    pidfd = os.pidfd_open(pid)
    try:
        found = {}
        for fd in fds:
            duplicate = _duplicate(pidfd, fd)
            if duplicate is not None:
                try:
                    row = look(duplicate, accepting)
                finally:
                    os.close(duplicate)
                if row is not None:
                    found[fd] = row
        return found
    finally:
        os.close(pidfd)


@functools.cache
def _libc() -> tuple[Any, Callable[[], int]]:
    """The C library, and what gives its errno. To load it takes longer than to call it."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True), ctypes.get_errno


def _duplicate(pidfd: int, fd: int) -> int | None:
    libc, get_errno = _libc()
    duplicate: int = libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
    if duplicate >= 0:
        return duplicate
    number = get_errno()
    if number == errno.EBADF:
        return None  # Closed meanwhile.
    raise _kernel.os_error(number)
