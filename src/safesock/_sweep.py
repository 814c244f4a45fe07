"""A look through the process's own descriptors, for connections that nobody here has made: those of
libpq, uvloop, gRPC and all that is not Python.

A descriptor is known by number only, and its owner may close it at any moment: what is to be ended
is duplicated first, and looked at again, so that it can be nobody else's. Whose connection it is
shows its inode, which all duplicates share. All of it goes on where the process is at its limit of
descriptors, as that is where connections that nobody closes lead.
"""

from __future__ import annotations

import errno
import os
import socket
from os import fstat

from safesock import _abortive, _background, _closing, _forks, _hub, _kernel, _unraisable, _watch
from safesock._kernel import Raw
from safesock._policy import Abort
from safesock._spare import Spare
from safesock._told import new_story

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from safesock._closing import Outcome
    from safesock._policy import CloseMode
    from safesock._story import Story

_DESCRIPTORS = "/proc/self/fd"
_WHERE = "the thread that sweeps: it goes on, and tells the same no more"
# With the second flag C does not make the connection non-blocking where there is a default timeout.
_KIND = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)


def stale(seconds: float) -> dict[int, int]:
    """A descriptor for each connection that has been in CLOSE_WAIT for longer than that, by inode;
    but for those that this side has accepted, and those that safesock governs."""
    found = {}
    for fd in _descriptors():
        if _is_stale(fd, seconds) and (inode := _inode(fd)) is not None:
            found[inode] = fd
    if found:
        for fd in _watch.watched():
            found.pop(_inode(fd) or 0, None)
    return found


def missed(seconds: float) -> int:
    """How many there are, as far as can be seen."""
    try:
        return len(stale(seconds))
    except OSError:
        return 0  # There is no /proc.


def _descriptors() -> Iterable[int]:
    try:
        return map(int, os.listdir(_DESCRIPTORS))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        # None is left for the look: all below the limit are in use.
        return range(os.sysconf("SC_OPEN_MAX"))


def _borrowed(fd: int) -> Raw:
    """To be detached. The family is not asked for: it does not matter for what is asked here."""
    return Raw(socket.AF_INET, _KIND, 0, fd)


def _inode(fd: int) -> int | None:
    try:
        return fstat(fd).st_ino
    except OSError:
        return None


def _is_stale(fd: int, seconds: float) -> bool:
    try:
        sock = _borrowed(fd)
    except OSError:
        return False  # No socket, or closed meanwhile.
    try:
        return _kernel.age_of_close_wait(sock) > seconds and _kernel.connected_here(sock)
    finally:
        sock.detach()


def _heard(sock: Raw) -> Story | None:
    """What is to be told of a connection that is about to be ended; None where nobody listens."""
    if not _hub.is_heard():
        return None
    story = new_story(peer=_kernel.peer_name(sock))
    story.local = _kernel.local_name(sock)
    story.close_wait = _kernel.age_of_close_wait(sock)
    return story


class Sweeper:
    """Sweeps again and again, in a thread of its own; in forked children too."""

    def __init__(
        self,
        seconds: float,
        mode: CloseMode,
        applies: Callable[[Any], bool],
        tell: Callable[[str], object],
    ) -> None:
        self._seconds = seconds
        self._mode = mode
        self._applies = applies
        self._tell = tell
        self._told: set[tuple[type, object]] = set()
        # The inodes of those for whom a RST is on its way, and that have been counted.
        self._dying: set[int] = set()
        self._spare = Spare()
        self._is_stopped = False
        if isinstance(mode, Abort):
            self._guarded(_abortive.load_connect)  # An import takes a descriptor.
        self._start()
        _forks.remember(self)

    def _start(self) -> None:
        self._spare.keep()
        # Held until this is stopped.
        self._going_on = _background.new_lock()
        self._going_on.acquire()
        try:
            _background.start(self._run)
        except BaseException:  # KeyboardInterrupt: nobody gets this, to stop it.
            self.stop()
            raise

    def _after_fork(self) -> None:
        self._spare.after_fork()
        if self._is_stopped:
            self._spare.close()
            return
        self._guarded(self._start)

    def stop(self) -> None:
        """No more sweeps."""
        if not self._is_stopped:
            self._is_stopped = True
            self._going_on.release()

    def _run(self) -> None:
        # A connection is found at the latest when it has been stale for twice the time.
        while not self._going_on.acquire(timeout=self._seconds / 2):
            self._guarded(self._sweep)
        self._spare.close()

    def _sweep(self) -> None:
        self._spare.keep()
        found = stale(self._seconds)
        self._dying.intersection_update(found)
        for inode, fd in found.items():
            self._guarded(self._look_at, inode, fd)

    def _guarded(self, act: Callable[..., object], *args: int) -> None:
        """Nothing gets out: the next is still to be done."""
        try:
            act(*args)
        except Exception as error:
            kind = type(error), getattr(error, "errno", None)
            if kind not in self._told:
                self._told.add(kind)
                _unraisable.report(error, _WHERE)

    def _look_at(self, inode: int, fd: int) -> None:
        try:
            with self._spare.duplicate(fd) as duplicate:
                ended = self._end(duplicate) if _inode(duplicate) == inode else None
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return  # Its owner has closed it.
        if ended is None or inode in self._dying:
            return
        outcome, story = ended
        if not outcome.over:
            self._dying.add(inode)
        self._tell("aborted" if isinstance(self._mode, Abort) else "released")
        if story is not None:
            story.released(lambda: None)
            story.tell_later()

    def _end(self, fd: int) -> tuple[Outcome, Story | None] | None:
        """Ends the connection of this descriptor, if that can be, and leaves the descriptor."""
        sock = _borrowed(fd)
        try:
            if _kernel.age_of_close_wait(sock) <= self._seconds:
                return None
            if not self._applies(_kernel.peer_name(sock)):
                return None
            story = _heard(sock)
            outcome = _closing.release(sock, self._mode, syn=1, fin_sent=False)
            return None if outcome is None else (outcome, story)
        finally:
            sock.detach()
