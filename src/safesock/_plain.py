"""The connection of a plain socket under `enforce`, where its owner ends it without our doing: what
is recorded of that for those who listen."""

from __future__ import annotations

from time import monotonic

from safesock import _kernel
from safesock._connection import Connection
from safesock._kernel import TcpState
from safesock._loss import Cause, CloseReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._kernel import Raw


class PlainConnection(Connection):
    """A `Connection` whose owner does not know of it."""

    __slots__ = ()

    def close(self, sock: Raw, decrypted: int = 0, end: dict[str, Any] | None = None) -> None:
        """As `Connection.close`, for its owner, who does."""
        if self.heard() is not None:
            self._notice_end(sock)
        super().close(sock, decrypted, end)

    def closes(self, sock: Raw) -> None:
        """Its owner is about to, by close(2) alone."""
        with self._in_turn():
            if self.report is None and not self.is_elsewhere() and sock.fileno() >= 0:
                self._closes(sock)

    def _closes(self, sock: Raw) -> None:
        self._notice_end(sock)
        self.note_end_of_close_wait(sock)
        end = self._end(sock, *self._why(), decrypted=0)
        # What the kernel does for unread input, whatever the policy says.
        self._has_closed(CloseReport(**end, mode=self.policy.close, reset=bool(end["unread"])))

    def vanished(self) -> None:
        """It has been collected, and closed by that."""
        if self.report is not None or self.is_elsewhere():
            return
        local = None if self.story is None else self.story.local
        lived = monotonic() - self.born
        known = (*self._why(), local, self.peer, self.number, lived)
        self._has_closed(CloseReport(*known, None, None, None, mode=self.policy.close, reset=False))
        self.tell_later()

    def _notice_end(self, sock: Raw) -> None:
        """The peer has closed before, and its owner was told by the kernel, or not at all."""
        if _kernel.tcp_state(sock) is TcpState.CLOSE_WAIT:
            self.lose(sock, Cause.FIN, None)

    def _why(self) -> tuple[Cause, BaseException | None]:
        return (self.loss.cause, self.loss.error) if self.loss else (Cause.CLOSED, None)

    def _has_closed(self, report: CloseReport) -> None:
        self.report = report
        self.note_close(report)
