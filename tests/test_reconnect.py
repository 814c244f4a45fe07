"""`Reconnect`, and how a `Connector` carries it out: whom it asks, and where it stops."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
import pickle
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import kernel
import pytest
import tenacity
from kernel import wait_until
from peer import EOF, TIMEOUT, Peer, PeerEnd

import safesock
from safesock import Connector, Policy, Reconnect, ReconnectError, SafeSocket

NO_WAIT = tenacity.wait_none()
FOREVER = 1000.0  # Longer than any test.

# What takes seconds, what takes a whole number, what takes a strategy.
SECONDS: dict[str, Callable[[Any], Reconnect]] = {
    "Reconnect(deadline)": lambda value: Reconnect(deadline=value),
    "Reconnect(stable_after)": lambda value: Reconnect(stable_after=value),
}
WHOLE: dict[str, Callable[[Any], Reconnect]] = {
    "Reconnect(attempts)": lambda value: Reconnect(attempts=value),
}
STRATEGIES: dict[str, Callable[[Any], Reconnect]] = {
    "Reconnect(wait)": lambda value: Reconnect(wait=value),
    "Reconnect(retry)": lambda value: Reconnect(retry=value),
}


# The choice --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECONDS | WHOLE)
@pytest.mark.parametrize(
    "bad", [0, 0.0, -0.0, -1, -0.5, math.nan, math.inf, -math.inf, 1e300, 10**400], ids=repr
)
def test_what_is_unbounded_or_nothing_is_refused(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=r"takes .*(above 0|from 0 to|from 1 to)") as refused:
        (SECONDS | WHOLE)[name](bad)
    assert name in str(refused.value)
    assert repr(bad) in str(refused.value)


@pytest.mark.parametrize("name", SECONDS | WHOLE)
@pytest.mark.parametrize("bad", [None, True, False, "8", b"8", 1j, [8], int], ids=repr)
def test_what_is_no_number_is_refused(name: str, bad: object) -> None:
    with pytest.raises(TypeError, match=r"takes a (whole )?number") as refused:
        (SECONDS | WHOLE)[name](bad)
    assert name in str(refused.value)
    assert repr(bad) in str(refused.value)


@pytest.mark.parametrize("bad", [0.5, 7.5, 2**31])
def test_attempts_are_counted_in_whole_numbers(bad: float) -> None:
    with pytest.raises(ValueError, match=r"Reconnect\(attempts\) takes a whole number from 1 to"):
        Reconnect(attempts=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(
    "bad",
    [None, 0, 1.5, "wait", [], tenacity.wait_fixed, tenacity.retry_if_exception_type, OSError],
    ids=repr,
)
def test_what_is_no_strategy_is_refused_with_an_example(name: str, bad: object) -> None:
    # A class is callable, and it would wait, or retry, for ever.
    with pytest.raises(TypeError, match=r"takes a tenacity strategy such as \w+\(\w+\)") as refused:
        STRATEGIES[name](bad)
    assert name in str(refused.value)
    assert repr(bad) in str(refused.value)


@pytest.mark.parametrize(
    "good",
    [
        lambda: Reconnect(1, 0.001, stable_after=0.001),
        lambda: Reconnect(2**31 - 1, 86400, stable_after=86400),
        lambda: Reconnect(wait=tenacity.wait_fixed(1) + tenacity.wait_random(0, 2)),
        lambda: Reconnect(wait=tenacity.wait_chain(tenacity.wait_none(), tenacity.wait_fixed(3))),
        lambda: Reconnect(wait=lambda _: 0.5, retry=lambda _: True),
        lambda: Reconnect(retry=tenacity.retry_if_exception_type(OSError)),
        lambda: Reconnect(retry=tenacity.retry_never),
    ],
)
def test_the_limits_and_all_kinds_of_strategies_are_accepted(good: Callable[[], object]) -> None:
    good()


def test_the_defaults_are_those_of_the_contract() -> None:
    choice = Reconnect()
    assert (choice.attempts, choice.deadline, choice.stable_after) == (8, 60.0, 5.0)
    assert isinstance(choice.wait, tenacity.wait_random_exponential)
    assert isinstance(choice.retry, tenacity.retry_base)


WAIT, RETRY = tenacity.wait_fixed(2), tenacity.retry_if_exception_type(OSError)
VALUES = [
    Reconnect(),
    Reconnect(9),
    Reconnect(deadline=61),
    Reconnect(wait=WAIT),
    Reconnect(retry=RETRY),
    Reconnect(stable_after=6),
    Reconnect(9, 61, WAIT, RETRY, 6),
]
each_value = pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))


@each_value
def test_it_is_frozen(value: Reconnect) -> None:
    for name in ("attempts", "deadline", "wait", "retry", "stable_after", "anything"):
        before = repr(value)
        with pytest.raises(AttributeError, match="never changes"):
            setattr(value, name, 1)
        with pytest.raises(AttributeError, match="never changes"):
            delattr(value, name)
        assert repr(value) == before


@each_value
def test_it_equals_its_like_and_nothing_else(value: Reconnect) -> None:
    same = Reconnect(value.attempts, value.deadline, value.wait, value.retry, value.stable_after)
    assert value == same == copy.copy(value)
    assert hash(value) == hash(same)
    assert [other for other in VALUES if other == value] == [value]
    assert value != 8


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]
)
def test_the_defaults_are_themselves_when_copied_and_pickled(
    duplicate: Callable[[Reconnect], Reconnect],
) -> None:
    again = duplicate(Reconnect(attempts=3))
    assert again == Reconnect(attempts=3)
    assert hash(again) == hash(Reconnect(attempts=3))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_is_pickled_with_the_user_s_strategies(protocol: int) -> None:
    again = pickle.loads(pickle.dumps(Reconnect(9, 61, WAIT, RETRY, 6), protocol))
    assert type(again) is Reconnect
    assert (again.attempts, again.deadline, again.stable_after) == (9, 61, 6)
    assert again.wait(state_at(1)) == 2
    assert again.retry(state_at(1, OSError()))
    assert not again.retry(state_at(1, ValueError()))


def test_repr_shows_every_choice() -> None:
    assert repr(Reconnect(9, 61, WAIT, RETRY, 6)) == (
        f"Reconnect(attempts=9, deadline=61, wait={WAIT!r}, retry={RETRY!r}, stable_after=6)"
    )


@pytest.mark.parametrize("name", ["attempts", "deadline", "wait", "retry", "stable_after"])
def test_every_choice_is_documented(name: str) -> None:
    assert f"\n{name}: " in (inspect.getdoc(Reconnect) or "")


# The defaults ------------------------------------------------------------------------------------


def state_at(attempt: int, error: BaseException | None = None) -> tenacity.RetryCallState:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempt
    if error is not None:
        state.set_exception((type(error), error, None))
    return state


@pytest.fixture
def _seeded() -> Iterator[None]:
    before = random.getstate()
    random.seed(20240229)
    yield
    random.setstate(before)


def documented_windows() -> list[int]:
    """The longest waits that the docstring names, the last of which stays."""
    words = " ".join((Reconnect.__doc__ or "").split())
    found = re.search(r"a random time from 0 to ([\d, ]+), and then (\d+) seconds", words)
    assert found
    return [int(window) for window in (*found[1].split(", "), found[2])]


WINDOWS = documented_windows()


def test_default_backoff_doubles_up_to_its_cap() -> None:
    *growing, cap = WINDOWS
    assert len(growing) >= 3
    assert all(after == 2 * before for before, after in itertools.pairwise(growing))
    assert growing[-1] < cap <= 2 * growing[-1]


@pytest.mark.usefixtures("_seeded")
@pytest.mark.parametrize(
    ("attempt", "window"),
    [*enumerate(WINDOWS, 1), *((attempt, WINDOWS[-1]) for attempt in (8, 50, 5000))],
)
def test_default_backoff_has_full_jitter_also_at_its_cap(attempt: int, window: int) -> None:
    wait = Reconnect().wait
    drawn = [wait(state_at(attempt)) for _ in range(4000)]
    # All over the window, as likely here as there: with equal jitter the first half is empty, and
    # with a jitter that is added to the cap the most are at one end.
    tenths = [0] * 10
    for seconds in drawn:
        assert 0 <= seconds <= window
        tenths[min(int(seconds / window * 10), 9)] += 1
    assert min(tenths) > 300
    assert max(tenths) < 500


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (socket.gaierror(), True),
        (ValueError(), True),
        (safesock.LocalPortBusyError(98, "", "bind", ("", 1), ("", 2)), True),
        (ssl.SSLError(), True),
        (ssl.SSLCertVerificationError(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_default_retries_all_but_a_certificate_that_does_not_verify(
    error: BaseException, again: bool
) -> None:
    assert Reconnect().retry(state_at(1, error)) is again


# The loop ----------------------------------------------------------------------------------------


@pytest.fixture
def refusing() -> Iterator[tuple[str, int]]:
    """An address whose port is taken, so that it stays refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()


