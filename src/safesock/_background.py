"""Threads of our own in somebody else's program, which is not to notice them."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# As they are now: gevent and eventlet put others in their places.
_start = _thread.start_new_thread
get_ident = _thread.get_ident


def start(run: Callable[[], object], name: str) -> None:
    """Runs it in a thread of the system, which ends with the process. Raises RuntimeError where
    there is none to be had.

    `threading` does not know it, so that a program that joins all its threads does not wait for
    this one. All signals are blocked in it: one that the program has blocked, and waits for by
    sigwait(3) or signalfd(2), would otherwise be delivered here, and end the process.

    name: at the most 15 characters, for those who look into /proc, by top -H for instance.
    """

    def named() -> None:
        _name_thread(name)
        run()

    if not hasattr(_signal, "pthread_sigmask"):
        _native()(named, ())
        return
    # First, as blocking them may raise what the handler of an earlier one raises.
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    try:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        _native()(named, ())
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


def _native() -> Any:
    gevent = sys.modules.get("gevent.monkey")
    return _start if gevent is None else gevent.get_original("_thread", "start_new_thread")


def _name_thread(name: str) -> None:
    try:
        with open(f"/proc/self/task/{_thread.get_native_id()}/comm", "w", encoding="ascii") as file:
            file.write(name)
    except OSError:
        pass  # Not Linux, or no /proc.
