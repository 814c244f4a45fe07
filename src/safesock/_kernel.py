"""What safesock asks of the operating system, and how.

It works on the C type `_socket.socket`, which both `SafeSocket` and `SSLSocket` are, so that no
override gets in the way. What is lost where the system is not Linux:

| | Linux | macOS | Windows |
|---|---|---|---|
| losses noticed by calls, `Graceful`, `Drain`, `Linger` | yes | yes | yes |
| the watcher (epoll); without it the next call notices | yes | no | no |
| RST by `Abort` | at once | by the last holder's `close` | as on macOS |
| `sent`, `unacknowledged` in the records | yes | None | None |
| `unread` in the records | yes | yes | None |
| TCP_USER_TIMEOUT | yes | ignored | ignored |
| the state in `repr` | yes | no | no |
"""

from __future__ import annotations

import _socket
import enum
import errno
import os
import select
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

fcntl: Any
termios: Any
try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = termios = None

LINUX = sys.platform == "linux"
HAS_EPOLL = hasattr(select, "epoll")
Raw = _socket.socket
SHUT_WR = _socket.SHUT_WR
# What getsockopt(2) is asked for: the error of a connect that went on in the background, the type.
ERROR = _socket.SOL_SOCKET, _socket.SO_ERROR
REUSE_ADDRESS = _socket.SOL_SOCKET, _socket.SO_REUSEADDR
TYPE = _socket.SOL_SOCKET, _socket.SO_TYPE

# What a connect that goes on in the background answers (EWOULDBLOCK on Windows).
CONNECT_GOES_ON = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EINTR, errno.EWOULDBLOCK})

_LOOKS = 8
_DONTWAIT = getattr(_socket, "MSG_DONTWAIT", 0)
_LINGER = struct.Struct("HH" if sys.platform == "win32" else "ii")
_TCP_INFO_SIZE = 256
_TCP = frozenset(
    (family, _socket.SOCK_STREAM, proto)
    for family in (_socket.AF_INET, _socket.AF_INET6)
    for proto in (0, _socket.IPPROTO_TCP)
)
# As C knows them: socket.socket makes an enum of each.
_family, _type, _proto = Raw.family.__get__, Raw.type.__get__, Raw.proto.__get__
# Offsets in struct tcp_info: u32, u64, u32, and two u64, the second being tcpi_bytes_retrans.
_TCP_INFO_LAST_ACK_RECV = 56
_TCP_INFO_BYTES_ACKED = 120
_TCP_INFO_NOTSENT_BYTES = 144
_TCP_INFO_BYTES_SENT = 200


class TcpState(enum.IntEnum):
    """The states of RFC 9293, 3.3.2, with Linux's numbers."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


_STATES = {int(state): state for state in TcpState}

# The peer has not closed its side.
PEER_OPEN = frozenset({TcpState.ESTABLISHED, TcpState.FIN_WAIT1, TcpState.FIN_WAIT2})
# Our FIN has been sent: it has not been acknowledged, or it has.
_OUR_FIN_OPEN = frozenset({TcpState.FIN_WAIT1, TcpState.CLOSING, TcpState.LAST_ACK})
_OUR_FIN_DONE = frozenset({TcpState.FIN_WAIT2, TcpState.TIME_WAIT})
# From these a shutdown(SHUT_WR) sends FIN.
SENDS_FIN = frozenset({TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.SYN_RECV})


def is_tcp(sock: Raw) -> bool:
    """Whether this is a TCP socket over IPv4 or IPv6, by what it was made with."""
    return (_family(sock), _type(sock), _proto(sock)) in _TCP


def tcp_state(sock: Raw) -> TcpState | None:
    """The state of the connection (TCP_INFO), or None where the system does not tell."""
    info = tcp_info(sock)
    return _STATES.get(info[0]) if info else None


def age_of_close_wait(sock: Raw) -> float:
    """The seconds since the peer's FIN, where that is the last that has come; else 0."""
    info = tcp_info(sock)
    return age_in(info) or 0.0 if info and info[0] == TcpState.CLOSE_WAIT else 0.0


def age_in(info: bytes) -> float | None:
    """The seconds since the peer was last heard of, by TCP_INFO."""
    if len(info) < _TCP_INFO_LAST_ACK_RECV + 4:
        return None
    (milliseconds,) = struct.unpack_from("I", info, _TCP_INFO_LAST_ACK_RECV)
    return float(milliseconds) / 1000


def was_established(sock: Raw) -> bool:
    """Whether a connect that went on in the background has made the connection.

    The peer's acknowledgement of our SYN counts as one byte, and stays counted after a RST.
    """
    if not LINUX:
        return bool(peer_name(sock))
    info = tcp_info(sock)
    return bool(info) and info[0] != TcpState.SYN_SENT and _bytes_acked(info) > 0