@contextlib.contextmanager
def connecting(
    address: tuple[str, int],
    on_connect: Callable[[SafeSocket], object] | None = None,
    **choices: Any,
) -> Iterator[Connector]:
    """A connector that fails, and does not hang, where it waits for too long."""
    choice = Reconnect(**dict[str, Any](wait=NO_WAIT, stable_after=FOREVER) | choices)
    policy = Policy(watch=False)
    connector = Connector(address, on_connect=on_connect, reconnect=choice, policy=policy)
    timer = threading.Timer(TIMEOUT, connector.close)
    timer.start()
    try:
        with connector:
            yield connector
            assert timer.is_alive()
    finally:
        timer.cancel()
        timer.join()


def failure(connector: Connector) -> ReconnectError:
    with pytest.raises(ReconnectError) as caught:
        connected(connector).close()
    return caught.value


def connected(connector: Connector) -> SafeSocket:
    try:
        return connector.connect()
    except (KeyboardInterrupt, SystemExit) as error:  # They would end the tests.
        raise AssertionError(f"{error!r} passes through, and that once") from error


def connect_and_leave(connector: Connector, times: int = 1) -> None:
    for _ in range(times):
        connected(connector).close()


class Strategy:
    """One that notes what it is asked."""

    def __init__(self, *answers: Any) -> None:
        """The last answer is given ever after."""
        self.answers = list(answers)
        self.states: list[tenacity.RetryCallState] = []
        self.numbers: list[int] = []
        self.errors: list[BaseException | None] = []

    def __call__(self, state: tenacity.RetryCallState) -> Any:
        self.states.append(state)
        self.numbers.append(state.attempt_number)
        self.errors.append(state.outcome.exception() if state.outcome else None)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Hook:
    """An on_connect that does, connection by connection, what it was told."""

    def __init__(self, *acts: Callable[[SafeSocket], object] | BaseException | None) -> None:
        self.acts = list(acts)
        self.seen: list[tuple[str, int]] = []

    def __call__(self, sock: SafeSocket) -> None:
        self.seen.append(sock.getsockname())
        act = self.acts.pop(0) if self.acts else None
        if isinstance(act, BaseException):
            raise act
        if act is not None:
            act(sock)


