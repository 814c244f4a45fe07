"""Threads that are at one connection at a time, or with the number of its descriptor."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading


class Visit:
    """Somebody at work with the number of the descriptor, which must not be closed, and so be given
    to somebody else, before the last one has left. It lives in a local variable, so that wherever a
    KeyboardInterrupt strikes, it ends."""

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
