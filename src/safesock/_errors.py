"""The exceptions of safesock. All are OSErrors, as the standard library's own.

OSError
├── ConnectionError
│   └── ReconnectError: a `Connector` has given up
└── LocalPortBusyError: somebody holds the local port that is to be used
"""

from __future__ import annotations

from safesock._value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Self

# Without a descriptor, these go by themselves (RFC 9293, 3.3.2).
_PASSING = frozenset({"FIN_WAIT1", "FIN_WAIT2", "CLOSING", "LAST_ACK", "TIME_WAIT"})


class PortHolder(Value):
    """A socket that holds a local port: see `LocalPortBusyError`.

    state: its TCP state, such as "LISTEN", "TIME_WAIT" or "CLOSE_WAIT"; "CLOSE" for one that is
        bound and neither connected nor listening.
    local, peer: its addresses; peer is None for a socket without one.
    pid, command, descriptor: the process that has it open. All are None where no process has, as
        in TIME_WAIT, and where the system does not tell: the process belongs to another user.
    seconds_left: until the kernel lets it go (TIME_WAIT), or None.
    """

    __slots__ = ("state", "local", "peer", "pid", "command", "descriptor", "seconds_left")
    state: str
    local: tuple[str, int]
    peer: tuple[str, int] | None
    pid: int | None
    command: str | None
    descriptor: int | None
    seconds_left: float | None

    def __init__(
        self,
        state: str,
        local: tuple[str, int],
        peer: tuple[str, int] | None = None,
        pid: int | None = None,
        command: str | None = None,
        descriptor: int | None = None,
        seconds_left: float | None = None,
    ) -> None:
        self._set(
            state=state,
            local=local,
            peer=peer,
            pid=pid,
            command=command,
            descriptor=descriptor,
            seconds_left=seconds_left,
        )

    @property
    def passes(self) -> bool:
        """Whether the kernel lets it go by itself: a closed connection on its last way."""
        return self.state in _PASSING and self.pid is None

    def __str__(self) -> str:
        words = [self.state]
        if self.peer is not None:
            words.append(f"with {shown(self.peer)}")
        if self.pid is not None:
            command = " ".join(str(self.command).split())
            words.append(f"of process {self.pid} ({command}), descriptor {self.descriptor}")
        if self.seconds_left is not None:
            words.append(f"for {self.seconds_left:.0f} more seconds")
        return " ".join(words)


class LocalPortBusyError(OSError):
    """The fixed local port cannot be used: bind(2) or connect(2) was refused.

    errno: EADDRINUSE, or, from connect(2), EADDRNOTAVAIL: a connection with the same two ends is
        there already.
    call: "bind" or "connect".
    local: the address that was asked for. peer: the address to connect to.
    holders: what holds the port, a tuple of `PortHolder`, as far as the system lets it be known
        (/proc): a socket of another process that is bound and not connected is not shown.
    """

    def __init__(
        self,
        errno: int,
        strerror: str,
        call: str,
        local: tuple[Any, ...],
        peer: tuple[Any, ...],
        holders: Iterable[PortHolder] = (),
    ) -> None:
        super().__init__(errno, strerror)
        self.call = call
        self.local = local
        self.peer = peer
        self.holders: tuple[PortHolder, ...] = tuple(holders)

    @classmethod
    def _of(cls, error: OSError, *fields: Any) -> Self:
        """What the system's refusal comes to."""
        return cls(error.errno or 0, error.strerror or "", *fields)

    @property
    def passes(self) -> bool:
        """Whether the port gets free without anybody's doing."""
        return bool(self.holders) and all(holder.passes for holder in self.holders)

    @property
    def seconds_left(self) -> float | None:
        """Until the port is free, where it `passes` and the kernel says when (TIME_WAIT)."""
        times = [holder.seconds_left for holder in self.holders]
        known = [seconds for seconds in times if seconds is not None]
        return max(known) if self.passes and len(known) == len(times) else None

    def __str__(self) -> str:
        towards = f" towards {shown(self.peer)}" if self.call == "connect" else ""
        held = "; ".join(map(str, self.holders)) or "the system does not say what"
        where = f"local port {shown(self.local)} is busy{towards}"
        return f"[Errno {self.errno}] {self.call}: {where}: {held}"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.errno, self.strerror, self.call, self.local, self.peer, self.holders)
        return type(self), fields, self.__dict__.copy()  # With the notes.


class ReconnectError(ConnectionError):
    """A `Connector` has given up: its attempts or its deadline are used up, or an attempt failed in
    a way that is not retried.

    attempts: the exceptions of this outage, one per attempt, in order. An attempt whose connection
        was made, but ended before it was stable, is there with the error that ended it, or a
        ConnectionError that says so.
    address: what could not be connected to.
    reason: why there was no further attempt, in words.

    The last attempt's exception is its `__cause__`. The budget stays used up: to try again later,
    call `Connector.confirm`, which grants a new one, or make a new connector.
    """

    def __init__(
        self, address: tuple[Any, ...], attempts: Iterable[BaseException], reason: str
    ) -> None:
        super().__init__(reason)
        self.address = address
        self.attempts: list[BaseException] = list(attempts)
        self.reason = reason

    def __str__(self) -> str:
        count = len(self.attempts)
        tried = f"{count} attempt{'' if count == 1 else 's'}"
        last = f"; the last: {_named(self.attempts[-1])}" if self.attempts else ""
        return f"no connection to {shown(self.address)} after {tried}: {self.reason}{last}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.address, self.attempts, self.reason), self.__dict__.copy()


def _named(error: BaseException) -> str:
    note = "".join(f" ({note})" for note in getattr(error, "__notes__", ())[:1])
    words = " ".join(f"{error}{note}".split())  # One line.
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def shown(address: tuple[Any, ...]) -> str:
    """As users write it."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host or '*'}:{port}"
