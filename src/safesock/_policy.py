"""How a connection ends: frozen choices, checked once, where they are made.

Nothing here does I/O. `_closing` carries a close mode out, `_kernel` sets the options.
"""

from __future__ import annotations

from safesock._value import Value, said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    OnLoss: TypeAlias = Literal["close", "release", "keep"]

# What the kernel takes: poll(2) and TCP_USER_TIMEOUT an int of milliseconds, TCP_KEEPIDLE,
# TCP_KEEPINTVL and, on every platform, l_linger 15 bits of seconds, TCP_KEEPCNT 7 bits.
MOST_SECONDS = (2**31 - 1) / 1000
_ON_LOSS: tuple[OnLoss, ...] = ("close", "release", "keep")
# What a look at 100,000 descriptors takes is of that order.
LEAST_SWEEP = 0.1
MOST_WHOLE_SECONDS = 32767
MOST_PROBES = 127


class CloseMode(Value):
    """What `Policy(close=...)` takes: `Graceful`, `Drain`, `Linger` or `Abort`."""

    __slots__ = ()


class Graceful(CloseMode):
    """FIN: everything that `send` accepted is delivered, and `close` does not block.

    shutdown(2) with SHUT_RDWR, then unread input is taken out of the receive buffer, then close(2).
    The standard library's `close` leaves unread input in place, for which the kernel sends RST and
    throws away what it had not delivered yet (RFC 1122, 4.2.2.13). Input that arrives after the
    close still has that effect: where a peer goes on talking, use `Drain`.
    """

    __slots__ = ()


class Drain(CloseMode):
    """FIN, then read and drop until the peer closes too; at the timeout, abort.

    The "lingering close" of HTTP servers: SHUT_WR, recv(2) until end of file, close(2). It blocks
    for up to *timeout* seconds, whatever the socket's own timeout is. A peer that has not closed by
    then gets a RST.

    Raises ValueError for a timeout that is negative, NaN, or more than 24 days.
    """

    __slots__ = ("timeout",)
    timeout: float

    def __init__(self, timeout: float = 5.0) -> None:
        self._set(timeout=seconds_in("Drain(timeout)", timeout))


class Linger(CloseMode):
    """SO_LINGER(1, seconds): FIN, and the kernel blocks `close` until the peer's kernel has
    acknowledged everything, or for *seconds*. After that it goes on trying in the background.

    The seconds are whole ones, 1 to 32767. It blocks also where the socket is non-blocking, so it
    is not for event loops. Raises ValueError for other values; `Linger(0)` is called `Abort()`.
    """

    __slots__ = ("seconds",)
    seconds: int

    def __init__(self, seconds: int = 2) -> None:
        if not isinstance(seconds, bool) and seconds == 0:
            raise ValueError("Linger(0) sends RST: write Abort() if that is what you want")
        self._set(seconds=whole_in("Linger(seconds)", seconds, MOST_WHOLE_SECONDS))


class Abort(CloseMode):
    """RST, and nothing but a RST: unsent data is dropped, and counted.

    SO_LINGER(1, 0) is set when the connection is made, so that it holds for a collected object and
    a killed process too. `close` sends the RST by connect(2) to AF_UNSPEC, which also works
    where a duplicate descriptor or a forked child holds the connection.
    """

    __slots__ = ()


class KeepAlive(Value):
    """SO_KEEPALIVE: probe a silent peer (RFC 9293, 3.8.4).

    The first probe comes after *idle* seconds of silence (TCP_KEEPIDLE), the next ones every
    *interval* seconds (TCP_KEEPINTVL); after *count* unanswered ones (TCP_KEEPCNT) the connection
    is lost with ETIMEDOUT. Whole seconds, 1 to 32767, and 1 to 127 probes: others are a ValueError.
    Where `Policy(user_timeout)` is set too, it takes the place of *count* (tcp(7)).
    """

    __slots__ = ("idle", "interval", "count")
    idle: int
    interval: int
    count: int

    def __init__(self, idle: int = 60, interval: int = 10, count: int = 3) -> None:
        self._set(
            idle=whole_in("KeepAlive(idle)", idle, MOST_WHOLE_SECONDS),
            interval=whole_in("KeepAlive(interval)", interval, MOST_WHOLE_SECONDS),
            count=whole_in("KeepAlive(count)", count, MOST_PROBES),
        )


