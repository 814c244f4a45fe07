"""A descriptor number that is kept for where a process has no other left."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from safesock._kernel import Raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Spare:
    """Two descriptors of a file of its own: the second number can be lent, and is then taken back
    by way of the first, without ever being free for others. For one thread."""

    def __init__(self) -> None:
        self._file = self._second = self._lent = -1
        # By what the two are known: others may have closed them, and got the numbers.
        self._identity: tuple[int, int] | None = None

    def keep(self) -> None:
        """Takes the two, as far as there are any; again where others have closed them, as daemons
        do with all descriptors."""
        if self._is_there():
            return
        self.close()
        try:
            self._file = Raw(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
            self._identity = _identity(self._file)
            self._second = os.dup(self._file)
        except OSError:
            self.close()

    def close(self) -> None:
        """Gives the two up."""
        for fd in (self._file, self._second):
            if self._is_own(fd):
                os.close(fd)
        self._file = self._second = -1

    @contextlib.contextmanager
    def duplicate(self, fd: int) -> Iterator[int]:
        """A duplicate of *fd*, as long as the block lasts; raises OSError where there is none."""
        try:
            self._lent = os.dup(fd)
        except OSError as error:
            if error.errno != errno.EMFILE or not self._is_there():
                raise
            self._lent = os.dup2(fd, self._second, inheritable=False)
        try:
            yield self._lent
        finally:
            self._take_back()

    def _take_back(self) -> None:
        lent, self._lent = self._lent, -1
        if lent == self._second and self._is_own(self._file):
            os.dup2(self._file, lent, inheritable=False)
        else:
            os.close(lent)

    def after_fork(self) -> None:
        """In the child: what was lent in the middle of the fork would stay open there."""
        if self._lent >= 0:
            self._take_back()

    def _is_there(self) -> bool:
        return self._is_own(self._file) and self._is_own(self._second)

    def _is_own(self, fd: int) -> bool:
        return fd >= 0 and self._identity is not None and _identity(fd) == self._identity


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino
