"""The connections that tests leave behind, and whose they are.

All goes by the inode of the socket: a descriptor's number is a stranger's once it has been closed,
and duplicates have the same inode. A test's are those that are new since it began, but for those

- that were made while a fixture of wider scope was set up, or that one still holds, by its value
  or its own variables: they are the fixture's, and judged when it has ended;
- that were made by a thread from before the test: judged at the end of all;
- that this process has accepted: they are a server's affair;
- that safesock governs, and ends by a policy.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from time import sleep  # As it is now: tests replace it.
from typing import NamedTuple

from safesock import _kernel, _proc
from safesock._audit import audit
from safesock._audit_records import HeldConnection
from safesock._kernel import Raw
from safesock._leaks_held import held_by
from safesock._leaks_made import Made, Recorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

# Seconds between the looks. Together they are what an owner has under `enforce` to react.
_PAUSES = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.4)


class Maker:
    """A test, a fixture or a thread that makes connections.

    name: who it is, in words. mode: what becomes of what it leaves: "fail", "warn" or "off".
    """

    def __init__(self, name: str, mode: str) -> None:
        self.name = name
        self.mode = mode


class Leak(NamedTuple):
    """A connection that is left behind, the descriptors that hold it, and what is known of it."""

    maker: Maker
    connection: HeldConnection
    fds: tuple[int, ...]
    made: Made | None


class Ledger:
    """Who has made what, of that which is still open."""

    def __init__(self) -> None:
        self._recorder = Recorder()
        self._makers: dict[int, Maker] = {}
        # As it all was when the test began.
        self._pid = 0
        self._before: set[int] = set()
        self._threads: set[int | None] = set()

    def begin(self) -> None:
        """A test begins, in this process."""
        self._pid = os.getpid()
        self._recorder.start()
        self._before = _sockets()
        self._threads = _threads() - {threading.get_native_id()}

    def pause(self) -> None:
        """A test begins that nobody asks about."""
        self._recorder.pause()

    def close(self) -> None:
        """Nothing is recorded any more."""
        self._recorder.close()

    @contextlib.contextmanager
    def setting_up(self, fixture: Maker) -> Iterator[None]:
        """What is made meanwhile is this fixture's; so are the threads."""
        before, threads = _sockets_or_none(), _threads()
        try:
            yield
        finally:
            now = _sockets_or_none()
            if before is not None and now is not None:
                self._claim(now - before, fixture)
            self._threads |= _threads() - threads

    def _claim(self, inodes: set[int], maker: Maker) -> None:
        for inode in inodes:
            self._makers.setdefault(inode, maker)

    def end(self, test: Maker, fixtures: Iterable[tuple[Maker, object]]) -> None:
        """The test has ended. *fixtures*: those that have not, with what they hold."""
        self._claim(_sockets() - self._before, test)
        self._forget_the_closed()
        found = {leak.connection.inode for leak in self._left({test})}
        for inode in list(found):
            made = self._recorder.made(inode)
            if made is not None and made.thread in self._threads:
                name = f"the thread {made.thread_name!r}, which is older than {test.name}"
                self._makers[inode] = Maker(name, test.mode)
                found.remove(inode)
        for fixture, value in fixtures if found else ():
            for inode in held_by(value, found):
                self._makers[inode] = fixture
                found.remove(inode)
                if fixture.mode == "off":  # It was set up while nothing was asked for.
                    fixture.mode = test.mode

    def left(self, makers: Collection[Maker] | None = None) -> list[Leak]:
        """What these have left behind, or all, and that is told once.

        Garbage is collected first, as that closes sockets. Where other threads run, they have a
        second to close theirs.
        """
        # A child that was forked in the middle of a test is not the one that began it.
        if self._pid != os.getpid() or not self._left(makers):
            return []
        gc.collect()
        pauses = list(_PAUSES[::-1]) if _others_run() else []
        while (found := self._left(makers)) and pauses:
            sleep(pauses.pop())
        for leak in found:
            self._makers[leak.connection.inode] = _NOBODY
        return found

    def _forget_the_closed(self) -> None:
        still = _sockets()
        self._makers = {inode: maker for inode, maker in self._makers.items() if inode in still}
        self._recorder.keep_only(still)

    def _left(self, makers: Collection[Maker] | None) -> list[Leak]:
        theirs = {
            inode: maker
            for inode, maker in self._makers.items()
            if maker.mode != "off" and (makers is None or maker in makers)
        }
        if not theirs:
            return []
        found: dict[int, list[HeldConnection]] = {}
        for one in audit().found():
            if one.inode in theirs and not _is_governed(one) and self._is_a_clients(one):
                found.setdefault(one.inode, []).append(one)
        return [
            Leak(
                theirs[inode],
                ones[0],
                tuple(sorted(one.fd for one in ones if one.fd is not None)),
                self._recorder.made(inode),
            )
            for inode, ones in found.items()
        ]

    def _is_a_clients(self, one: HeldConnection) -> bool:
        if self._recorder.made(one.inode) is not None:
            return True
        # The listening socket, by whose port audit knows it, may have been closed before.
        return not one.accepted and one.fd is not None and _has_connected(one.fd)


# What has been told, or is not to be.
_NOBODY = Maker("nobody", "off")


def _sockets() -> set[int]:
    """By their inodes. Raises OSError where they cannot be read."""
    return {inode for _, inode in _proc.sockets_of(os.getpid())}


def _sockets_or_none() -> set[int] | None:
    """In the middle of what must not fail for that."""
    with contextlib.suppress(OSError):
        return _sockets()
    return None


def _threads() -> set[int | None]:
    return {one.native_id for one in threading.enumerate()}


def _is_governed(one: HeldConnection) -> bool:
    return one.policy is not None and one.policy.on_loss != "keep"


def _has_connected(fd: int) -> bool:
    sock = Raw.__new__(Raw)
    try:
        Raw.__init__(sock, fileno=fd)  # Within: a KeyboardInterrupt is not to close it.
        return _kernel.connected_here(sock)
    except OSError:
        return False  # Closed meanwhile.
    finally:
        sock.detach()


def _others_run() -> bool:
    return len(os.listdir("/proc/self/task")) > 1


def by_maker(leaks: Iterable[Leak]) -> Iterator[tuple[Maker, list[Leak]]]:
    """Those of each together."""
    found: dict[Maker, list[Leak]] = {}
    for leak in leaks:
        found.setdefault(leak.maker, []).append(leak)
    yield from found.items()
