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
from time import monotonic

from safesock import _abortive, _kernel
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

    __slots__ = ("sent", "unacknowledged", "unread", "reset", "over", "fin_sent")
    sent: int | None
    unacknowledged: int | None
    unread: int | None
    reset: bool
    # False: a RST is on its way, and until then the kernel goes on counting what is sent.
    over: bool
    # Of a `release`: whether our FIN has been sent, by it or before.
    fin_sent: bool

    def __init__(
        self,
        sent: int | None,
        unacknowledged: int | None,
        unread: int | None,
        reset: bool = False,
        over: bool = True,
        fin_sent: bool = False,
    ) -> None:
        counts = {"sent": sent, "unacknowledged": unacknowledged, "unread": unread}
        self._set(**counts, reset=reset, over=over, fin_sent=fin_sent)


def finish(sock: Raw, mode: CloseMode, *, syn: int, fin_sent: bool) -> Outcome:
    """Everything but close(2), which the caller does next. Blocks no longer than *mode* says.

    *syn*: see `_kernel.counts`. *fin_sent*: whether our FIN has been sent before.
    """
    if isinstance(mode, Abort):
        return _abort(sock, syn, fin_sent)
    sends_fin = _kernel.tcp_state(sock) in _kernel.SENDS_FIN
    if isinstance(mode, Drain):
        return _drain(sock, mode.timeout, syn, fin_sent, sends_fin)
    linger = mode.seconds if isinstance(mode, Linger) else None
    return _graceful(sock, linger, syn, fin_sent, sends_fin)


def release(sock: Raw, mode: CloseMode, *, syn: int, fin_sent: bool) -> Outcome | None:
    """Ends a connection that the peer has closed; the owner may read what is left, then b"".

    *fin_sent*: whether our FIN has been sent before. Never blocks. None, and nothing done,
    for an `Abort` that can not yet be had without throwing unread input away. One that is not
    `over` is to be asked for again, until it is.
    """
    unread = _kernel.unread(sock)
    if not isinstance(mode, Abort):
        sends_fin = _kernel.tcp_state(sock) in _kernel.SENDS_FIN
        # Not where the peer's RST has come in between, as it does after what crosses its FIN.
        fin_sent |= _kernel.shutdown(sock, _socket.SHUT_RDWR) and sends_fin
    elif _kernel.tcp_state(sock) not in _OVER:
        if unread:
            if not _abortive.reset_keeping_input(sock):
                return None
            counts = _kernel.counts(sock, syn=syn, fin_sent=fin_sent)
            return Outcome(*counts, unread, reset=True, over=False, fin_sent=fin_sent)
        outcome = _abort(sock, syn, fin_sent)
        # A disconnected socket answers ECONNRESET, then ENOTCONN; after this, as one at its end.
        _kernel.take_error(sock)
        _kernel.shutdown(sock, _socket.SHUT_RDWR)
        return outcome.__replace__(fin_sent=fin_sent)
    counts = _kernel.counts(sock, syn=syn, fin_sent=fin_sent)
    return Outcome(*counts, unread, fin_sent=fin_sent)


def _graceful(sock: Raw, linger: int | None, syn: int, fin_sent: bool, sends_fin: bool) -> Outcome:
    _kernel.set_linger(sock, linger)
    fin_sent |= _kernel.shutdown(sock, _socket.SHUT_RDWR) and sends_fin
    dropped = _drop_unread(sock)
    return Outcome(*_kernel.counts(sock, syn=syn, fin_sent=fin_sent), dropped)


def _drain(sock: Raw, timeout: float, syn: int, fin_sent: bool, sends_fin: bool) -> Outcome:
    dropped, closed = 0, False
    try:
        # Whoever is killed, or interrupted, while waiting has stopped waiting: that is a RST.
        _kernel.set_linger(sock, 0)
        fin_sent |= _kernel.shutdown(sock, _socket.SHUT_WR) and sends_fin
        dropped, closed = _drop_until_closed(sock, monotonic() + timeout)
    finally:
        if closed:
            _kernel.set_linger(sock, None)
        else:
            aborted = _abort(sock, syn, fin_sent)
    if not closed:
        return aborted.__replace__(unread=dropped + (aborted.unread or 0))
    _kernel.shutdown(sock, _socket.SHUT_RDWR)
    return Outcome(*_kernel.counts(sock, syn=syn, fin_sent=fin_sent), dropped)


def _abort(sock: Raw, syn: int, fin_sent: bool) -> Outcome:
    unread = _kernel.unread(sock)
    reset = _kernel.tcp_state(sock) in _RESETTABLE
    _kernel.set_linger(sock, 0)
    # Where this fails, close(2) with that linger sends the RST; the readers have been woken.
    counts = _abortive.disconnect(sock, syn=syn, fin_sent=fin_sent)
    return Outcome(*counts, unread, reset=reset)


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
        left = deadline - monotonic()
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
