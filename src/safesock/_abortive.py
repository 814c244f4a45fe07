"""An abortive close: what sends RST, whoever else holds the connection, and what that takes."""

from __future__ import annotations

import _socket
import functools
import struct

from safesock import _kernel
from safesock._kernel import Raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ATTACH_FILTER, _DETACH_FILTER = (_socket.SOL_SOCKET, 26), (_socket.SOL_SOCKET, 27)
# IP_MINTTL, and IPV6_MINHOPCOUNT (RFC 5082).
_LEAST_TTL, _LEAST_HOPS = (_socket.IPPROTO_IP, 21), (_socket.IPPROTO_IPV6, 73)
_MOST_HOPS = 255


def disconnect(sock: Raw, *, syn: int, fin_sent: bool) -> tuple[int | None, int | None]:
    """connect(2) to AF_UNSPEC: RST, whoever else holds the connection; unread input is thrown away.
    Gives the `counts` of that moment. Where the system has no such thing it does nothing else.

    The kernel forgets its counts then, and another thread's `send` may be at work until then. But
    SIOCOUTQ goes on answering, with what was unacknowledged and a distance that each disconnect
    adds: a second one tells how far that is. No acknowledgement may come between.
    """
    connect = load_connect()
    if connect is None:
        return _kernel.counts(sock, syn=syn, fin_sent=fin_sent)
    show_peer = hide_peer(sock)
    sent, queued = _kernel.counts(sock, syn=syn, fin_sent=fin_sent)
    if connect(sock.fileno()) != 0:
        # Some kernels refuse while somebody waits in recv (EBUSY), whom this wakes.
        _kernel.shutdown(sock, _socket.SHUT_RD)
        connect(sock.fileno())
    once = _kernel.unacknowledged(sock)
    connect(sock.fileno())
    twice = _kernel.unacknowledged(sock)
    if show_peer is not None:
        show_peer()
    # Others wake by this, which puts nothing on the wire; but not first, as OpenSSL answers the end
    # of file with an alert.
    _kernel.shutdown(sock, _socket.SHUT_RD)
    if sent is None or queued is None or once is None or twice is None or fin_sent:
        return sent, queued
    more = (2 * once - twice - queued) % 2**32
    return (sent + more, queued + more) if more < 2**31 else (sent, queued)


def reset_keeping_input(sock: Raw) -> bool:
    """RST that leaves unread input where it is, in a second or two. False: not now, as sent data
    is unacknowledged, or the peer cannot be hidden.

    AF_UNSPEC throws unread input away, and so does close(2). What sends RST and does not is a
    keepalive that gives up: all that the peer sends is hidden from this socket, so the first probe,
    due at once as nothing has come for a second, is not answered. While sent data is
    unacknowledged there are no probes, and what the peer answers to it is needed.
    """
    show_peer = hide_peer(sock)
    if show_peer is None and _kernel.LINUX:
        return False
    if show_peer is not None and _kernel.unacknowledged(sock):
        show_peer()
        return False
    try:
        Raw.setsockopt(sock, _socket.IPPROTO_TCP, _socket.TCP_USER_TIMEOUT, 0)
        _kernel.set_keepalive(sock, 1, 1, 1)
    except OSError:
        pass  # Somebody else has closed it.
    return True


def hide_peer(sock: Raw) -> Callable[[], None] | None:
    """Drops all that comes for this socket; for one that listens also SYNs. Gives what ends that;
    None where it cannot be done.

    By a filter (SO_ATTACH_FILTER). Newer kernels keep that for CAP_NET_ADMIN: without it, what has
    not begun with the highest TTL, or has come through a router, is dropped. Most systems send 64.
    """
    if not _kernel.LINUX:
        return None
    load_connect()
    try:
        Raw.setsockopt(sock, *_ATTACH_FILTER, _drop_all)
    except OSError:
        return _hide_by_ttl(sock)
    return functools.partial(_set, sock, (*_DETACH_FILTER, 0))


def _hide_by_ttl(sock: Raw) -> Callable[[], None] | None:
    """For AF_INET6 both, as it may be connected to an IPv4 address."""
    options = [_LEAST_TTL, _LEAST_HOPS] if sock.family == _socket.AF_INET6 else [_LEAST_TTL]
    try:
        before = [(*option, Raw.getsockopt(sock, *option)) for option in options]
        for option in options:
            Raw.setsockopt(sock, *option, _MOST_HOPS)
    except OSError:
        return None  # Somebody else has closed it.
    return functools.partial(_set, sock, *before)


def _set(sock: Raw, *options: tuple[int, int, int]) -> None:
    try:
        for option in options:
            Raw.setsockopt(sock, *option)
    except OSError:
        pass  # Somebody else has closed it.


_connect: Callable[[int], int] | None = None
# A filter that drops all: BPF, return 0 bytes of the packet.
_drop_all = b""


def load_connect() -> Callable[[int], int] | None:
    """connect(2) to AF_UNSPEC, which Python's own does not take."""
    global _connect, _drop_all
    if _connect is None and _kernel.LINUX:
        import ctypes

        connect = ctypes.CDLL(None, use_errno=True).connect
        unspec = bytes(16)
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0), 8)
        _drop_all = struct.pack("HP", 1, ctypes.addressof(instruction))

        def connect_unspec(fd: int, _kept_alive: object = instruction) -> int:
            return int(connect(fd, unspec, len(unspec)))

        _connect = connect_unspec
    return _connect
