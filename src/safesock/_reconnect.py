"""How a connection comes back: `Reconnect`, the user's choice, and `Recovery`, its execution.

The loop is tenacity's. What it asks (is this worth another attempt, how long is the wait, is it
over) is answered here, for both of its kinds, `Retrying` and `AsyncRetrying`; the numbers are kept
by a `Budget`, as an outage may go on over many connections that do not last.
"""

from __future__ import annotations

import errno
import ssl
import time

import tenacity

from safesock import _hub
from safesock._budget import Budget
from safesock._connection import Connection
from safesock._destination import Destination
from safesock._errors import LocalPortBusyError, ReconnectError
from safesock._policy import positive, whole_in
from safesock._value import Value, said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, TypeAlias

    Wait: TypeAlias = Callable[[tenacity.RetryCallState], float]
    Retry: TypeAlias = Callable[[tenacity.RetryCallState], bool]

MOST_ATTEMPTS = 2**31 - 1


def is_hopeless(error: BaseException) -> bool:
    """Whether trying again cannot help: a certificate that does not verify."""
    return isinstance(error, ssl.SSLCertVerificationError)


class _DefaultWait(tenacity.wait_random_exponential):
    """Exponential backoff with full jitter. Pickled and copied as the one that there is."""

    def __init__(self) -> None:
        super().__init__(multiplier=2, max=30)

    def __repr__(self) -> str:
        return f"wait_random_exponential(multiplier={self.multiplier:g}, max={self.max:g})"

    def __reduce__(self) -> str:
        return "DEFAULT_WAIT"


class _DefaultRetry(tenacity.retry_if_exception):
    """Everything that is not hopeless."""

    def __init__(self) -> None:
        super().__init__(lambda error: not is_hopeless(error))

    def __repr__(self) -> str:
        return "retry_if_not_exception_type(SSLCertVerificationError)"

    def __reduce__(self) -> str:
        return "DEFAULT_RETRY"


DEFAULT_WAIT = _DefaultWait()
DEFAULT_RETRY = _DefaultRetry()


class Reconnect(Value):
    """How a `Connector` comes back, and when it gives up. Frozen; share it freely.

    attempts: how many connection attempts one outage may take, the first included.
    deadline: how many seconds of dialling. It covers name resolution, connect, TLS, `on_connect`
        and every wait of an outage together, and cuts the attempt that is under way; while there
        is a connection, it stands still. There is no wait that ends after it: where the next
        attempt would begin too late, it is over at once.
    wait: the seconds between two attempts, a tenacity wait strategy. The default is exponential
        backoff with full jitter: a random time from 0 to 2, 4, 8, 16, and then 30 seconds. Any
        function of a `tenacity.RetryCallState` will do: it may log `state.outcome.exception()`.
    retry: which failures are worth another attempt, a tenacity retry strategy. The default: all
        but a certificate that does not verify, and so a refused login in `on_connect` as well:
        tenacity.retry_if_exception_type(OSError) takes only what the network did. KeyboardInterrupt
        and the like never are.
    stable_after: seconds that a connection must have lived for the outage to be over. Only this,
        or `Connector.confirm`, gives new attempts and time, and lets the backoff start over: a
        server that accepts and drops uses them up.

    Raises ValueError for a value that is out of range or leaves it unbounded, and TypeError for one
    of the wrong type.
    """

    __module__ = "safesock"
    __slots__ = ("attempts", "deadline", "wait", "retry", "stable_after")
    attempts: int
    deadline: float
    wait: Wait
    retry: Retry
    stable_after: float

    def __init__(
        self,
        attempts: int = 8,
        deadline: float = 60.0,
        wait: Wait = DEFAULT_WAIT,
        retry: Retry = DEFAULT_RETRY,
        stable_after: float = 5.0,
    ) -> None:
        self._set(
            attempts=whole_in("Reconnect(attempts)", attempts, MOST_ATTEMPTS),
            deadline=positive("Reconnect(deadline)", deadline),
            wait=_strategy("Reconnect(wait)", wait, _KINDS[0], "wait_fixed(1)"),
            retry=_strategy(
                "Reconnect(retry)", retry, _KINDS[1], "retry_if_exception_type(OSError)"
            ),
            stable_after=positive("Reconnect(stable_after)", stable_after),
        )


_KINDS = (tenacity.wait.wait_base, tenacity.retry_base)


def _strategy(name: str, value: Any, mine: type, example: str) -> Any:
    others = (tenacity.stop.stop_base, *(kind for kind in _KINDS if kind is not mine))
    if isinstance(value, (type, *others)) or not callable(value):
        raise TypeError(f"{name} takes a tenacity strategy such as {example}: not {said(value)}")
    return value


DEFAULT = Reconnect()