def accept_and_drop(connector: Connector, peer: Peer, drop: str = "fin") -> None:
    sock = connector.connect()
    getattr(peer.accept(), drop)()
    wait_until(lambda: kernel.state_of(sock) != "ESTABLISHED")
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""
    assert sock.loss is not None


def test_the_loop_is_tenacity_s(refusing: tuple[str, int]) -> None:
    wait, retry = Strategy(0.0), Strategy(True)
    with connecting(refusing, attempts=2, wait=wait, retry=retry) as connector:
        error = failure(connector)
    for state in wait.states + retry.states:
        assert type(state) is tenacity.RetryCallState
        assert type(state.retry_object) is tenacity.Retrying
        assert state.outcome is not None
        assert state.outcome.failed
    # Of every attempt it is asked whether it is worth another, and how long before that.
    assert retry.errors == wait.errors == error.attempts
    assert retry.numbers == wait.numbers == [1, 2]


def test_the_loop_counts_the_time_of_the_first_attempt(peer: Peer) -> None:
    wait = Strategy(0.0)
    begun: list[float] = []

    def fails(_: SafeSocket) -> None:
        begun.append(time.monotonic())
        raise ValueError

    with connecting(peer.address, fails, attempts=2, wait=wait) as connector:
        failure(connector)
    assert [state.start_time < begun[0] for state in wait.states] == [True, True]


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_a_refusing_peer_gets_the_attempts_and_no_more(
    refusing: tuple[str, int], attempts: int
) -> None:
    with connecting(refusing, attempts=attempts) as connector:
        error = failure(connector)
    assert [type(one) for one in error.attempts] == [ConnectionRefusedError] * attempts
    assert len(set(map(id, error.attempts))) == attempts
    assert error.__cause__ is error.attempts[-1]
    assert error.address == refusing
    assert isinstance(error, ConnectionError)
    assert f"after {attempts} attempt" in str(error)


