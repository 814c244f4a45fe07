"""What of a connection's life is told to those who listen, and the part of its state that is needed
for that. It is noted where the state changes, which may be under a lock; `tell` comes after."""

from __future__ import annotations

import itertools
from time import monotonic

from safesock import _hub, _kernel
from safesock._kernel import TcpState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._kernel import Raw
    from safesock._loss import CloseReport, Loss
    from safesock._story import Story

_numbers = itertools.count(1)


def new_story(number: int | None = None, peer: Any = None, previous: int | None = None) -> Story:
    """Of a connection that somebody listens to, and of no other number. To be called for those
    only: it is the first to import what events are."""
    from safesock._story import Story

    return Story(next(_numbers) if number is None else number, peer, previous)


class Told:
    """A connection, as far as it is told of."""

    __slots__ = ("number", "story", "asked", "peer", "born", "ended", "loss")

    def __init__(self, story: Story | None) -> None:
        self.number = next(_numbers) if story is None else story.number
        # Where somebody listens.
        self.story = story
        # What a connect that is under way was called with.
        self.asked: Any = None
        self.peer: Any = None
        self.born = monotonic()
        # When it ended, as far as is known; both by time.monotonic.
        self.ended: float | None = None
        self.loss: Loss | None = None

    def begins(self, sock: Raw, address: Any) -> None:
        """A connect to *address* is on its way; it may have been before, and be asked for again."""
        if not self.number:
            self._is_another()
        if (story := self.heard()) is not None:  # Told once, however often it is noted.
            story.connecting(address, bound_to(sock))
        # In case the kernel can no longer tell the peer's address when it has been made.
        self.asked = address
        self.born = monotonic()

    def failed(self) -> None:
        """The connect has: whatever is made of the same socket is another connection."""
        if self.asked is not None:
            self.asked = None
            self.number = 0

    def _is_another(self) -> None:
        self.number = next(_numbers)
        if self.story is not None:
            self.story = new_story(self.number, previous=self.story.previous)

    def comes_after(self, previous: int | None) -> None:
        """It takes the place of the connection of that number."""
        if previous is not None and (story := self.heard()) is not None:
            story.previous = previous

    def heard(self) -> Story | None:
        """What is to be told of it; None where nobody listens."""
        if not _hub.is_heard():
            return None
        if self.story is None:
            try:
                self.story = new_story(self.number, self.peer)
            except ImportError:
                pass  # The interpreter ends.
        return self.story

    def tell(self) -> None:
        """What has been noted. No lock may be held, and this not be a thread of our own."""
        if self.story is not None:
            self.story.tell()

    def tell_later(self) -> None:
        """The same, soon, by a thread for that."""
        if self.story is not None:
            self.story.tell_later()

    # What is noted, to be told later --------------------------------------------------------------

    def note_connected(self, sock: Raw) -> None:
        """It has been made."""
        if not self.number:
            self._is_another()
        if (story := self.heard()) is not None:
            story.connected(_kernel.local_name(sock), self.peer)

    def note_loss(self) -> None:
        """There is a record of it."""
        if (story := self.heard()) is not None:
            story.lost(lambda: self.loss)

    def note_end_of_close_wait(self, sock: Raw) -> None:
        """Our end is due now: how long the peer's has waited for it."""
        if (story := self.heard()) is None:
            return
        story.close_wait = None
        if self.ended is not None and _kernel.tcp_state(sock) is TcpState.CLOSE_WAIT:
            story.close_wait = max(monotonic() - self.ended, 0.0)

    def note_release(self) -> None:
        """Our side has ended, and the descriptor is its owner's."""
        if (story := self.heard()) is not None:
            story.released(lambda: self.loss)

    def note_close(self, report: CloseReport) -> None:
        """The descriptor is closed, or about to be."""
        if (story := self.heard()) is not None:
            story.closed(report)


def bound_to(sock: Raw) -> Any:
    """None where it is bound to no port."""
    name: Any = _kernel.local_name(sock)
    return name if name and name[1] else None
