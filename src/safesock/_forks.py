"""Processes that are forked: which one this is, and what a child has to set right, such as locks
that threads hold which it does not have."""

from __future__ import annotations

import os
import threading
import weakref
from os import getpid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Inherited(Protocol):
        """What a child inherits."""

        def _after_fork(self) -> None: ...


_all: weakref.WeakSet[Inherited] = weakref.WeakSet()
_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_is_known = False


def remember(one: Inherited) -> None:
    """Its `_after_fork` is called in every child from now on."""
    _know()
    _all.add(one)


def _know() -> None:
    global _is_known
    if not _is_known:
        _is_known = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    for lock in tuple(_locks):
        lock._at_fork_reinit()
    for one in tuple(_all):
        one._after_fork()


def lock() -> threading.RLock:
    """A reentrant lock, as a signal handler may come in the middle; open in every forked child.

    It is that of C: a KeyboardInterrupt may strike within an `__enter__` that is Python's, and
    leave the lock held.
    """
    made = threading.RLock()
    _know()
    _locks.add(made)
    return made


def own_pid() -> int:
    """getpid(2), as one object for all who keep it."""
    global _pid
    pid = getpid()
    if pid != _pid:
        _pid = pid
    return _pid


_pid = getpid()
# How often this process has been forked, since somebody began to count.
_forked = 0
_counts = False


def forked() -> int:
    """How often this process has been forked since `count`."""
    return _forked


def count() -> None:
    """From now on."""
    global _counts
    if not _counts and hasattr(os, "register_at_fork"):
        _counts = True
        os.register_at_fork(after_in_parent=_count)


def _count() -> None:
    global _forked
    _forked += 1
