"""What must not hold up the thread that comes upon it gets a thread of its own."""

from __future__ import annotations

import _thread
import atexit
import threading

from safesock import _background, _forks

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


class _Apart:
    """`apart`, with what is under way: a lock for each, held until it is done."""

    def __init__(self) -> None:
        self._after_fork()
        self._is_known = self._is_ending = False
        _forks.remember(self)

    def _after_fork(self) -> None:
        self._under_way: set[_thread.LockType] = set()

    def __call__(self, work: Callable[[], object], name: str = "safesock-closer") -> bool:
        """As `beside`, from where the garbage collector may have struck, in the middle of anything.

        `threading` waits until a thread has begun, which may need a lock of its own that is held in
        this very one. And where gevent or eventlet have put green threads in their place, one that
        is started from a native thread would never come to its turn: there *work* has a native one.
        """
        if self._is_ending:
            return False
        if not self._is_known:
            self._is_known = True
            atexit.register(self._end)
        lock = _background.new_lock()
        lock.acquire()
        under_way = self._under_way

        def run() -> None:
            try:
                work()
            finally:
                under_way.discard(lock)
                lock.release()

        def launch() -> None:
            if not (_has_native_threads() and beside(run, name)):
                run()

        try:
            under_way.add(lock)
            _background.start(launch)
        except RuntimeError:
            under_way.discard(lock)
            return beside(work, name)
        except BaseException:  # KeyboardInterrupt: who waits for it at the exit may wait for ever.
            under_way.discard(lock)
            raise
        return True

    def _end(self) -> None:
        """`threading` waits for those that it knows only, and no more."""
        self._is_ending = True
        for lock in tuple(self._under_way):
            lock.acquire()


apart = _Apart()


def _has_native_threads() -> bool:
    return _thread.start_new_thread is _background.start_new_thread