def test_one_attempt_is_enough_where_it_succeeds(peer: Peer) -> None:
    with connecting(peer.address, attempts=1) as connector:
        sock = connector.connect()
        peer.accept().say(b"x")
        assert sock.recv(1) == b"x"


def test_a_budget_that_is_used_up_stays_so_until_confirm(peer: Peer) -> None:
    hook = Hook(*(OSError(str(number)) for number in range(4)))
    wait = Strategy(0.0)
    with connecting(peer.address, hook, attempts=2, wait=wait) as connector:
        first = failure(connector)
        peer.accept()
        peer.accept()
        for _ in range(3):
            again = failure(connector)
            assert again.attempts == first.attempts
            assert "confirm()" in str(again)
        assert peer.nobody_waits()
        connector.confirm()
        wait.numbers.clear()
        assert [str(one) for one in failure(connector).attempts] == ["2", "3"]
        assert wait.numbers == [1, 2]
        connector.confirm()
        peer.accept()
        peer.accept()
        with connector.connect() as sock:
            peer.accept().fin()
            assert sock.recv(1) == b""
        assert wait.numbers == [1, 2]


def test_attempts_are_numbered_on_over_the_calls_of_one_outage(peer: Peer) -> None:
    wait, retry = Strategy(0.0), Strategy(True)
    hook = Hook(OSError("1"), None, OSError("3"), OSError("4"), None, OSError("6"), None)
    with connecting(peer.address, hook, attempts=50, wait=wait, retry=retry) as connector:
        # Each of the calls begins with a wait for what came of the connection before.
        connect_and_leave(connector, 3)
        assert wait.numbers == [1, 2, 3, 4, 5, 6]
        assert retry.numbers == [1, 3, 4, 6]
        connector.confirm()
        hook.acts += [OSError("1"), OSError("2"), None, None]
        connect_and_leave(connector)
        assert wait.numbers[6:] == [1, 2]
        connect_and_leave(connector)
        assert wait.numbers[8:] == [3]


@pytest.mark.parametrize("confirms_in", ["the hook", "the body"])
def test_after_confirm_there_is_no_wait_and_all_begins_anew(peer: Peer, confirms_in: str) -> None:
    wait = Strategy(0.0)

    def hook(_: SafeSocket) -> None:
        if confirms_in == "the hook":
            connector.confirm()

    with connecting(peer.address, hook, attempts=2, wait=wait) as connector:
        for _ in range(5):
            with connector.connect():
                if confirms_in == "the body":
                    connector.confirm()
    assert wait.numbers == []


def test_confirm_in_a_hook_that_then_fails_is_void(peer: Peer) -> None:
    def hook(_: SafeSocket) -> None:
        connector.confirm()
        raise OSError("refused after all")

    with connecting(peer.address, hook, attempts=3) as connector:
        assert len(failure(connector).attempts) == 3
        assert len(failure(connector).attempts) == 3


def test_a_stable_connection_begins_anew(peer: Peer) -> None:
    wait, stable = Strategy(0.0), 0.05
    hook = Hook(OSError("1"), OSError("2"))
    choices: dict[str, Any] = {"attempts": 3, "wait": wait, "stable_after": stable}
    with connecting(peer.address, hook, **choices) as connector:
        for _ in range(3):
            with connector.connect():
                made = time.monotonic()
                wait_until(lambda made=made: time.monotonic() - made > stable)  # type: ignore[misc]
        assert wait.numbers == [1, 2]
        hook.acts = [OSError("1"), OSError("2"), OSError("3")]
        assert [str(one) for one in failure(connector).attempts] == ["1", "2", "3"]
    assert wait.numbers == [1, 2, 1, 2, 3]