def peer_name(sock: Raw) -> tuple[Any, ...] | None:
    """getpeername(2), or None."""
    try:
        host, *rest = Raw.getpeername(sock)
    except OSError:
        return None
    return sys.intern(host), *rest  # Many have the same peer.


def is_listening(sock: Raw) -> bool:
    """SO_ACCEPTCONN."""
    return bool(Raw.getsockopt(sock, _socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))


def local_name(sock: Raw) -> object:
    """getsockname(2), or None."""
    try:
        return Raw.getsockname(sock)
    except OSError:
        return None


def unread(sock: Raw) -> int | None:
    """The bytes in the receive buffer (FIONREAD)."""
    return _queue(sock, "FIONREAD")


def unacknowledged(sock: Raw) -> int | None:
    """The bytes accepted that the peer's kernel has not acknowledged (SIOCOUTQ), and a FIN."""
    return _queue(sock, "TIOCOUTQ") if LINUX else None


def room(sock: Raw) -> int:
    """The bytes that still fit the send buffer."""
    try:
        size: int = Raw.getsockopt(sock, _socket.SOL_SOCKET, _socket.SO_SNDBUF)
    except OSError:
        return 0  # Somebody else has closed it.
    return max(size - (_queue(sock, "TIOCOUTQ") or 0), 0)


def counts(sock: Raw, *, syn: int, fin_sent: bool) -> tuple[int | None, int | None]:
    """The bytes that `send` accepted, and those that the peer's kernel has not acknowledged
    (SIOCOUTQ); None where the system does not tell.

    *syn*: 1 where our SYN is counted, see `control_bytes`. *fin_sent*: our FIN has been sent, for
    the state CLOSE, which does not show it; it counts as a byte, too.
    """
    info, queued = _tcp_info_and_queue(sock)
    if queued is None or not info or (info[0] == TcpState.CLOSE and _bytes_acked(info) < syn):
        return None, None  # Where our SYN is not counted any more, `disconnect` was quicker.
    fin = fin_sent or info[0] in _OUR_FIN_OPEN or info[0] in _OUR_FIN_DONE
    accepted = max(_bytes_acked(info) - syn + queued - fin, 0)
    return accepted, queued - (fin and queued > 0)


def fin_was_sent(sock: Raw) -> bool:
    """Whether our side has been shut down already; the state CLOSE does not tell."""
    return tcp_state(sock) in _OUR_FIN_OPEN | _OUR_FIN_DONE


def control_bytes(sock: Raw) -> int:
    """How many of our SYN and FIN the kernel counts as bytes: it does so with the SYN of the side
    that connected. It is told by comparing with tcpi_bytes_sent, which counts payload only; 1 where
    that is not possible, as nearly all have connected."""
    info = tcp_info(sock)
    for _ in range(_LOOKS):
        before, queued, info = info, unacknowledged(sock), tcp_info(sock)
        if queued is None or len(info) < _TCP_INFO_BYTES_SENT + 16:
            break
        # Another thread may send meanwhile, or an acknowledgement come.
        if (traffic := _traffic(info)) == _traffic(before):
            acked, unsent, sent, resent = traffic
            return max(acked + queued - unsent - (sent - resent), 0)
    return 1


def _traffic(info: bytes) -> tuple[int, int, int, int]:
    """The bytes acknowledged, not sent yet, sent, and sent again, of a long enough TCP_INFO."""
    (unsent,) = struct.unpack_from("I", info, _TCP_INFO_NOTSENT_BYTES)
    sent, resent = struct.unpack_from("QQ", info, _TCP_INFO_BYTES_SENT)
    return _bytes_acked(info), unsent, sent, resent


def connected_here(sock: Raw) -> bool:
    """Whether this side has connected, and not accepted. False before Linux 4.19, as unknown."""
    return len(tcp_info(sock)) >= _TCP_INFO_BYTES_SENT + 16 and control_bytes(sock) == 1


def set_linger(sock: Raw, seconds: int | None) -> None:
    """SO_LINGER: None is off, 0 makes the last close(2) send RST."""
    choice = _LINGER.pack(seconds is not None, seconds or 0)
    try:
        Raw.setsockopt(sock, _socket.SOL_SOCKET, _socket.SO_LINGER, choice)
    except OSError:
        pass  # Somebody else has closed it.


def linger_in(option: tuple[Any, ...]) -> tuple[bool, int] | None:
    """On or off, and the seconds, when these arguments of setsockopt(2) are about SO_LINGER."""
    if option[:2] != (_socket.SOL_SOCKET, _socket.SO_LINGER):
        return None
    on, seconds = _LINGER.unpack_from(option[2])
    return bool(on), seconds


def set_reuse_address(sock: Raw, on: bool) -> None:
    """SO_REUSEADDR."""
    Raw.setsockopt(sock, *REUSE_ADDRESS, int(on))


def set_receive_buffer(sock: Raw, size: int) -> None:
    """SO_RCVBUF, in bytes, of which the kernel makes twice as many."""
    Raw.setsockopt(sock, _socket.SOL_SOCKET, _socket.SO_RCVBUF, size)


