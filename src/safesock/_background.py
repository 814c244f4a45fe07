"""Threads of our own that the program does not notice, whatever it does with its threads.

They are native ones, also where gevent or eventlet have put green ones in their place; `threading`
does not know them, so that whoever joins all its threads does not wait for them; and no signal is
delivered to them: a program that blocks a signal in all its threads, and waits for it by sigwait or
signalfd, would be killed by one that does not block it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
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


start_new_thread = _native("start_new_thread")
get_ident: Callable[[], int] = _native("get_ident")
get_native_id: Callable[[], int] = _native("get_native_id")
new_lock = _native("allocate_lock")


def _is_main_interpreter() -> bool:
    for name in ("_interpreters", "_xxsubinterpreters"):  # From 3.13 on, and before.
        try:
            module: Any = __import__(name)
        except ImportError:
            continue
        return bool(module.get_current() == module.get_main())
    return True


# Another one must not be left by its threads, or the process is aborted.
IS_POSSIBLE = _is_main_interpreter()


def start(run: Callable[[], object]) -> None:
    """Calls *run* in a thread of its own, which ends with the process. Raises RuntimeError where
    there is none to be had, and in a subinterpreter."""
    if not IS_POSSIBLE:
        raise RuntimeError("no thread that lasts is possible in a subinterpreter")
    if not hasattr(_signal, "pthread_sigmask"):  # Windows
        start_new_thread(run, ())
        return
    # A fault is for the thread itself, and a blocked one kills without a word of faulthandler's.
    faults = {_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL}
    # The mask is asked for first: a handler that raises would keep the answer from us.
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    try:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals() - faults)
        start_new_thread(run, ())  # It inherits the mask.
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
