"""One connection of `safesock connect`: non-blocking, the same with TLS and without."""

from __future__ import annotations

import select
import socket
import ssl

from safesock import _kernel
from safesock._loss import Cause
from safesock._netcat_tls import Tls
from safesock._socket import SafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHUNK = 65536
_RECORD = 16384  # The most that TLS puts in one.
_POLLRDHUP: int = getattr(select, "POLLRDHUP", 0)  # Linux
_PEER_CLOSED = _POLLRDHUP | select.POLLHUP | select.POLLERR
_HOW = {
    Cause.FIN: "the peer closed",
    Cause.RST: "the peer reset it",
    Cause.TIMEOUT: "nothing answers any more",
    Cause.UNREACHABLE: "the peer is unreachable",
    Cause.ABORTED: "it was aborted on this host",
}


class Link:
    """A connection that poll(2) is asked about. No call blocks but `close`, and none raises."""

    def __init__(self, sock: SafeSocket, tls: Tls | None) -> None:
        sock.settimeout(0)
        self.sock = sock
        self._tls = tls
        # What ended it, where that is not a loss: of TLS.
        self.error: OSError | None = None
        # FIN or RST has come. There may still be something to read.
        self.peer_has_closed = False
        # Nothing more will be sent.
        self.half_closed = False
        self._is_over = False
        # With TLS: what is encrypted and not sent, and how much of what `send` was given that is.
        self._wire = memoryview(b"")
        self._in_wire = 0
        self._unacknowledged: int | None = 0
        # The last bytes on the wire that are none of `send`: close_notify.
        self._farewell = 0

    @property
    def over(self) -> bool:
        """Whether nothing more can be read or sent."""
        return self._is_over or self.sock.fileno() < 0

    def events(self, *, read: bool, write: bool) -> int:
        """What to poll for; 0: not at all, as it would only say again that the peer has closed."""
        if self.over:
            return 0
        events = 0 if self.peer_has_closed else _POLLRDHUP
        if read:
            events |= select.POLLIN
        if (write or self._wire) and not self.peer_has_closed:
            events |= select.POLLOUT
        return events

    def note(self, events: int) -> None:
        """What poll has said."""
        self.peer_has_closed |= bool(events & _PEER_CLOSED)

    def has_input(self) -> bool:
        """Whether there is something to receive of which poll does not know."""
        return self._tls is not None and not self.over and self._tls.has_input()

    def receive(self) -> bytes:
        """What there is now, b"" for nothing."""
        data = b""
        if not self.has_input():
            try:
                data = self.sock.recv(_CHUNK)
            except BlockingIOError:
                return b""
            except OSError as error:
                self._fail(error)
                return b""
            self._is_over = not data
        return data if self._tls is None or self._is_over else self._decrypt(self._tls, data)

    def send(self, data: memoryview) -> int:
        """The bytes that were accepted."""
        if self._tls is None:
            return self._push(data)
        if not self._wire:
            try:
                self._in_wire = self._tls.encrypt(data[:_RECORD])
            except ssl.SSLError as error:
                self._fail(error)
                return 0
        if not self._flush(self._tls):
            return 0
        accepted, self._in_wire = self._in_wire, 0
        return accepted

    def half_close(self) -> None:
        """FIN, or with TLS close_notify. To be called again until `half_closed`."""
        if self._tls is not None:
            self._say_farewell(self._tls)
            if not self._flush(self._tls):
                return
        else:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # It is lost: `receive` will meet that.
        self.half_closed = True
        self.peer_goes_on()

    def peer_goes_on(self) -> bool:
        """Whether the peer's kernel has acknowledged anything since this was last asked."""
        before, self._unacknowledged = self._unacknowledged, self._queued()
        return self._unacknowledged != before

    def close(self) -> None:
        """By the policy."""
        self.sock.close()

    # Once it is closed ----------------------------------------------------------------------------

    @property
    def missing(self) -> int:
        """Bytes sent that may not arrive any more."""
        report = self.sock.close_report
        goes_on = self.sock.loss is None and not self._has_parted()
        if goes_on and report is not None and not report.reset:
            return 0  # The kernel is still at it.
        return self._left()

    def how(self) -> str:
        """It ended, and what had become of the data."""
        end = self.sock.loss or self.sock.close_report
        if end is None or self.error is not None:
            return str(self.error) or type(self.error).__name__
        if self._has_parted():
            how = "the peer closed"
        elif end.cause is Cause.CLOSED:
            how = f"the peer was silent; closed by {self.sock.policy.close}"
        else:
            how = _HOW[end.cause]
            if self._tls is not None and end.cause is Cause.FIN:
                how += " without close_notify"
        return f"{how}; {_counted(self._left())} unacknowledged, {_counted(end.unread or 0)} unread"

    def _left(self) -> int:
        """The bytes that were not acknowledged, but for close_notify, which is the last."""
        end = self.sock.loss or self.sock.close_report
        count = end.unacknowledged if end is not None else None
        return max((count or 0) - self._farewell, 0)

    # What is behind it ----------------------------------------------------------------------------

    def _has_parted(self) -> bool:
        """Whether the peer has sent close_notify."""
        return self._tls is not None and self._tls.ended

    def _decrypt(self, tls: Tls, data: bytes) -> bytes:
        plain = tls.decrypt(data)
        if tls.ended:
            self._say_farewell(tls)
            self._is_over = True
        if not self.peer_has_closed:  # Its RST would drop what is yet to be read.
            self._flush(tls)
        if tls.error is not None:
            self._fail(tls.error)
        return plain

    def _say_farewell(self, tls: Tls) -> None:
        before = tls.ready()
        tls.end()
        self._farewell += tls.ready() - before

    def _flush(self, tls: Tls) -> bool:
        """Whether all that is encrypted has been sent."""
        self._wire = memoryview(bytes(self._wire) + tls.output())
        if self._wire:
            self._wire = self._wire[self._push(self._wire) :]
        return not self._wire

    def _push(self, data: Buffer) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._fail(error)
            return 0

    def _fail(self, error: OSError) -> None:
        self._is_over = True
        if self.sock.loss is None:
            self.error = error

    def _queued(self) -> int | None:
        return _kernel.counts(self.sock, syn=0, fin_sent=False)[1]


def _counted(count: int) -> str:
    return f"{count} byte{'' if count == 1 else 's'}"
