"""The watcher: one thread that notices a FIN or RST on sockets that nobody reads.

epoll(7) with EPOLLRDHUP reports a FIN even behind unread bytes, and costs nothing while there is
none. The thread starts with the first socket and is a daemon: it waits in the kernel for ever. It
knows sockets by weak reference only. A forked child starts anew, with none of its parent's sockets.

As long as it cannot start, for want of descriptors, those that it is to watch wait, and another
thread tries again until it can; where not even that one can start, the next `watch` or `unwatch`
tries.

Where there is no epoll, `watch` does nothing and the next call on a socket notices its loss.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import weakref

# Taken as they are now: a program's own tests put mocks in their place while the thread runs.
from os import close, fstat, read, write
from time import monotonic

from safesock import _background, _unraisable
from safesock._kernel import HAS_EPOLL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Watched(Protocol):
        """What the watcher asks of a socket."""

        def fileno(self) -> int: ...

        def _peer_has_closed(self) -> float | None:
            """Something happened: the seconds until `_step_in` is due, or None for never."""

        def _step_in(self) -> float | None:
            """The owner has not reacted: the seconds until this is to be tried again, or None."""


_ORDER = itertools.count()
_WATCHING = "the thread that watches sockets"
# Number and device, in what fstat(2) tells.
_INODE = slice(1, 3)
# Seconds that a connection lives before it is watched.
_YOUTH = 0.05
# Seconds until it is tried again to make a watcher.
_AGAIN = 0.2
# As it is now: gevent takes it out of the module.
_epoll: Any = getattr(select, "epoll", None)
# Edges: what has happened is reported once, not for as long as it lasts. One shot would miss the
# FIN after the owner's own shutdown(SHUT_RD), which looks the same.
_PEER_CLOSES = select.EPOLLRDHUP | select.EPOLLET if HAS_EPOLL else 0


class _Entry(weakref.ref["Watched"]):
    """One time that a socket is watched: one object may be so with one connection after another."""

    __slots__ = ("events", "is_new", "is_given_up")
    # Those that epoll is asked for.
    events: int
    # epoll has not been asked for this descriptor before it is the turn of the young.
    is_new: bool
    # What was to be done has failed: it is left to a sweep.
    is_given_up: bool


class Watcher:
    """The sockets that are watched, by descriptor, and what is due when."""

    def __init__(self) -> None:
        self._epoll = _epoll()
        # What is written to the rope rings the bell, which wakes the thread.
        self._bell = self._rope = -1
        self._sockets: dict[int, _Entry] = {}
        # Those of them that are not in epoll yet; whether the bell has been rung for them.
        self._young: dict[int, _Entry] = {}
        self._rung = False
        # What is to be done when, with which socket; without one, the young are to be looked after.
        self._due: list[tuple[float, int, int, _Entry | None]] = []
        # As the interpreter and as the system know the thread, once it runs.
        self._thread: int | None = None
        self.native_id: int | None = None
        try:
            # Not an eventfd: those have no inode of their own, by which they are known.
            self._bell, self._rope = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._epoll.register(self._bell, select.EPOLLIN)
            self._inode = fstat(self._bell)[_INODE]
            _background.start(self._run)
        except BaseException:
            self.forget()
            raise

    def add_soon(self, sock: Watched) -> None:
        """Many connections live for a moment only: they are spared two system calls, and the thread
        two awakenings, each in the middle of its owner's work."""
        fd = sock.fileno()
        if fd < 0:
            return  # Closed meanwhile.
        before = self._sockets.get(fd)
        entry = _entry(sock, _PEER_CLOSES, is_new=before is None)
        self._sockets[fd] = self._young[fd] = entry
        if sock.fileno() != fd:
            self._give_back(fd, entry, before)
        if not self._rung:
            try:
                self._rung = True
                write(self._rope, b"!")
            except BaseException:  # KeyboardInterrupt: the next one rings.
                self._rung = False
                raise

    def add(self, sock: Watched, connecting: bool) -> None:
        """Watches *sock*; with *connecting* it is told as well when that is done."""
        fd = sock.fileno()
        if fd < 0:
            return  # Closed meanwhile.
        self._young.pop(fd, None)
        before = self._sockets.get(fd)
        entry = _entry(sock, _events(connecting))
        self._sockets[fd] = entry
        if sock.fileno() != fd:
            self._give_back(fd, entry, before)
        elif not self._register(fd, entry.events):
            self._sockets.pop(fd, None)

    def _give_back(self, fd: int, entry: _Entry, before: _Entry | None) -> None:
        """Another thread has closed the socket of *entry* meanwhile, and the number may be that of
        *before*, which was there."""
        if self._sockets.get(fd) is not entry:
            return
        if before is None or not _has(before, fd):
            self._forget(fd)
            return
        self._sockets[fd] = before
        self._young.pop(fd, None)
        self._register(fd, before.events)

    def take(self, fd: int, waiter: _Entry) -> None:
        """Watches one that has waited; not if it was closed or forgotten meanwhile."""
        if self._sockets.setdefault(fd, waiter) is not waiter:
            _waits_no_more(fd, waiter)
        # After: `unwatch` looks for it there first, and then here.
        elif _waits_no_more(fd, waiter) and _has(waiter, fd):
            self._grow_up(fd, waiter)
        elif self._is_watched(fd, waiter):
            self._forget(fd)

    def _register(self, fd: int, events: int) -> bool:
        """False: closed meanwhile, or no watches left: as without epoll."""
        if not self.is_intact():
            return False
        try:
            try:
                self._epoll.register(fd, events)
            except FileExistsError:
                self._epoll.modify(fd, events)
        except (OSError, ValueError):
            return False
        return True

    def remove(self, sock: Watched) -> None:
        """Forgets it."""
        fd = sock.fileno()
        if not self._is_anothers(fd, sock):
            self._forget(fd)

    def _is_anothers(self, fd: int, sock: Watched) -> bool:
        """Whether *sock*, which had this number, was closed by another thread meanwhile, and the
        number is somebody else's. No lock is held, which a KeyboardInterrupt could leave held."""
        entry = self._sockets.get(fd)
        now = None if entry is None else entry()
        return now is not None and now is not sock and now.fileno() == fd

    def _forget(self, fd: int) -> None:
        young = self._young.pop(fd, None)
        entry = self._sockets.pop(fd, None)
        if entry is None or (entry is young and entry.is_new):
            return  # epoll has never had it, and the thread has not taken it up.
        # Explicitly: close(2) would not end it while a duplicate descriptor exists.
        self._unregister(fd)

    def _unregister(self, fd: int) -> None:
        if not self.is_intact():
            return
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):
            pass

    def forget(self) -> None:
        """In a forked child: the descriptors go, the parent's sockets stay as they are."""
        self._epoll.close()
        for fd in (self._bell, self._rope):
            if fd >= 0:
                close(fd)

    def is_intact(self) -> bool:
        """Whether its descriptors are its own: os.closerange closes whatever there is."""
        try:
            return fstat(self._bell)[_INODE] == self._inode == fstat(self._rope)[_INODE]
        except OSError:
            return False

    def is_this_thread(self) -> bool:
        """Whether it asks for itself."""
        return self._thread == _background.get_ident()

    def _run(self) -> None:
        self._thread, self.native_id = _background.get_ident(), _background.get_native_id()
        try:
            self._wait_and_act()
        except OSError:
            if self.is_intact():
                raise

    def _wait_and_act(self) -> None:
        while True:
            timeout = max(self._due[0][0] - monotonic(), 0.0) if self._due else None
            events = self._epoll.poll(timeout)
            if not self.is_intact():
                return
            for fd, _ in events:
                if fd == self._bell:
                    read(fd, 1)
                    self._at(_YOUTH, fd, None)
                else:
                    self._ask(fd, self._sockets.get(fd), step_in=False)
            while self._due and self._due[0][0] <= monotonic():
                fd, ref = heapq.heappop(self._due)[2:]
                if ref is None:
                    self._look_after_the_young()
                else:
                    self._ask(fd, ref, step_in=True)

    def _at(self, seconds: float, fd: int, ref: _Entry | None) -> None:
        heapq.heappush(self._due, (monotonic() + seconds, next(_ORDER), fd, ref))

    def _look_after_the_young(self) -> None:
        self._rung = False  # Before: whoever comes from now on rings again.
        for fd in list(self._young):
            ref = self._young.pop(fd, None)
            if ref is not None:
                self._grow_up(fd, ref)

    def _grow_up(self, fd: int, ref: _Entry) -> None:
        # No reference is held meanwhile: whoever drops the last one ends the connection.
        try:
            if self._is_watched(fd, ref) and _has(ref, fd):
                self._make_good(fd, ref, self._register(fd, ref.events))
        except BaseException as error:
            _unraisable.report(error, _WATCHING)  # The others are still to be watched.

    def _make_good(self, fd: int, ref: _Entry, is_registered: bool) -> None:
        """Where the socket was closed meanwhile: the number may be a stranger's, or that of one
        that has been watched since."""
        now = self._sockets.get(fd)
        if now is None:
            self._unregister(fd)
        elif now is not ref:
            now.is_new = False
            self._register(fd, now.events)
        elif not is_registered or not _has(ref, fd):
            self._forget(fd)

    def _ask(self, fd: int, ref: _Entry | None, *, step_in: bool) -> None:
        # In a function of its own: while the thread waits, no local variable holds a socket.
        sock = ref() if ref is not None else None
        if ref is None or sock is None or not self._is_watched(fd, ref):
            return
        try:
            seconds = sock._step_in() if step_in else sock._peer_has_closed()
        except BaseException as error:
            _unraisable.report(error, _WATCHING)  # The others are still to be watched.
            ref.is_given_up = True
            return
        if seconds is not None:
            self._forget_the_dead()
            self._at(seconds, fd, ref)

    def _is_watched(self, fd: int, ref: _Entry) -> bool:
        return self._sockets.get(fd) is ref

    def _forget_the_dead(self) -> None:
        # Sockets that were closed while their grace lasts: not for as long as that may be.
        if len(self._due) > 2 * len(self._sockets) + 100:
            self._due = [
                due for due in self._due if due[3] is None or self._is_watched(due[2], due[3])
            ]
            heapq.heapify(self._due)


