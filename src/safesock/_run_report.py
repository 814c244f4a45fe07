"""What `safesock run --report` tells, by each process for itself, as it ends."""

from __future__ import annotations

import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._enforce import Enforcement, Report


class Reporter:
    """Tells it at the end of this process, and of those that are forked from it."""

    def __init__(self, enforcement: Enforcement) -> None:
        self._enforcement = enforcement
        self._inherited = (0, 0, 0)
        self._has_told = False
        atexit.register(self._tell)
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._inherited = _counts(self._enforcement.report())
        self._has_told = False
        # Its children end by os._exit, with finalizers of its own in place of atexit.
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.register_after_fork(self, lambda one: util.Finalize(None, one._tell, (), {}, -100))

    def _tell(self) -> None:
        if self._has_told or sys.stderr is None:
            return
        self._has_told = True
        found = self._enforcement.report()
        counts = zip(_counts(found), self._inherited, strict=True)
        seen, released, aborted = (now - before for now, before in counts)
        sys.stderr.write(
            f"safesock: process {os.getpid()}: {seen} connection{'' if seen == 1 else 's'} seen, "
            f"{released} released, {aborted} aborted, {found.missed} in CLOSE_WAIT all the same\n"
        )


def _counts(found: Report) -> tuple[int, int, int]:
    return found.seen, found.released, found.aborted
