"""The events of one connection: taken note of where its state changes, whatever locks are held
there, and told afterwards, in order, each once.

Whoever tells does it for all: a thread that comes while another one is at it leaves the rest to
that. So nobody waits, and a subscriber may close the very connection that it is told of.
"""

from __future__ import annotations

import sys
import time

from safesock import _background, _forks, _hub, events
from safesock._beside import apart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from safesock._destination import Destination
    from safesock._errors import ReconnectError
    from safesock._hub import Audience
    from safesock._loss import CloseReport
    from safesock.events import Event

    # Its place in the order, the process, whom it is for, and what makes it.
    News: TypeAlias = tuple[int, int, Audience, Callable[[], Event]]

_CONNECTING, _CONNECTED, _LOST, _RELEASED, _CLOSED = range(1, 6)
# Seconds after which those are told of who have no call of their own to be told in. The owner may
# come first; and what happens together needs one thread.
_MOMENT = 0.02

_lock = _forks.lock()


class Story:
    """What is to be told of one connection, from when somebody began to listen."""

    __slots__ = ("number", "previous", "local", "peer", "close_wait", "_news", "_told", "_teller")

    def __init__(self, number: int, peer: Any, previous: int | None) -> None:
        self.number = number
        self.previous = previous
        self.local: Any = None
        self.peer = peer
        self.close_wait: float | None = None
        self._news: list[News] = []
        # The place of the last.
        self._told = 0
        # The process in which a thread is at it.
        self._teller: int | None = None

    # What happens ---------------------------------------------------------------------------------

    def connecting(self, address: Any, local: Any) -> None:
        """connect(2) is about to be called."""
        self.peer = address
        made = events.Connecting(self.number, time.time(), local, address, self.previous)
        self._note(_CONNECTING, lambda: made)

    def connected(self, local: Any, peer: Any) -> None:
        """It is made."""
        self.local, self.peer = local, peer
        made = events.Connected(self.number, time.time(), local, peer, self.previous)
        self._note(_CONNECTED, lambda: made)

    def lost(self, loss: Callable[[], Any]) -> None:
        """*loss* is asked when it is told: what ends the connection may yet correct the counts."""
        now = time.time()

        def made() -> Event:
            record = loss()
            return events.Lost(self.number, now, record.local, record.peer, record)

        self._note(_LOST, made)

    def released(self, loss: Callable[[], Any]) -> None:
        """Our side of it is ended, and the descriptor is not closed."""
        now, waited = time.time(), self.close_wait

        def made() -> Event:
            record = loss()
            local, peer = (record or self).local, (record or self).peer
            return events.Released(self.number, now, local, peer, record, waited)

        self._note(_RELEASED, made)

    def closed(self, report: CloseReport) -> None:
        """The descriptor is closed, or is about to be."""
        made = events.Closed(
            self.number, time.time(), report.local, report.peer, report, self.close_wait
        )
        self._note(_CLOSED, lambda: made)

    def _note(self, place: int, make: Callable[[], Event]) -> None:
        self._news.append((place, _forks.own_pid(), _hub.audience(), make))

    # Telling --------------------------------------------------------------------------------------

    def tell(self) -> None:
        """All that has been noted, here and now. No lock may be held."""
        while self._news and self._begin():
            try:
                while self._news:
                    self._tell_one(*self._news.pop(0))
            finally:
                self._teller = None

    def tell_later(self) -> None:
        """Soon, in a thread for that: where this one must not wait, or be known to `threading`, or
        may be in the middle of anything."""
        if self._news:
            _later(self)

    def _begin(self) -> bool:
        with _lock:
            if self._teller == _forks.own_pid():
                return False
            self._teller = _forks.own_pid()
            return True

    def _tell_one(self, place: int, pid: int, to: Audience, make: Callable[[], Event]) -> None:
        # What was noted before a fork is the parent's to tell.
        if place > self._told and pid == _forks.own_pid():
            self._told = place
            _hub.deliver(make(), to)


def retrying(to: Destination, attempt: int, error: Any, wait: float) -> None:
    """A connector waits for its next attempt."""
    about = (to.previous, time.time(), to.local_address, to.address)
    _hub.deliver(events.Retrying(*about, attempt, error, wait), _hub.audience())


def exhausted(to: Destination, error: ReconnectError) -> None:
    """A connector gives up."""
    about = (to.previous, time.time(), to.local_address, to.address)
    _hub.deliver(events.BudgetExhausted(*about, error), _hub.audience())


class _Later:
    """Those that are to be told of by the thread for that."""

    def __init__(self) -> None:
        self._after_fork()
        _forks.remember(self)

    def _after_fork(self) -> None:
        self._stories: list[Story] = []
        self._has_thread = False

    def __call__(self, story: Story) -> None:
        with _lock:
            self._stories.append(story)
            if self._has_thread:
                return
            self._has_thread = True
        try:
            # Where the interpreter ends, a thread would never run.
            is_started = not sys.is_finalizing() and apart(self._run, "safesock-events")
        except BaseException:  # KeyboardInterrupt: the next one starts it.
            self._has_thread = False
            raise
        if not is_started:
            self._tell_all()

    def _run(self) -> None:
        # Not time.sleep, which may be green, or a test's own.
        moment = _background.new_lock()
        moment.acquire()
        moment.acquire(timeout=_MOMENT)
        self._tell_all()

    def _tell_all(self) -> None:
        while (story := self._next()) is not None:
            story.tell()

    def _next(self) -> Story | None:
        with _lock:
            if not self._stories:
                self._has_thread = False
            # Looked at again: the garbage collector may have come between, in this very thread.
            if not self._stories:
                return None
            self._has_thread = True
            return self._stories.pop(0)


_later = _Later()
