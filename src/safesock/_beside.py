"""What must not hold up the thread that comes upon it gets a thread of its own."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def beside(work: Callable[[], object], name: str = "safesock-closer") -> bool:
    """Does *work* in a thread. False where there is none to be had: the system has run out of them,
    or the interpreter ends."""
    try:
        # Said, not inherited: `threading` would ask for the thread at hand, and thereby get to know
        # the watcher's; and whatever a daemon thread came upon would be lost at the exit.
        threading.Thread(target=work, name=name, daemon=False).start()
    except RuntimeError:
        return False
    return True