def _entry(sock: Watched, events: int, *, is_new: bool = False) -> _Entry:
    made = _Entry(sock)
    made.events, made.is_new, made.is_given_up = events, is_new, False
    return made


def _events(connecting: bool) -> int:
    return _PEER_CLOSES | (select.EPOLLOUT if connecting else 0)


def _has(ref: _Entry, fd: int) -> bool:
    """Whether the socket exists, and still has this descriptor."""
    sock = ref()
    return sock is not None and sock.fileno() == fd


_watcher: Watcher | None = None
_abandoned: list[Watcher] = []
_starting = threading.RLock()
_fork_is_known = False
# Those that no watcher could be made for, by descriptor.
_waiting: dict[int, _Entry] = {}
# Held by the thread that tries again, and by that only: no KeyboardInterrupt can leave it held.
_trying = _background.new_lock()


def watch(sock: Watched, *, connecting: bool = False) -> None:
    """Watches *sock* until `unwatch`; one whose connect goes on is first told when that is done."""
    if not HAS_EPOLL or not _background.IS_POSSIBLE:
        return
    try:
        watcher = _current()
        if connecting:
            watcher.add(sock, connecting)
        else:
            watcher.add_soon(sock)
    except (OSError, RuntimeError):
        # No descriptor or thread left, or the interpreter is on its way out.
        if (fd := sock.fileno()) >= 0:
            _waiting[fd] = _entry(sock, _events(connecting))
    if _waiting:
        _try_again_soon()