def test_a_connection_that_was_dead_all_the_time_was_not_stable(peer: Peer) -> None:
    stable = 0.5
    for _ in range(20):
        with connecting(peer.address, attempts=1, stable_after=stable) as connector:
            begin = time.monotonic()
            with connector.connect() as sock:
                peer.accept().fin()
                wait_until(lambda sock=sock: kernel.state_of(sock) == "CLOSE_WAIT")  # type: ignore[misc]
                known = time.monotonic()
                # The program has other things to do, and nobody watches.
                wait_until(lambda: time.monotonic() - known > stable)  # noqa: B023
                assert sock.recv(1) == b""
            if known - begin < stable / 2:  # Else the machine was too busy to say.
                assert len(failure(connector).attempts) == 1
                return
    raise AssertionError("the FIN never came soon enough")


# The user's strategies ---------------------------------------------------------------------------


def test_the_user_s_retry_decides(peer: Peer) -> None:
    retry = tenacity.retry_if_exception_type(BlockingIOError)
    errors = [BlockingIOError("busy"), BlockingIOError("busy"), PermissionError("no")]
    hook = Hook(*errors)
    with connecting(peer.address, hook, retry=retry) as connector:
        error = failure(connector)
        assert error.attempts == errors
        assert error.__cause__ is errors[-1]
        assert "not retried" in str(error)
        # Who connects again wants it to be tried again.
        connect_and_leave(connector)
    assert len(hook.seen) == 4


def test_retry_may_decide_by_the_number_of_the_attempt(refusing: tuple[str, int]) -> None:
    with connecting(refusing, retry=lambda state: state.attempt_number < 4) as connector:
        assert len(failure(connector).attempts) == 4


def test_try_again_is_tried_again_whatever_retry_says(peer: Peer) -> None:
    wait, retry = Strategy(0.0), Strategy(False)
    hook = Hook(tenacity.TryAgain(), tenacity.TryAgain())
    with connecting(peer.address, hook, attempts=3, wait=wait, retry=retry) as connector:
        connect_and_leave(connector)
    assert len(hook.seen) == 3
    assert retry.numbers == []
    assert wait.numbers == [1, 2]


def test_try_again_is_bounded(peer: Peer) -> None:
    hook = Hook(*(tenacity.TryAgain() for _ in range(9)))
    with connecting(peer.address, hook, attempts=3) as connector:
        error = failure(connector)
    assert [type(one) for one in error.attempts] == [tenacity.TryAgain] * 3
    assert len(hook.seen) == 3


def test_try_again_is_numbered_on_in_the_next_call(peer: Peer) -> None:
    wait = Strategy(0.0, 2 * FOREVER, 0.0)
    hook = Hook(OSError("1"), tenacity.TryAgain())
    with connecting(peer.address, hook, wait=wait) as connector:
        failure(connector)
        connect_and_leave(connector)
    assert wait.numbers == [1, 2, 2]


@pytest.mark.parametrize("seconds", [-1, -0.5, -math.inf, 0, -0.0])
def test_a_wait_of_less_than_nothing_is_none(refusing: tuple[str, int], seconds: float) -> None:
    wait = Strategy(seconds)
    with connecting(refusing, attempts=3, wait=wait) as connector:
        assert len(failure(connector).attempts) == 3
    assert wait.states[-1].idle_for == 0


def test_a_wait_of_less_than_nothing_does_not_win_back_time(peer: Peer) -> None:
    def hook(sock: SafeSocket) -> None:
        wait_until(lambda: sock.fileno() < 0, "the deadline has ended the connection")

    with connecting(peer.address, hook, deadline=0.2, wait=Strategy(-FOREVER)) as connector:
        assert len(failure(connector).attempts) == 1


@pytest.mark.parametrize("seconds", [math.inf, math.nan, FOREVER, 60.0])
def test_a_wait_that_does_not_fit_into_the_deadline_ends_it_at_once(
    refusing: tuple[str, int], seconds: float
) -> None:
    with connecting(refusing, wait=Strategy(seconds), deadline=60.0) as connector:
        error = failure(connector)
    assert len(error.attempts) == 1
    assert "deadline of 60 s" in str(error)


