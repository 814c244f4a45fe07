"""Threads that are at one connection at a time, or with the number of its descriptor."""

from __future__ import annotations

import threading
import weakref
from time import monotonic


class Visit:
    """Somebody at work with the number of the descriptor, which must not be closed, and so be given
    to somebody else, before the last one has left. It lives in a local variable, and ends by `del`
    in a `finally`: no signal is looked for on the way there, so that no KeyboardInterrupt, and no
    traceback of one, keeps it."""

    __slots__ = ("__weakref__",)


class Turn:
    """Somebody's, within `with turn`, when others leave the lock to him within *patience* seconds;
    it goes on after that without. Not a generator, which costs several times as much."""

    __slots__ = ("_lock", "_patience", "_is_taken")

    def __init__(self, lock: threading.RLock, patience: float) -> None:
        self._lock = lock
        self._patience = patience
        self._is_taken = False

    def __enter__(self) -> None:
        self._is_taken = self._lock.acquire(timeout=self._patience)

    def __exit__(self, *_: object) -> None:
        if self._is_taken:
            self._lock.release()


class Door:
    """Of one connection: who is in, and whose turn it is."""

    __slots__ = ("lock", "stepping_in", "turned_away", "_visits")

    def __init__(self) -> None:
        # Of those who end it, or record its end.
        self.lock = threading.RLock()
        # The thread of the watcher, while it is at work with it.
        self.stepping_in: int | None = None
        # Since when it has found the lock held.
        self.turned_away: float | None = None
        self._visits: list[weakref.ref[Visit]] = []

    def enter(self) -> Visit:
        """Before the number of the descriptor is used."""
        visit = Visit()
        try:
            self._visits.append(weakref.ref(visit, self._visits.remove))
        except BaseException:  # KeyboardInterrupt, whose traceback would keep it.
            del visit
            raise
        return visit

    def is_visited(self) -> bool:
        """Whether somebody is in."""
        return bool(self._visits)

    def turn(self, patience: float) -> Turn:
        """To end it, or record its end, one after the other."""
        return Turn(self.lock, patience)

    def is_left_held(self, patience: float) -> bool:
        """Whether the lock has not been had for so long that a KeyboardInterrupt must have struck
        between its being taken and what would have given it back."""
        now = monotonic()
        self.turned_away = self.turned_away or now
        return now - self.turned_away > patience