def unwatch(sock: Watched) -> None:
    """To be called before the descriptor is closed or given away."""
    if _waiting:
        fd = sock.fileno()
        waiter = _waiting.get(fd)
        if waiter is not None and waiter() is sock:
            _waits_no_more(fd, waiter)
        _try_again_soon()
    if _watcher is not None:
        _watcher.remove(sock)


def watched() -> dict[int, Watched]:
    """What is watched now, by descriptor."""
    entries = [] if _watcher is None else list(_watcher._sockets.items())
    found = [(fd, ref()) for fd, ref in entries if not ref.is_given_up]
    return {fd: sock for fd, sock in found if sock is not None and sock.fileno() == fd}


def is_watching_thread() -> bool:
    """Whether this is the thread of the watcher, which must not wait for anything else."""
    return _watcher is not None and _watcher.is_this_thread()


def _current() -> Watcher:
    watcher = _watcher
    return _start(watcher) if watcher is None or not watcher.is_intact() else watcher


def _start(before: Watcher | None = None) -> Watcher:
    global _watcher, _fork_is_known
    with _starting:
        if not _fork_is_known:
            os.register_at_fork(after_in_child=_after_fork)
            _fork_is_known = True
        if _watcher is None or _watcher is before:
            _watcher = Watcher()
            if before is not None:
                # Its epoll would close what is a stranger's number by now.
                _abandoned.append(before)
        return _watcher


def _waits_no_more(fd: int, waiter: _Entry) -> bool:
    """Whether this one has waited until now."""
    found = _waiting.pop(fd, None)
    if found is not None and found is not waiter:
        _waiting.setdefault(fd, found)
    return found is waiter


def _try_again_soon() -> None:
    if _waiting and not _trying.locked():
        try:
            _background.start(_try_again)
        except RuntimeError:
            pass  # Nor a thread: the next one who comes tries.


def _try_again() -> None:
    trying = _trying
    while _waiting and trying.acquire(blocking=False):
        try:
            _look_after_the_waiting()
        finally:
            trying.release()  # And looks again: whoever came before has started no thread.


def _look_after_the_waiting() -> None:
    pause = _background.new_lock()
    pause.acquire()
    while _waiting:
        pause.acquire(timeout=_AGAIN)
        for fd in list(_waiting):
            waiter = _waiting.get(fd)
            if waiter is not None and not _has(waiter, fd):
                _waits_no_more(fd, waiter)
            elif waiter is not None:
                try:
                    _current().take(fd, waiter)
                except (OSError, RuntimeError):
                    break  # Still none to be had.


def _after_fork() -> None:
    global _watcher, _starting, _trying
    _starting, _trying = threading.RLock(), _background.new_lock()
    _waiting.clear()
    if _watcher is not None:
        _watcher.forget()
        _watcher = None
