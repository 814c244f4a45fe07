"""Canaries: a connection of somebody else, whose duplicates take every descriptor number that is
freed, and who notices whatever is done to it by a number that was somebody's before."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

import kernel

from safesock import _watch

# Never sent to anybody by safesock's sockets; what is there to be read.
_BAIT = bytes(20_000)
# The numbers that each thread holds at a time.
_HELD = 40
_OFF = struct.pack("ii", 0, 0)


class Canary:
    """While it is in a `with` block, freed numbers are taken at once; `faults` says what has been
    done to it, and it is asked for at the end."""

    def __init__(self, threads: int = 2) -> None:
        self.faults: list[str] = []
        self.taken: set[int] = set()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._near = socket.create_connection(listener.getsockname(), 20)
            self._far, _ = listener.accept()
        self._near.settimeout(None)
        self._far.sendall(_BAIT)
        kernel.wait_until(lambda: kernel.unread(self._near) == len(_BAIT), "the bait is there")
        self._inode = os.fstat(self._near.fileno()).st_ino
        self._flags = fcntl.fcntl(self._near, fcntl.F_GETFL)
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._take_numbers, name="canary", daemon=True)
            for _ in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)
        self._look()
        self._near.close()
        self._far.close()
        if error is None:
            assert not self.faults, self.faults[:10]
            assert self.taken, "it has not taken a single number"

    def _take_numbers(self) -> None:
        held: deque[int] = deque()
        fd = self._near.fileno()
        while not self._is_over.is_set():
            if len(held) < _HELD:
                held.append(os.dup(fd))
                self.taken.add(held[-1])
            else:
                # The oldest and the newest, so that low and high numbers go round.
                self._give_back(held.popleft())
                self._give_back(held.pop())
        while held:
            self._give_back(held.popleft())

    def _give_back(self, fd: int) -> None:
        try:
            if os.fstat(fd).st_ino == self._inode:
                os.close(fd)
                return
            self.faults.append(f"number {fd} is somebody else's")
        except OSError:
            self.faults.append(f"number {fd} has been closed")

    def _look(self) -> None:
        told = {
            "has been read from": kernel.unread(self._near) != len(_BAIT),
            "has been written to": kernel.unread(self._far) != 0,
            "is not connected any more": kernel.state_of(self._near) != "ESTABLISHED"
            or kernel.state_of(self._far) != "ESTABLISHED",
            "has a linger": self._option(socket.SOL_SOCKET, socket.SO_LINGER, 8) != _OFF,
            "has keepalive": self._option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 4) != _OFF[:4],
            "has other flags": fcntl.fcntl(self._near, fcntl.F_GETFL) != self._flags,
            "is watched": self._inode in _watched_inodes(),
        }
        self.faults += [what for what, is_so in told.items() if is_so]

    def _option(self, level: int, name: int, size: int) -> bytes:
        return self._near.getsockopt(level, name, size)


def _watched_inodes() -> set[int]:
    """Those that the watcher has in its epoll."""
    watcher = _watch._watcher
    if watcher is None:
        return set()
    lines = Path(f"/proc/self/fdinfo/{watcher._epoll.fileno()}").read_text().splitlines()
    found = [line.partition("ino:")[2].split()[0] for line in lines if line.startswith("tfd:")]
    return {int(inode, 16) for inode in found}
