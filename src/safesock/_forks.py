"""What a forked child has to set right: locks that threads hold which it does not have."""

from __future__ import annotations

import os
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Inherited(Protocol):
        """What a child inherits."""

        def _after_fork(self) -> None: ...


_all: weakref.WeakSet[Inherited] = weakref.WeakSet()
_is_known = False


def remember(one: Inherited) -> None:
    """Its `_after_fork` is called in every child from now on."""
    global _is_known
    if not _is_known:
        _is_known = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork)
    _all.add(one)


def _after_fork() -> None:
    for one in tuple(_all):
        one._after_fork()
