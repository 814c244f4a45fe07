"""Threads of our own that the program does not notice, whatever it does with its threads.

They are native ones, also where gevent or eventlet have put green ones in their place; `threading`
does not know them, so that whoever joins all its threads does not wait for them; and no signal is
delivered to them: a program that blocks a signal in all its threads, and waits for it by sigwait or
signalfd, would be killed by one that does not block it.
"""

from __future__ import annotations

import _thread
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _native(name: str) -> Any:
    """What the module `_thread` has by this name, before anybody has patched it."""
    if gevent := sys.modules.get("gevent.monkey"):
        return gevent.get_original("_thread", name)
    if patcher := sys.modules.get("eventlet.patcher"):
        return getattr(patcher.original("_thread"), name)
    return getattr(_thread, name)


_start_new_thread = _native("start_new_thread")
get_ident: Callable[[], int] = _native("get_ident")
new_lock = _native("allocate_lock")


def start(run: Callable[[], object], name: str) -> None:
    """Calls *run* in a thread of its own, which ends with the process. Raises RuntimeError where
    there is none to be had.

    name: at the most 15 characters, for those who look into /proc, as top -H does.
    """
    import signal  # Not with the package: it takes a millisecond.

    def named() -> None:
        _name_thread(name)
        run()

    if not hasattr(signal, "pthread_sigmask"):  # Windows
        _start_new_thread(named, ())
        return
    # A fault is for the thread itself, and a blocked one kills without a word of faulthandler's.
    faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
    # The mask is asked for first: a handler that raises would keep the answer from us.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)
        _start_new_thread(named, ())  # It inherits the mask.
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _name_thread(name: str) -> None:
    try:
        with open(f"/proc/self/task/{_thread.get_native_id()}/comm", "w", encoding="ascii") as file:
            file.write(name)
    except OSError:
        pass  # Not Linux, or no descriptor left.