class Policy(Value):
    """One choice for the whole life of a connection. Frozen; share it freely.

    close: how a connection ends: `Graceful()`, `Drain()`, `Linger()` or `Abort()`.
    on_loss: what the call that notices the loss does.
        "close": shutdown(2) and close(2). Input that was not read is dropped, and counted.
        "release": ends the connection; the descriptor and the unread bytes stay with their owner,
            for whom it behaves as a plain socket whose peer has closed. For sockets in an event
            loop (selectors, asyncio, uvloop), which must not lose their descriptor.
        "keep": nothing; the loss is only recorded. For protocols that go on sending after the peer
            has half-closed, which looks the same as a peer that has closed.
    watch: also notice a FIN or RST while nobody reads. It takes epoll(7), so Linux, and a thread,
        of which Python 3.12 and later warn when the process forks.
    grace: seconds an owner has to react to a FIN before the watcher ends the connection for it.
    reuse_address: SO_REUSEADDR. None: on exactly when a local port is fixed by `bind`.
    keepalive: a `KeepAlive`, or None to leave the option alone.
    user_timeout: seconds that sent data may stay unacknowledged (TCP_USER_TIMEOUT, RFC 5482), for a
        peer that vanished without a FIN. None leaves the option alone.
    nodelay: TCP_NODELAY. None leaves the option alone.

    Seconds go up to 24 days. Raises ValueError for a value out of range and TypeError for one of
    the wrong type. For one that differs: `copy.replace(policy, grace=0)`, from Python 3.13 on.
    """

    __slots__ = (
        "close",
        "on_loss",
        "watch",
        "grace",
        "reuse_address",
        "keepalive",
        "user_timeout",
        "nodelay",
    )
    close: CloseMode
    on_loss: OnLoss
    watch: bool
    grace: float
    reuse_address: bool | None
    keepalive: KeepAlive | None
    user_timeout: float | None
    nodelay: bool | None

    def __init__(
        self,
        close: CloseMode = Graceful(),  # noqa: B008 - it is frozen
        on_loss: OnLoss = "close",
        watch: bool = True,
        grace: float = 1.0,
        reuse_address: bool | None = None,
        keepalive: KeepAlive | None = None,
        user_timeout: float | None = None,
        nodelay: bool | None = None,
    ) -> None:
        if not isinstance(close, (Graceful, Drain, Linger, Abort)):
            raise TypeError(
                "Policy(close) takes Graceful(), Drain(), Linger() or Abort(), "
                f"an instance: not {said(close)}"
            )
        if not isinstance(on_loss, str) or on_loss not in _ON_LOSS:
            raise ValueError(
                f'Policy(on_loss) takes "close", "release" or "keep": not {said(on_loss)}'
            )
        if not isinstance(watch, bool):
            raise TypeError(f"Policy(watch) takes True or False: not {said(watch)}")
        if keepalive is not None and not isinstance(keepalive, KeepAlive):
            raise TypeError(
                f"Policy(keepalive) takes KeepAlive(...) or None: not {said(keepalive)}"
            )
        self._set(
            close=close,
            on_loss=_ON_LOSS[_ON_LOSS.index(on_loss)],
            watch=watch,
            grace=seconds_in("Policy(grace)", grace),
            reuse_address=_flag("Policy(reuse_address)", reuse_address),
            keepalive=keepalive,
            user_timeout=_user_timeout(user_timeout),
            nodelay=_flag("Policy(nodelay)", nodelay),
        )


def mode_by_linger(mode: CloseMode, on: bool, seconds: int) -> CloseMode:
    """The close mode of somebody who had *mode* and sets SO_LINGER by hand."""
    if not on:
        return Graceful() if isinstance(mode, (Abort, Linger)) else mode
    if seconds == 0:
        return Abort()
    return Linger(seconds if 0 < seconds < MOST_WHOLE_SECONDS else MOST_WHOLE_SECONDS)


def mode_within(mode: CloseMode, seconds: float) -> CloseMode:
    """The close mode of somebody who had *mode*, and has no more than *seconds*."""
    if isinstance(mode, Drain):
        return Drain(min(mode.timeout, max(seconds, 0.0)))
    # The kernel goes on in the background either way.
    return Graceful() if isinstance(mode, Linger) and mode.seconds > seconds else mode


def seconds_of(mode: CloseMode) -> float:
    """How long a close by this mode may wait."""
    if isinstance(mode, Drain):
        return mode.timeout
    return mode.seconds if isinstance(mode, Linger) else 0.0


def policy_or_default(policy: Policy | None) -> Policy:
    """What a parameter `policy` means. Raises TypeError for what is no policy."""
    if policy is None:
        return DEFAULT
    given: object = policy
    if not isinstance(given, Policy):
        example = f"Policy(close={given!r})" if isinstance(given, CloseMode) else "Policy()"
        raise TypeError(
            f"policy takes a safesock.Policy or None, such as {example}: not {said(given)}"
        )
    return policy


def seconds_in(name: str, value: float) -> float:
    """*value*, the argument called *name*, if it is a number of seconds that the system takes."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} takes a number of seconds: not {said(value)}")
    value = _exactly(value)
    if not 0 <= value <= MOST_SECONDS:
        raise ValueError(f"{name} takes seconds from 0 to {MOST_SECONDS:.0f}: not {said(value)}")
    return value


def positive(name: str, value: float) -> float:
    """*value*, the argument called *name*, if it is a number of seconds above 0."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and not _exactly(value) > 0:
        raise ValueError(f"{name} takes seconds above 0: not {said(value)}")
    return seconds_in(name, value)


def sweep_in(name: str, value: float) -> float:
    """*value*, the argument called *name*, if it is a number of seconds between which sweeps do not
    take much of a CPU."""
    seconds = positive(name, value)
    if seconds < LEAST_SWEEP:
        raise ValueError(f"{name} takes at least {LEAST_SWEEP} seconds: not {said(value)}")
    return seconds


def whole_in(name: str, value: float, most: int) -> int:
    """*value*, the argument called *name*, if it is a whole number from 1 to *most*."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} takes a whole number: not {said(value)}")
    value = _exactly(value)
    if not 1 <= value <= most or value != int(value):
        raise ValueError(f"{name} takes a whole number from 1 to {most}: not {said(value)}")
    return int(value)


def _exactly(value: float) -> float:
    """The number itself, of one that is more than that: a member of an enum, say, is not written as
    a number is."""
    return int.__index__(value) if isinstance(value, int) else float.__float__(value)


def _user_timeout(value: float | None) -> float | None:
    if value is None:
        return None
    seconds = seconds_in("Policy(user_timeout)", value)
    if seconds < 0.001:
        raise ValueError(
            "Policy(user_timeout) takes at least 0.001 seconds, the kernel's resolution, or None "
            f"to leave it alone: not {said(value)}"
        )
    return seconds


def _flag(name: str, value: bool | None) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} takes True, False or None: not {said(value)}")
    return value


DEFAULT = Policy()
# Other people's clients keep the descriptor's number, and what is unread, whatever becomes of it.
FOR_CLIENTS = Policy(on_loss="release")