def set_keepalive(sock: Raw, idle: int, interval: int, count: int) -> None:
    """SO_KEEPALIVE, on."""
    set_tcp(sock, "TCP_KEEPINTVL", interval)
    set_tcp(sock, "TCP_KEEPCNT", count)
    set_tcp(sock, "TCP_KEEPIDLE" if hasattr(_socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", idle)
    Raw.setsockopt(sock, _socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)


def set_tcp(sock: Raw, name: str, value: int) -> None:
    """An option of TCP, where the system has it."""
    option = getattr(_socket, name, None)
    if option is not None:
        Raw.setsockopt(sock, _socket.IPPROTO_TCP, option, value)


def shutdown(sock: Raw, how: int) -> bool:
    """shutdown(2). False: the connection was over already, with nothing left to shut down."""
    try:
        Raw.shutdown(sock, how)
    except OSError:
        return False
    return True


def stop_connecting(sock: Raw) -> None:
    """Wakes who waits in connect(2), which close(2) does not."""
    if tcp_state(sock) in (None, TcpState.SYN_SENT):
        shutdown(sock, _socket.SHUT_RDWR)


def hand_over(sock: Raw, to: Raw, begin: Callable[[int], object]) -> None:
    """*begin*, which makes *to* of the descriptor of *sock*, and `detach`. Whatever a
    KeyboardInterrupt strikes, the descriptor has one owner, who closes it: two would close a
    stranger's."""
    try:
        begin(sock.fileno())
        Raw.detach(sock)
    except BaseException:
        if Raw.fileno(sock) >= 0:
            Raw.detach(to)
        raise
    sock.detach()  # What else that does.


def ready(sock: Raw, timeout: float | None, *, write: bool = False) -> bool:
    """Whether there is something to read (or, with *write*, room to write), or an error, waiting
    *timeout* seconds for it, or without limit (None)."""
    fd = sock.fileno()
    if fd < 0:
        return True
    if not hasattr(select, "poll"):  # Windows
        readers, writers = ([], [fd]) if write else ([fd], [])
        return any(select.select(readers, writers, [], timeout))
    poll = select.poll()
    poll.register(fd, select.POLLOUT if write else select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def read_now(sock: Raw, buffer: bytearray) -> int | None:
    """recv(2) without waiting: the number of bytes, 0 at end of file, None where there is nothing.

    Raises OSError when the connection is over.
    """
    # A socket with a timeout waits in C before it calls recv: it is asked only when it need not.
    if (not _DONTWAIT or Raw.gettimeout(sock)) and not ready(sock, 0):
        return None
    try:
        return Raw.recv_into(sock, buffer, 0, _DONTWAIT)
    except (BlockingIOError, TimeoutError) as error:
        if error.errno == errno.ETIMEDOUT:
            raise
        return None


def take_error(sock: Raw) -> OSError | None:
    """The error that waits for the next call (SO_ERROR), which no longer gets it."""
    try:
        number = Raw.getsockopt(sock, _socket.SOL_SOCKET, _socket.SO_ERROR)
    except OSError:
        return None  # Somebody else has closed it.
    return os_error(number) if number else None


def os_error(number: int) -> OSError:
    """The exception that Python raises for this errno."""
    return OSError(number, os.strerror(number))


def tcp_info(sock: Raw) -> bytes:
    """TCP_INFO; nothing where the system does not tell."""
    if not LINUX:
        return b""
    try:
        return Raw.getsockopt(sock, _socket.IPPROTO_TCP, _socket.TCP_INFO, _TCP_INFO_SIZE)
    except OSError:
        return b""


def _tcp_info_and_queue(sock: Raw) -> tuple[bytes, int | None]:
    """TCP_INFO and SIOCOUTQ of one moment, as far as can be: no acknowledgement or FIN between."""
    queued = unacknowledged(sock)
    info = tcp_info(sock)
    if not info or (queued == 0 and info[0] not in _OUR_FIN_OPEN):
        return info, queued  # All had been acknowledged, so nothing can have come between.
    for _ in range(_LOOKS):
        queued = unacknowledged(sock)
        before, info = info, tcp_info(sock)
        if not info or (before[0], _bytes_acked(before)) == (info[0], _bytes_acked(info)):
            break
    return info, queued


def _bytes_acked(info: bytes) -> int:
    if len(info) < _TCP_INFO_BYTES_ACKED + 8:
        return 0
    (acked,) = struct.unpack_from("Q", info, _TCP_INFO_BYTES_ACKED)
    return int(acked)


def _queue(sock: Raw, request: str) -> int | None:
    if fcntl is None:
        return None
    try:
        answer = fcntl.ioctl(sock.fileno(), getattr(termios, request), b"\0\0\0\0")
    except (OSError, ValueError):
        return None
    return int.from_bytes(answer, sys.byteorder)
