"""Waiting for sockets: in the thread that asks, or in one of its own that can be stopped.

What a peer does is written once, as generators that yield what they wait for; who waits, and for
how long, is up to the one that runs them: `Waiting` and `Background` here, asyncio in its own file.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Generator
from time import monotonic
from typing import Generic, NamedTuple, TypeAlias, TypeVar

TIMEOUT = 20.0
Result = TypeVar("Result")
Value = TypeVar("Value")
# It has no descriptor of its own; Windows has no poll.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Wait(NamedTuple):
    """Until this socket can be read, or, with *write*, written; or until it has an error."""

    sock: socket.socket
    write: bool = False


Steps: TypeAlias = Generator[Wait, None, Result]


def late(timeout: float, what: str) -> TimeoutError:
    """What is raised when *what* has not come about in time."""
    return TimeoutError(f"not within {timeout:g} s: {what}")


def given_up() -> ConnectionAbortedError:
    """What is raised when it can not come about any more, as this side has ended it."""
    return ConnectionAbortedError("closed while it was waited for")


class Waits:
    """The waits of one end, or of one peer."""

    def prepare(self, sock: socket.socket, timeout: float) -> None:
        """Before the first of them is for this socket."""
        raise NotImplementedError

    def give_up(self) -> None:
        """Before their sockets are closed: whoever waits gets ConnectionAbortedError."""
        raise NotImplementedError


class Waiting(Waits):
    """Those of threads."""

    def __init__(self) -> None:
        # Each with the process that waits: a forked child has them all.
        self._tellers: dict[socket.socket, int] = {}

    def prepare(self, sock: socket.socket, timeout: float) -> None:
        sock.settimeout(timeout)  # No call waits longer in C than it would here.

    def run(self, steps: Steps[Result], timeout: float, what: str) -> Result:
        """Waits as *steps* ask for it, *timeout* seconds in all. Raises TimeoutError."""
        deadline = monotonic() + timeout
        told, teller = socket.socketpair()
        with told, teller:
            self._tellers[teller] = os.getpid()
            try:
                while True:
                    wait = next(steps)
                    left = deadline - monotonic()
                    if left < 0 or not (ready := _ready(told, left, wait)):
                        raise late(timeout, what)
                    if told in ready:
                        raise given_up()
            except StopIteration as end:
                result: Result = end.value
                return result
            except OSError:
                if told in _ready(told, 0):  # What was waited for may be closed by now.
                    raise given_up() from None
                raise
            finally:
                del self._tellers[teller]
                steps.close()

    def give_up(self) -> None:
        for teller, process in list(self._tellers.items()):
            if process == os.getpid():
                _tell(teller)


def _ready(
    told: socket.socket, seconds: float | None, wait: Wait | None = None
) -> list[socket.socket]:
    """What of *told* and *wait* is ready within so many seconds (None: without limit)."""
    with _Selector() as selector:
        selector.register(told, selectors.EVENT_READ, told)
        if wait is not None:
            number = wait.sock.fileno()
            if number < 0:
                return [wait.sock]  # The call that comes next tells what that means.
            events = selectors.EVENT_WRITE if wait.write else selectors.EVENT_READ
            selector.register(number, events, wait.sock)
        return [key.data for key, _ in selector.select(seconds)]


def _tell(teller: socket.socket) -> None:
    with contextlib.suppress(OSError):  # It was told already, or waits no more.
        teller.shutdown(socket.SHUT_WR)


class _Stopped(BaseException):
    """Unwinds a background thread."""


class Background(Generic[Result]):
    """A thread that does *work*, and ends when it is told to, whatever it waits for."""

    def __init__(self, work: Callable[[Background[Result]], Result]) -> None:
        # Each side has its own: `stop` shuts this one down, the thread closes the other.
        self._ended, self._told = socket.socketpair()
        self._process = os.getpid()
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
                self._wait(None, next(steps))
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
        if self._process == os.getpid():
            _tell(self._ended)
            self._thread.join()
        else:  # In a forked child there is no thread, and the sockets are its parent's too.
            self._told.close()
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

    def _wait(self, seconds: float | None, wait: Wait | None = None) -> None:
        if self._told in _ready(self._told, seconds, wait):
            raise _Stopped
