"""The decisions of reconnecting: may it be tried, may it be waited for, is this outage over?

Nothing here looks at a clock or waits: `now` is an argument, in seconds of any clock that never
goes back.

An outage lasts from the first attempt until a connection has been stable, or has been confirmed by
its user. It has a number of attempts and a deadline. The deadline is for the time spent in dialling
and waiting: while somebody has a connection, or wants none, it stands still.
"""

from __future__ import annotations

import errno

from safesock._errors import LocalPortBusyError

# Seconds between two looks at a port that is on its way to be free, and nobody knows for how long:
# with a peer that answers it takes a round trip.
_FIRST_LOOK, _LAST_LOOK = 0.001, 0.1


class Budget:
    """What is left of an outage's attempts and time."""

    __slots__ = (
        "attempts",
        "deadline",
        "stable_after",
        "tried",
        "_spent",
        "_since",
        "_made",
        "_confirmed",
    )

    def __init__(self, attempts: int, deadline: float, stable_after: float) -> None:
        self.attempts = attempts
        self.deadline = deadline
        self.stable_after = stable_after
        self.tried = 0
        self._spent = 0.0
        # Since when somebody has been waiting for a connection, while somebody does.
        self._since: float | None = None
        # When the connection was made, while there is one.
        self._made: float | None = None
        # The connection being made has been confirmed, before it is anybody's.
        self._confirmed = False

    def resume(self, now: float) -> None:
        """Somebody wants a connection."""
        self._since = now

    def suspend(self, now: float) -> None:
        """Nobody waits for one any longer."""
        self._spent, self._since = self.spent(now), None

    def spent(self, now: float) -> float:
        """The seconds of this outage."""
        return self._spent + (0.0 if self._since is None else now - self._since)

    def left(self, now: float) -> float:
        """The seconds until the deadline; not above 0 when it has passed."""
        return self.deadline - self.spent(now)

    def may_try(self, now: float, pause: float = 0.0) -> bool:
        """Whether there may be another attempt after *pause* seconds."""
        return self.tried < self.attempts and pause < self.left(now)

    def tries(self) -> None:
        """An attempt begins."""
        self.tried += 1
        self._confirmed = False

    def made(self, now: float) -> None:
        """The attempt has led to a connection."""
        self._made = now
        if self._confirmed:
            self._begin_anew(now)

    def ended(self, now: float) -> None:
        """The connection has ended at *now*. If it was stable, the outage is over."""
        made, self._made = self._made, None
        if made is not None and now - made >= self.stable_after:
            self._begin_anew(now)

    def confirm(self) -> None:
        """The connection is good, so the outage is over. While one is being made, this is of it:
        it takes effect if it is made."""
        if self._since is None:
            self._begin_anew(None)
        else:
            self._confirmed = True

    def _begin_anew(self, now: float | None) -> None:
        self.tried = 0
        self._spent = 0.0
        if self._since is not None:
            self._since = now


class PortWait:
    """Within one attempt: how long to wait for the fixed local port. That sends nothing, so it is
    not an attempt of its own."""

    def __init__(self, until: float, give_up: float) -> None:
        """*until*: for what the kernel gives a time for (TIME_WAIT). *give_up*: for the rest, not
        counting that time."""
        self._until = until
        self._give_up = min(give_up, until)
        self._look = _FIRST_LOOK
        self._may_be_gone = True
        self._known = False

    def pause(self, error: OSError, now: float) -> float | None:
        """The seconds until it is to be tried again, or None where *error* is to stand."""
        look, self._look = self._look, min(2 * self._look, _LAST_LOOK)
        if not isinstance(error, LocalPortBusyError) or not error.holders:
            # What held it may have gone before it was looked for.
            again = self._may_be_gone and error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
            self._may_be_gone = False
            return look if again and now + look < self._give_up else None
        self._may_be_gone = True
        if not error.passes:
            return None
        seconds = error.seconds_left
        # Once is not enough: FIN_WAIT may have refused it, and be TIME_WAIT when it is looked for.
        known, self._known = self._known, seconds is not None
        if seconds is None or not known:
            return self._within(look, self._give_up if seconds is None else self._until, now)
        pause = self._within(max(seconds, look), self._until, now)
        self._give_up = min(self._give_up + (pause or 0.0), self._until)
        return pause

    @staticmethod
    def _within(pause: float, latest: float, now: float) -> float | None:
        return pause if now + pause < latest else None
