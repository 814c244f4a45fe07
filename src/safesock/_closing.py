"""The close sequences: what is done to a descriptor so that the wire shows what the policy says.

`finish` ends a connection whose descriptor is about to be closed; `release` ends one and leaves the
descriptor, with what is unread, to its owner. Neither raises, and both may be run again on a
connection that has ended.

Why `Graceful` empties the receive buffer: for one unread byte the kernel answers close(2) with RST,
and throws away what it had accepted from `send` and not delivered. Of two megabytes, a peer that
had sent a single byte read 113 kB. shutdown(2) before the close does not help, nor does a positive
SO_LINGER; reading what is there, between the two, does, and costs no waiting.

Why `Abort` is not just SO_LINGER(1, 0): that acts on the last close(2) of a connection, so it does
nothing while a duplicate descriptor or a forked child exists, and shutdown(SHUT_RDWR) before it
sends a FIN, which makes a cut-off stream look complete. connect(2) to AF_UNSPEC sends RST at once.
"""

from __future__ import annotations

import _socket
import time

from safesock import _kernel
from safesock._kernel import Raw, TcpState
from safesock._policy import Abort, CloseMode, Drain, Linger
from safesock._value import Value

# What is dropped goes here, from all threads at once: nobody ever reads it.
_rubbish = bytearray(65536)
_OVER = frozenset({TcpState.CLOSE, TcpState.TIME_WAIT})
# Those from which connect(AF_UNSPEC) and a close(2) with SO_LINGER(1, 0) send RST. None: unknown.
_RESETTABLE = frozenset(
    {
        TcpState.ESTABLISHED,
        TcpState.CLOSE_WAIT,
        TcpState.FIN_WAIT1,
        TcpState.FIN_WAIT2,
        TcpState.SYN_RECV,
        None,
    }
)


class Outcome(Value):
    """What was seen while a connection was ended."""

    __slots__ = ("unacknowledged", "unread", "reset")
    unacknowledged: int | None
    unread: int | None
    reset: bool

    def __init__(self, unacknowledged: int | None, unread: int | None, reset: bool) -> None:
        self._set(unacknowledged=unacknowledged, unread=unread, reset=reset)


def finish(sock: Raw, mode: CloseMode, *, fin_sent: bool) -> Outcome:
    """Everything but close(2), which the caller does next. Blocks no longer than *mode* says.

    *fin_sent*: whether our FIN has been sent before.
    """
    if isinstance(mode, Abort):
        return _abort(sock, fin_sent)
    sends_fin = _kernel.tcp_state(sock) in _kernel.SENDS_FIN
    if isinstance(mode, Drain):
        return _drain(sock, mode.timeout, fin_sent, sends_fin)
    linger = mode.seconds if isinstance(mode, Linger) else None
    return _graceful(sock, linger, fin_sent, sends_fin)


def can_release(sock: Raw, mode: CloseMode) -> bool:
    """Whether `release` can be had now: not an `Abort` with unread input, for which the kernel has
    nothing while sent data is unacknowledged (see `_kernel.reset_keeping_input`)."""
    if not isinstance(mode, Abort) or _kernel.tcp_state(sock) in _OVER:
        return True
    return not (_kernel.unread(sock) and _kernel.unacknowledged(sock, fin_sent=False))


def release(sock: Raw, mode: CloseMode) -> bool:
    """Ends a connection that the peer has closed; the owner may read what is left, then b"".

    Never blocks. False, and nothing done, for an `Abort` that can not yet be had without throwing
    unread input away.
    """
    if not isinstance(mode, Abort):
        _kernel.shutdown(sock, _socket.SHUT_RDWR)
        return True
    if _kernel.tcp_state(sock) in _OVER:
        return True
    if _kernel.unread(sock):
        return _kernel.reset_keeping_input(sock)
    _kernel.disconnect(sock)
    # A disconnected socket answers ECONNRESET, then ENOTCONN; after this, as one at end of file.
    _kernel.take_error(sock)
    _kernel.shutdown(sock, _socket.SHUT_RDWR)
    return True


def _graceful(sock: Raw, linger: int | None, fin_sent: bool, sends_fin: bool) -> Outcome:
    _kernel.set_linger(sock, linger)
    fin_sent |= _kernel.shutdown(sock, _socket.SHUT_RDWR) and sends_fin
    dropped = _drop_unread(sock)
    return Outcome(_kernel.unacknowledged(sock, fin_sent=fin_sent), dropped, reset=False)


def _drain(sock: Raw, timeout: float, fin_sent: bool, sends_fin: bool) -> Outcome:
    dropped, closed = 0, False
    try:
        # Whoever is killed, or interrupted, while waiting has stopped waiting: that is a RST.
        _kernel.set_linger(sock, 0)
        fin_sent |= _kernel.shutdown(sock, _socket.SHUT_WR) and sends_fin
        dropped, closed = _drop_until_closed(sock, time.monotonic() + timeout)
    finally:
        if closed:
            _kernel.set_linger(sock, None)
        else:
            aborted = _abort(sock, fin_sent)
    if not closed:
        return Outcome(aborted.unacknowledged, dropped + (aborted.unread or 0), aborted.reset)
    _kernel.shutdown(sock, _socket.SHUT_RDWR)
    return Outcome(_kernel.unacknowledged(sock, fin_sent=fin_sent), dropped, reset=False)


def _abort(sock: Raw, fin_sent: bool) -> Outcome:
    unacknowledged = _kernel.unacknowledged(sock, fin_sent=fin_sent)
    unread = _kernel.unread(sock)
    reset = _kernel.tcp_state(sock) in _RESETTABLE
    _kernel.set_linger(sock, 0)
    # Where this fails, close(2) with that linger sends the RST; the readers have been woken.
    _kernel.disconnect(sock)
    return Outcome(unacknowledged, unread, reset)


def _drop_unread(sock: Raw) -> int:
    dropped = 0
    try:
        while count := _kernel.read_now(sock, _rubbish):
            dropped += count
    except OSError:
        pass  # The connection is over: there is nothing more to read.
    return dropped


def _drop_until_closed(sock: Raw, deadline: float) -> tuple[int, bool]:
    """The bytes dropped, and whether the peer closed in time."""
    dropped = 0
    while True:
        left = deadline - time.monotonic()
        _kernel.ready(sock, max(left, 0.0))
        try:
            count = _kernel.read_now(sock, _rubbish)
        except OSError:
            return dropped, True  # RST is the end of the connection too.
        if count == 0:
            return dropped, True
        dropped += count or 0
        if left <= 0:
            return dropped, False
