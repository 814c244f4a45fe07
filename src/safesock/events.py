"""What `safesock.subscribe` tells: the life of each connection, and of the attempts to come back.

Connecting → Connected → Lost → Released → Closed is the order in which one connection has them, and
it need not have all. A connect that fails has no event of its own: its caller gets the exception,
and a `Connector` tells of it by Retrying or BudgetExhausted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from safesock._errors import ReconnectError, shown
from safesock._logger import DEBUG, INFO
from safesock._loss import CloseReport, Loss

__all__ = [
    "BudgetExhausted",
    "Closed",
    "Connected",
    "Connecting",
    "Event",
    "Lost",
    "Released",
    "Retrying",
]


@dataclass(frozen=True, slots=True)
class Event:
    """What all events have.

    connection: the number of the connection, the same in all its events and records, and of no
        other in this process. For Retrying and BudgetExhausted the one before, or None where there
        has been none.
    time: when it happened: seconds since the epoch, as time.time() gives them.
    local, peer: its addresses, as `getsockname` and `getpeername` give them; None where they are
        not known. For Retrying and BudgetExhausted those that the `Connector` was given.
    """

    connection: int | None
    time: float
    local: Any
    peer: Any
    # With which it is logged.
    _level: ClassVar[int] = DEBUG

    def _which(self) -> str:
        return f"connection {self.connection} to {_shown(self.peer)}"


@dataclass(frozen=True, slots=True)
class Connecting(Event):
    """connect(2) is about to be called: `peer` is what it is called with, `local` what the socket
    is bound to. Not told of what `wrap` takes over, nor under an `enforce` with *only*, which does
    not know yet whether it applies.

    previous: the number of the connection that it takes the place of, where a `Connector` comes
        back; else None.
    """

    previous: int | None = None

    def __str__(self) -> str:
        return f"{self._which()}: connecting{_after(self.previous)}"


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """The connection is made, or taken over; TLS and `on_connect` are still to come.

    previous: as in Connecting.
    """

    previous: int | None = None

    def __str__(self) -> str:
        return f"{self._which()}: connected from {_shown(self.local)}{_after(self.previous)}"


@dataclass(frozen=True, slots=True)
class Lost(Event):
    """The loss of the connection was noticed: by a call of its owner's, by the watcher, or, under
    `enforce`, by the close of a plain socket whose peer had closed before.

    loss: the `Loss`.
    """

    loss: Loss

    def __str__(self) -> str:
        loss = self.loss
        error = f" ({loss.error})" if loss.error is not None else ""
        return (
            f"{self._which()}: lost by {loss.cause.name}{error} after {loss.lifetime:.3f} s; bytes"
            f" unacknowledged {loss.unacknowledged}, unread {loss.unread}"
        )


@dataclass(frozen=True, slots=True)
class Released(Event):
    """Our side of the connection was ended, and the descriptor left to its owner: by the watcher or
    a sweep, or by a loss with on_loss="release".

    loss: the `Loss`; None for what a sweep has found, of which nothing else is told.
    close_wait: the seconds that it was in CLOSE_WAIT, from the peer's FIN to our end; None where it
        was not. They are counted from the last that came from the peer (tcpi_last_ack_recv).
    """

    loss: Loss | None
    close_wait: float | None

    def __str__(self) -> str:
        return f"{self._which()}: released{_waited(self.close_wait)}"


@dataclass(frozen=True, slots=True)
class Closed(Event):
    """The owner's descriptor is closed. One that is given away by `detach` is told of no more.

    report: the `CloseReport`. Of a plain socket that was collected its numbers are None.
    close_wait: the seconds that it was in CLOSE_WAIT until then, as in Released; None where it was
        not, or has been released before.
    """

    report: CloseReport
    close_wait: float | None

    def __str__(self) -> str:
        how = "reset" if self.report.reset else "closed"
        return f"{self._which()}: {how} by {self.report.mode!r}{_waited(self.close_wait)}"


@dataclass(frozen=True, slots=True)
class Retrying(Event):
    """An attempt of a `Connector` has failed, and it waits for the next one.

    attempt: the number of the attempt that failed, in this outage: the first is 1.
    error: what it raised, or what has become of its connection.
    wait: seconds until the next.
    """

    attempt: int
    error: BaseException
    wait: float
    _level: ClassVar[int] = INFO

    def __str__(self) -> str:
        error = f"{type(self.error).__name__}: {self.error}"
        return (
            f"no connection to {_shown(self.peer)} by attempt {self.attempt}: {error}; the next in"
            f" {self.wait:.3f} s"
        )


@dataclass(frozen=True, slots=True)
class BudgetExhausted(Event):
    """A `Connector` gives up: its attempts or its deadline are used up, or the failure is not one
    that is retried.

    error: the `ReconnectError` that its caller gets.
    """

    error: ReconnectError
    _level: ClassVar[int] = INFO

    def __str__(self) -> str:
        return str(self.error)


def _shown(address: Any) -> str:
    return shown(address) if isinstance(address, tuple) and len(address) > 1 else str(address)


def _after(previous: int | None) -> str:
    return "" if previous is None else f", in the place of connection {previous}"


def _waited(seconds: float | None) -> str:
    return "" if seconds is None else f" after {seconds:.3f} s in CLOSE_WAIT"
