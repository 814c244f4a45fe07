"""SIGINT and SIGTERM in a command that lasts: an exception wherever they arrive, and none is lost.

Two places would lose one. A signal that comes just before poll(2) is not looked at until poll
returns, so it is told by a descriptor, too. And an exception in `__del__`, where the last attempt's
socket may just be, is printed and forgotten: there it is raised again, a moment later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

TERMINATED = 128 + signal.SIGTERM
_MOMENT = 0.001


@contextlib.contextmanager
def raised() -> Iterator[int]:
    """SIGTERM raises SystemExit, as SIGINT raises KeyboardInterrupt. Gives a descriptor that is
    readable when a signal has come."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    lost = _Lost()
    woken_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {signal.SIGTERM: _terminate, signal.SIGALRM: lost.raise_again}
    before = {number: signal.getsignal(number) for number in handlers}
    hook_before, sys.unraisablehook = sys.unraisablehook, lost.hook
    try:
        for number, handler in handlers.items():
            if before[number] is not signal.SIG_IGN or number == signal.SIGALRM:
                signal.signal(number, handler)
        yield reader
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)
        sys.unraisablehook = hook_before
        signal.set_wakeup_fd(woken_before)
        os.close(reader)
        os.close(writer)


class _Lost:
    """What was raised where nothing can be."""

    def __init__(self) -> None:
        self._error: BaseException = KeyboardInterrupt()
        self._print = sys.unraisablehook

    def hook(self, unraisable: Any) -> None:
        """For `sys.unraisablehook`."""
        if isinstance(unraisable.exc_value, (KeyboardInterrupt, SystemExit)):
            self._error = unraisable.exc_value.with_traceback(None)
            signal.setitimer(signal.ITIMER_REAL, _MOMENT)
        else:
            self._print(unraisable)

    def raise_again(self, *_: object) -> NoReturn:
        """For SIGALRM."""
        raise self._error


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(TERMINATED)
