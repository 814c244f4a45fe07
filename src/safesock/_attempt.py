"""One attempt to connect, as every driver makes it: what its failures come to, how long the local
port is waited for, and what is no connection after all."""

from __future__ import annotations

import errno
import time

from safesock import _kernel
from safesock._budget import PortWait
from safesock._policy import mode_within
from safesock._reconnect import is_hopeless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from safesock._socket import SafeSocket


class Failures:
    """What the addresses of one name gave, each tried within `with failures.at(sockaddr)`."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._sockaddr: tuple[Any, ...] = ()
        self._errors: list[OSError] = []

    def at(self, sockaddr: tuple[Any, ...]) -> Self:
        """The next address."""
        self._sockaddr = sockaddr
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, OSError):
            self._errors.clear()  # Their tracebacks hold this: a reference cycle.
            return False
        error.add_note(f"at {self._sockaddr[0]} port {self._sockaddr[1]}")
        self._errors.append(error)
        return True

    def told(self) -> OSError:
        """The last, or a certificate that did not verify, with notes of the others."""
        errors, self._errors = self._errors, []
        if not errors:
            return OSError(f"{self._host!r} resolves to no address")
        told = max(reversed(errors), key=is_hopeless)
        for error in errors:
            if error is not told:
                told.add_note(f"{error!r} {error.__notes__[0]}")
        return told


class PortTurns:
    """The tries to get the local port, each within `with turns`; after one that was refused, and
    is worth another, `pause` is to be slept."""

    def __init__(self, until: float, seconds: float) -> None:
        self._until = until
        self._seconds = seconds
        self._wait = PortWait(until, time.monotonic() + seconds)
        self._refusal: OSError | None = None
        self.pause = 0.0

    def seconds(self) -> float:
        """For the next try. Raises the last refusal when the time is over: it says more than that
        would."""
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            left = self._until - time.monotonic()
            if left <= 0:
                raise refusal
            self._seconds = min(left, self._seconds)
        return self._seconds

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, OSError):
            return False
        pause = self._wait.pause(error, time.monotonic())
        if pause is None:
            return False
        self.pause, self._refusal = pause, error
        return True


def hurry(sock: SafeSocket, until: float) -> None:
    """Before the close of an attempt that has failed: it is not to outlast the deadline."""
    if sock._connection is not None and sock._connection.may_block():
        sock._close_by(mode_within(sock.policy.close, until - time.monotonic()))


def refuse_itself(sock: SafeSocket) -> None:
    """After a simultaneous open (RFC 9293, 3.5): the SYN met itself, as nobody listens there."""
    if sock._connection is not None and _kernel.local_name(sock) == sock._connection.peer:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")


def refuse_lost(sock: SafeSocket) -> None:
    """After `on_connect`."""
    lost = sock.loss is not None and sock.policy.on_loss != "keep"
    if sock.fileno() < 0 or lost:
        raise ConnectionError("the connection ended while on_connect ran")


CUT = "on_connect was not done before the deadline"