def test_a_wait_that_fits_into_the_time_that_is_left_is_waited_for(
    refusing: tuple[str, int],
) -> None:
    wait, begin = Strategy(0.05), time.monotonic()
    with connecting(refusing, attempts=3, wait=wait) as connector:
        assert len(failure(connector).attempts) == 3
    assert time.monotonic() - begin >= 0.1


def test_waits_do_not_go_past_the_deadline(refusing: tuple[str, int]) -> None:
    deadline, pause = 0.3, 0.05
    with connecting(refusing, attempts=1000, deadline=deadline, wait=Strategy(pause)) as connector:
        error = failure(connector)
        # The first needs no wait; however slow the machine is, no more than these fit.
        assert len(error.attempts) <= 1 + deadline / pause
        assert "deadline of 0.3 s" in str(error)
        assert len(failure(connector).attempts) == len(error.attempts)


def test_the_deadline_is_for_all_calls_of_an_outage(peer: Peer) -> None:
    # Each call waits for 0.1 s, which is in no single one too much.
    wait = Strategy(0.1)
    with connecting(peer.address, attempts=1000, deadline=0.35, wait=wait) as connector:
        connect_and_leave(connector)
        with pytest.raises(ReconnectError, match="deadline") as caught:
            connect_and_leave(connector, 20)
        assert len(caught.value.attempts) == len(wait.numbers) <= 4


def test_time_with_a_connection_does_not_count(peer: Peer) -> None:
    deadline = 0.5
    with connecting(peer.address, deadline=deadline) as connector:
        with connector.connect():
            made = time.monotonic()
            wait_until(lambda: time.monotonic() - made > deadline)
        with connector.connect() as sock:
            assert kernel.state_of(sock) == "ESTABLISHED"


def test_the_deadline_ends_a_connect_that_nobody_answers() -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        stack.enter_context(socket.create_connection(full.getsockname(), TIMEOUT))
        before, begin = kernel.descriptors(), time.monotonic()
        with connecting(full.getsockname(), deadline=0.3) as connector:
            error = failure(connector)
            assert time.monotonic() - begin >= 0.3
        assert [type(one) for one in error.attempts] == [TimeoutError]
        assert kernel.left_open(before) == []
        states = kernel.connections()
        assert "SYN_SENT" not in {states[ends] for ends in states if ends[1] == full.getsockname()}


def test_the_deadline_ends_a_hook_that_waits(peer: Peer) -> None:
    begin = time.monotonic()
    with connecting(peer.address, lambda sock: sock.recv(1), deadline=0.3) as connector:
        error = failure(connector)
        assert time.monotonic() - begin >= 0.3
        assert [type(one) for one in error.attempts] == [TimeoutError]
        assert peer.accept().read_to_end() == (b"", EOF)


# Every attempt -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "kind"), [("fin", ConnectionError), ("rst", ConnectionResetError)]
)
def test_a_peer_that_accepts_and_drops_uses_up_the_attempts(
    peer: Peer, drop: str, kind: type[Exception]
) -> None:
    with connecting(peer.address, attempts=3) as connector:
        for _ in range(3):
            accept_and_drop(connector, peer, drop)
        error = failure(connector)
        assert [type(one) for one in error.attempts] == [kind] * 3
        assert error.__cause__ is error.attempts[-1]
        assert "before it was stable" in str(error.attempts[0]) or drop == "rst"
        assert peer.nobody_waits()


def close_it(sock: SafeSocket, end: PeerEnd) -> None:
    sock.close()
    assert end.read_to_end() == (b"", EOF)
    end.close()


def leave_it_open(sock: SafeSocket, end: PeerEnd) -> None:
    assert kernel.state_of(sock) == "ESTABLISHED"
    assert end


