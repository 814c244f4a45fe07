"""Waiting for sockets: in the thread that asks, or in one of its own that can be stopped.

What a peer does is written once, as generators that yield what they wait for; who waits, and for
how long, is up to the one that runs them: `run` here, `Background` here, asyncio in its own file.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from safesock import _kernel

TIMEOUT = 20.0
Result = TypeVar("Result")
Value = TypeVar("Value")


class Wait(NamedTuple):
    """Until this socket can be read, or, with *write*, written; or until it has an error."""

    sock: socket.socket
    write: bool = False


Steps: TypeAlias = Generator[Wait, None, Result]


def late(timeout: float, what: str) -> TimeoutError:
    """What is raised when *what* has not come about in time."""
    return TimeoutError(f"not within {timeout:g} s: {what}")


def run(steps: Steps[Result], timeout: float, what: str) -> Result:
    """Waits as *steps* ask for it (poll(2)), *timeout* seconds in all. Raises TimeoutError."""
    deadline = time.monotonic() + timeout
    try:
        while True:
            sock, write = next(steps)
            left = deadline - time.monotonic()
            if left < 0 or not _kernel.ready(sock, left, write=write):
                raise late(timeout, what)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        steps.close()


class _Stopped(BaseException):
    """Unwinds a background thread."""


class Background(Generic[Result]):
    """A thread that does *work*, and ends when it is told to, whatever it waits for."""

    def __init__(self, work: Callable[[Background[Result]], Result]) -> None:
        # Each side has its own: `stop` shuts this one down, the thread closes the other.
        self._ended, self._told = socket.socketpair()
        self._outcome: Result | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(work,), name="safesock peer", daemon=True
        )
        self._thread.start()

    def run(self, steps: Steps[Value]) -> Value:
        """For the thread itself: waits as *steps* ask for it."""
        try:
            while True:
                sock, write = next(steps)
                self._wait(None, sock, select.POLLOUT if write else select.POLLIN)
        except StopIteration as end:
            value: Value = end.value
            return value
        finally:
            steps.close()

    def pause(self, seconds: float) -> None:
        """For the thread itself."""
        self._wait(seconds)

    def finished(self) -> Steps[Result]:
        """Waits until it has ended; gives what *work* gave, or raises what it raised."""
        yield Wait(self._ended)
        if self._error is not None:
            raise self._error
        return self._outcome  # type: ignore[return-value]  # None after `stop` only.

    def stop(self) -> None:
        """Ends the thread. May be called again."""
        with contextlib.suppress(OSError):  # It has been stopped already.
            self._ended.shutdown(socket.SHUT_WR)
        self._thread.join()
        self._ended.close()

    def _run(self, work: Callable[[Background[Result]], Result]) -> None:
        try:
            self._outcome = work(self)
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error  # `finished` raises it.
        finally:
            self._told.close()

    def _wait(
        self, seconds: float | None, sock: socket.socket | None = None, events: int = 0
    ) -> None:
        poll = select.poll()
        poll.register(self._told, select.POLLIN)
        if sock is not None:
            poll.register(sock, events)
        ready = poll.poll(None if seconds is None else seconds * 1000)
        if self._told.fileno() in dict(ready):
            raise _Stopped
