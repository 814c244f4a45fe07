"""What must not hold up the thread that comes upon it gets a thread of its own."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def beside(work: Callable[[], object]) -> bool:
    """Does *work* in a thread. False where there is none to be had: the system has run out of them,
    or the interpreter ends."""
    try:
        threading.Thread(target=work, name="safesock-closer").start()
    except RuntimeError:
        return False
    return True
