"""A look through the process's own descriptors, for connections that nobody here has made: those of
libpq, uvloop, gRPC and all that is not Python.

A descriptor is known by number only, and its owner may close it at any moment: what is to be ended
is duplicated first, and looked at again, so that it can be nobody else's.
"""

from __future__ import annotations

import os
import socket
import threading

from safesock import _closing, _forks, _kernel
from safesock._kernel import Raw, TcpState
from safesock._policy import Abort

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from safesock._policy import CloseMode

_DESCRIPTORS = "/proc/self/fd"


def stale(seconds: float) -> Iterator[int]:
    """The descriptors whose connections have been in CLOSE_WAIT for longer than that, but for those
    that a listening socket of this process has accepted."""
    found: list[tuple[int, Any]] = []
    listening = set()
    for name in os.listdir(_DESCRIPTORS):
        looked = _look(int(name))
        if looked is None:
            continue
        state, age, local = looked
        if state is TcpState.LISTEN:
            listening.add(local[1])
        elif state is TcpState.CLOSE_WAIT and age > seconds:
            found.append((int(name), local))
    for fd, local in found:
        if local[1] not in listening:
            yield fd


def _look(fd: int) -> tuple[TcpState, float, Any] | None:
    """State, age and local address; None for what is no TCP connection that matters."""
    try:
        # The family is not asked for: it does not matter for what is asked here.
        sock = Raw(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
    except OSError:
        return None
    try:
        state = _kernel.tcp_state(sock)
        if state not in (TcpState.LISTEN, TcpState.CLOSE_WAIT):
            return None
        return state, _kernel.age_of_close_wait(sock), sock.getsockname()
    finally:
        sock.detach()


def end(fd: int, seconds: float, mode: CloseMode, applies: Callable[[Any], bool]) -> bool:
    """Ends the connection of this descriptor, and leaves that; whether it did."""
    try:
        sock = socket.socket(fileno=os.dup(fd))
    except OSError:
        return False
    with sock:
        old = _kernel.tcp_state(sock) is TcpState.CLOSE_WAIT
        if not old or _kernel.age_of_close_wait(sock) <= seconds:
            return False
        if not applies(_kernel.peer_name(sock)):
            return False
        return _closing.release(sock, mode, syn=1, fin_sent=False) is not None


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
        self._stopped = threading.Event()
        self._start()
        _forks.remember(self)

    def _start(self) -> None:
        threading.Thread(target=self._run, name="safesock-sweeper", daemon=True).start()

    def _after_fork(self) -> None:
        if not self._stopped.is_set():
            self._stopped = threading.Event()
            self._start()

    def stop(self) -> None:
        """No more sweeps."""
        self._stopped.set()

    def _run(self) -> None:
        stopped = self._stopped
        # A connection is found at the latest when it has been stale for twice the time.
        while not stopped.wait(self._seconds / 2):
            for fd in stale(self._seconds):
                if end(fd, self._seconds, self._mode, self._applies):
                    self._tell("aborted" if isinstance(self._mode, Abort) else "released")