class Recovery:
    """What happens to one connector between two connections that last: the state of `Reconnect`."""

    def __init__(self, choice: Reconnect | None, to: Destination) -> None:
        if choice is None:
            choice = DEFAULT
        if not isinstance(choice, Reconnect):
            raise TypeError(f"reconnect takes a safesock.Reconnect or None: not {said(choice)}")
        self._choice = choice
        self._to = to
        self._budget = Budget(choice.attempts, choice.deadline, choice.stable_after)
        self._errors: list[BaseException] = []
        # What the outage that goes on had come to: the loop begins with it, and so with a wait.
        self._carried: BaseException | None = None
        # That, or the failure of an attempt before the loop: its first attempt is to raise it.
        self._failure: BaseException | None = None
        self._since = 0.0
        self._connection: Connection | None = None
        self.closed = False

    def strategies(self) -> dict[str, Any]:
        """The arguments of `tenacity.Retrying` or `AsyncRetrying` that decide."""
        return {
            "retry": self._is_worth_it,
            "wait": self._seconds_to_wait,
            "stop": self._must_stop,
            "before_sleep": self._tell_of_retry,
            "retry_error_callback": self._give_up,
        }

    def __enter__(self) -> None:
        """While somebody waits for a connection. The one before has ended."""
        self._take_leave()
        self._carried = self._failure = self._errors[-1] if self._errors else None
        self._since = time.monotonic()
        self._budget.resume(self._since)

    def __exit__(self, *_: object) -> None:
        self._budget.suspend(time.monotonic())

    def begins(self) -> float:
        """An attempt does; gives the time, of time.monotonic, at which it is to be cut.

        Where an outage goes on, the first raises what the one before has come to, as that is to be
        waited for.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # Its traceback holds this frame: a reference cycle.
        self.refuse_if_closed()
        self._budget.tries()
        now = time.monotonic()
        return now + self._budget.left(now)

    def goes_on(self) -> bool:
        """Whether an outage does, so that there is a wait before the next attempt."""
        return self._carried is not None

    def leave_to_loop(self, error: Exception) -> None:
        """A first attempt has failed. Most do not, and are spared tenacity's loop, which takes as
        much time as all their system calls but connect(2); what is next is for the loop to say."""
        self._failure = error

    def failed(self, error: BaseException) -> None:
        """The attempt has."""
        if not isinstance(error, Exception):  # Told once, now, and not by a later ReconnectError.
            error = ConnectionError(f"interrupted by {type(error).__name__}")
        self._errors.append(error)

    def made(self, connection: Connection) -> None:
        """The attempt has led to this connection."""
        self._connection = connection
        self._to.previous = connection.number
        self._budget.made(time.monotonic())
        self._forget_what_is_over()
        for error in self._errors:
            _drop_frames(error)

    def confirm(self) -> None:
        """The connection is good."""
        self._budget.confirm()
        self._forget_what_is_over()

    def refuse_if_closed(self) -> None:
        """Raises ConnectionAbortedError when the connector has been closed."""
        if self.closed:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the connector has been closed")

    def _take_leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._budget.ended(time.monotonic() if connection.ended is None else connection.ended)
        self._forget_what_is_over()
        if self._budget.tried:
            self._errors.append(_early_end(connection))

    def _forget_what_is_over(self) -> None:
        if not self._budget.tried:
            self._errors.clear()

    def _is_worth_it(self, state: tenacity.RetryCallState) -> bool:
        error = _error_of(state)
        if not isinstance(error, Exception):
            return False
        self.refuse_if_closed()
        self._number(state)
        if error is not self._carried and not self._choice.retry(state):
            raise self._error("this is not retried") from error
        return True

    def _tell_of_retry(self, state: tenacity.RetryCallState) -> None:
        if _hub.is_heard(_hub.INFO):
            from safesock._story import retrying

            retrying(self._to, self._budget.tried, _error_of(state), state.upcoming_sleep)

    def _number(self, state: tenacity.RetryCallState) -> None:
        # tenacity counts from 1 in every call, and the outage may be older, as may the call.
        state.attempt_number = self._budget.tried
        state.start_time = self._since

    def _seconds_to_wait(self, state: tenacity.RetryCallState) -> float:
        self._number(state)  # After TryAgain it is the first to be asked.
        seconds = self._choice.wait(state)
        if not isinstance(seconds, (int, float)):
            raise TypeError(f"Reconnect(wait) gives a number of seconds: not {said(seconds)}")
        error = _error_of(state)
        # A port that is held for a known time: an attempt before then would be in vain.
        held = error.seconds_left if isinstance(error, LocalPortBusyError) else None
        return max(seconds, 0.0, held or 0.0)

    def _must_stop(self, state: tenacity.RetryCallState) -> bool:
        return not self._budget.may_try(time.monotonic(), state.upcoming_sleep)

    def _give_up(self, state: tenacity.RetryCallState) -> NoReturn:
        error = _error_of(state)
        reason = f"the deadline of {self._choice.deadline:g} s leaves no time for another"
        if self._budget.tried >= self._choice.attempts:
            reason = f"the limit is {self._choice.attempts}"
        if error is self._carried:
            reason += ", until confirm() grants a new budget"
        raise self._error(reason) from error

    def _error(self, reason: str) -> ReconnectError:
        error = ReconnectError(self._to.address, self._errors, reason)
        if _hub.is_heard(_hub.INFO):
            from safesock._story import exhausted

            exhausted(self._to, error)
        return error


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()


def _drop_frames(error: BaseException) -> None:
    """Tracebacks keep frames alive, and with them the sockets of those that called."""
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and one.__traceback__ is not None:
            one.__traceback__ = None
            chain += [one.__cause__, one.__context__]


def _early_end(connection: Connection) -> BaseException:
    """What is told of a connection that was made, and was not stable."""
    if connection.loss is None:
        return ConnectionError("the connection was closed before it was stable or confirmed")
    loss = connection.loss
    return loss.error or ConnectionError(
        f"the connection was lost after {loss.lifetime:.3f} s, before it was stable or confirmed"
    )