@pytest.mark.parametrize("leave", [close_it, leave_it_open])
def test_a_connection_that_its_user_ended_early_is_an_attempt_too(
    peer: Peer, leave: Callable[[SafeSocket, PeerEnd], None]
) -> None:
    with connecting(peer.address, attempts=2) as connector:
        socks = []
        for _ in range(2):
            socks.append(connector.connect())
            leave(socks[-1], peer.accept())
        error = failure(connector)
        assert [type(one) for one in error.attempts] == [ConnectionError] * 2
        assert "closed before it was stable" in str(error)
        # The one before has been closed, also where there is no other.
        assert [sock.fileno() for sock in socks] == [-1, -1]
        states = kernel.connections()
        assert not {"ESTABLISHED", "CLOSE_WAIT"} & {
            states[ends] for ends in states if ends[1] == peer.address
        }


def test_attempts_of_all_kinds_are_told_in_their_order(peer: Peer) -> None:
    failed = [ValueError("1"), OSError("3"), OSError("4")]
    hook = Hook(failed[0], None, *failed[1:], None)
    with connecting(peer.address, hook, attempts=6) as connector:
        for drop in ("fin", "rst"):
            sock = connector.connect()
            while len(peer.ends) < len(hook.seen):
                peer.accept()
            getattr(peer.ends[-1], drop)()
            wait_until(lambda sock=sock: kernel.state_of(sock) != "ESTABLISHED")  # type: ignore[misc]
            with contextlib.suppress(ConnectionResetError):
                sock.recv(1)
        peer.listener.close()
        attempts = failure(connector).attempts
    assert attempts[0] is failed[0]
    assert type(attempts[1]) is ConnectionError
    assert attempts[2:4] == failed[1:]
    assert [type(one) for one in attempts[4:]] == [ConnectionResetError, ConnectionRefusedError]


def test_what_was_caught_does_not_grow_afterwards(peer: Peer) -> None:
    hook = Hook(*(OSError(str(number)) for number in range(3)))
    with connecting(peer.address, hook, attempts=3) as connector:
        error = failure(connector)
        connector.confirm()
        connect_and_leave(connector)
    assert [str(one) for one in error.attempts] == ["0", "1", "2"]


# What is no Exception ----------------------------------------------------------------------------


INTERRUPTS = [KeyboardInterrupt, SystemExit]
each_interrupt = pytest.mark.parametrize("kind", INTERRUPTS)


@each_interrupt
def test_an_interrupt_passes_through_and_leaves_nothing(
    peer: Peer, kind: type[BaseException]
) -> None:
    interrupt, retry = kind(), Strategy(True)
    before = kernel.descriptors()
    with connecting(peer.address, Hook(interrupt), retry=retry) as connector:
        with pytest.raises(kind) as caught:
            connector.connect()
        assert caught.value is interrupt
        assert kernel.left_open(before) == []
        assert peer.accept().read_to_end() == (b"", EOF)
        assert peer.nobody_waits()
    assert retry.states == []


@each_interrupt
def test_after_an_interrupt_the_next_call_tries_again(
    peer: Peer, kind: type[BaseException]
) -> None:
    hook = Hook(OSError("1"), kind(), OSError("3"))
    with connecting(peer.address, hook, attempts=4) as connector:
        with pytest.raises(kind):
            connector.connect()
        with connected(connector) as sock:
            assert kernel.state_of(sock) == "ESTABLISHED"
        assert len(hook.seen) == 4
        # It was an attempt. It has been told, and is not told again.
        attempts = failure(connector).attempts
        types = [type(one) for one in attempts]
        assert types == [OSError, ConnectionError, OSError, ConnectionError]
        assert kind.__name__ in str(attempts[1])


@each_interrupt
def test_an_interrupt_passes_through_also_after_the_deadline(
    peer: Peer, kind: type[BaseException]
) -> None:
    def hook(sock: SafeSocket) -> None:
        wait_until(lambda: sock.fileno() < 0, "the deadline has ended the connection")
        raise kind

    before = kernel.descriptors()
    with connecting(peer.address, hook, deadline=0.2) as connector:
        with pytest.raises(kind):
            connector.connect()
        assert kernel.left_open(before) == []


def test_an_interrupt_in_a_strategy_passes_through(refusing: tuple[str, int]) -> None:
    def wait(_: tenacity.RetryCallState) -> float:
        raise KeyboardInterrupt

    before = kernel.descriptors()
    with connecting(refusing, wait=wait) as connector:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                connector.connect()
        assert kernel.left_open(before) == []
