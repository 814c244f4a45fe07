"""The decisions of reconnecting, in virtual time: nothing here waits."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from safesock import LocalPortBusyError, PortHolder
from safesock._budget import Budget, PortWait

# What the kernel lets go by itself, once no process has it open, and some of what it does not.
PASSING = ["FIN_WAIT1", "FIN_WAIT2", "CLOSING", "LAST_ACK", "TIME_WAIT"]
STAYING = ["LISTEN", "CLOSE", "ESTABLISHED", "CLOSE_WAIT", "SYN_SENT"]
LOOK = 0.1  # The longest time between two looks at a port.

ticks = st.integers(0, 12)
quick = settings(deadline=None, database=None, max_examples=60, stateful_step_count=30)


# The budget against all that has happened --------------------------------------------------------


class History:
    """All events with their times. What is left is worked out from the whole of it."""

    def __init__(self, stable_after: int) -> None:
        self.stable_after = stable_after
        self.events: list[tuple[str, int]] = []

    def add(self, name: str, now: int) -> None:
        self.events.append((name, now))

    def last(self, *names: str, before: int | None = None) -> tuple[str, int] | None:
        found = [event for event in self.events[:before] if event[0] in names]
        return found[-1] if found else None

    def is_dialling(self, before: int | None = None) -> bool:
        event = self.last("resume", "suspend", before=before)
        return event is not None and event[0] == "resume"

    def _ends_an_outage(self, at: int) -> bool:
        name, now = self.events[at]
        if name == "confirm":
            return not self.is_dialling(at)
        if name == "made":
            event = self.last("tries", "confirm", before=at)
            return event is not None and event[0] == "confirm"
        made = self.last("made", before=at)
        return name == "ended" and made is not None and now - made[1] >= self.stable_after

    def _begin(self) -> int:
        """Where the outage that goes on has begun: the event after which it has."""
        ends = [at for at in range(len(self.events)) if self._ends_an_outage(at)]
        return ends[-1] if ends else -1

    def tried(self) -> int:
        return sum(name == "tries" for name, _ in self.events[self._begin() + 1 :])

    def spent(self, now: int) -> int:
        begin = self._begin()
        later = self.events[begin + 1 :]
        times = [at for name, at in later if name in ("resume", "suspend")]
        if begin >= 0 and self.is_dialling(begin):
            times.insert(0, self.events[begin][1])
        if self.is_dialling():
            times.append(now)
        return sum(times[1::2]) - sum(times[::2])


class BudgetMachine(RuleBasedStateMachine):
    """Any order of events that a driver can bring about. It asks before it tries."""

    @initialize(attempts=st.integers(1, 4), deadline=st.integers(1, 60), stable=st.integers(1, 15))
    def begin(self, attempts: int, deadline: int, stable: int) -> None:
        self.budget = Budget(attempts, deadline, stable)
        self.history = History(stable)
        self.now = 0
        self.under_way = self.connected = False

    def tell(self, name: str, at: int | None = None) -> None:
        now = self.now if at is None else at
        method = getattr(self.budget, name)
        if name in ("tries", "confirm"):
            method()
        else:
            method(now)
        self.history.add(name, now)

    @rule(seconds=ticks)
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def confirm(self) -> None:
        self.tell("confirm")

    @precondition(lambda self: not self.history.is_dialling() and not self.connected)
    @rule()
    def resume(self) -> None:
        self.tell("resume")

    @precondition(lambda self: self.history.is_dialling() and not self.connected)
    @rule(pause=ticks)
    def wait_and_try(self, pause: int) -> None:
        budget, tried, spent = self.budget, self.history.tried(), self.history.spent(self.now)
        may = budget.may_try(self.now, pause)
        assert may == (tried < budget.attempts and spent + pause < budget.deadline)
        self.under_way = may
        if may:
            self.now += pause
            assert self.history.spent(self.now) < budget.deadline
            self.tell("tries")

    @precondition(lambda self: self.under_way)
    @rule(seconds=ticks, confirmed=st.booleans())
    def is_made(self, seconds: int, confirmed: bool) -> None:
        if confirmed:
            self.tell("confirm")
        self.now += seconds
        self.tell("made")
        self.tell("suspend")
        self.under_way, self.connected = False, True

    @precondition(lambda self: self.history.is_dialling())
    @rule()
    def suspend(self) -> None:
        self.tell("suspend")
        self.under_way = False

    @precondition(lambda self: self.connected)
    @rule(seconds=ticks, known_after=ticks)
    def end(self, seconds: int, known_after: int) -> None:
        self.now += seconds
        self.tell("ended")
        self.now += known_after
        self.connected = False

    @precondition(lambda self: self.connected)
    @rule(data=st.data())
    def has_ended_before(self, data: st.DataObject) -> None:
        made = self.history.last("made")
        assert made is not None
        self.tell("ended", data.draw(st.integers(made[1], self.now)))
        self.connected = False

    @invariant()
    def it_says_what_the_history_says(self) -> None:
        tried, spent = self.history.tried(), self.history.spent(self.now)
        assert self.budget.tried == tried
        assert tried <= self.budget.attempts
        assert self.budget.spent(self.now) == spent
        assert self.budget.left(self.now) == self.budget.deadline - spent


def test_budget_against_its_history() -> None:
    run_state_machine_as_test(BudgetMachine, settings=quick)


@pytest.mark.campaign
def test_budget_against_its_history_at_length() -> None:
    at_length = settings(quick, max_examples=400, stateful_step_count=60)
    run_state_machine_as_test(BudgetMachine, settings=at_length)


@quick
@given(
    st.integers(1, 6),
    st.lists(st.tuples(ticks, st.integers(0, 4), ticks, st.booleans()), min_size=1, max_size=40),
)
def test_a_peer_that_accepts_and_drops_gets_no_more_than_the_attempts(
    attempts: int, turns: list[tuple[int, int, int, bool]]
) -> None:
    budget, now, connections = Budget(attempts, 10**6, stable_after=5), 0, 0
    for dialled, lived, pause, notices_late in turns:
        budget.resume(now)
        if budget.may_try(now):
            budget.tries()
            now += dialled
            budget.made(now)
            connections += 1
        budget.suspend(now)
        now += lived
        ended = now
        if notices_late:
            now += pause
        budget.ended(ended)
    assert connections == min(attempts, len(turns))


@quick
@given(st.integers(1, 50), st.lists(st.tuples(ticks, ticks, ticks), min_size=1, max_size=40))
def test_all_dialling_and_waiting_of_an_outage_fits_into_one_deadline(
    deadline: int, turns: list[tuple[int, int, int]]
) -> None:
    # Each attempt is cut at the time that is left, as the driver does it.
    budget, now, spent = Budget(10**6, deadline, stable_after=100), 0, 0
    for pause, dialled, idle in turns:
        budget.resume(now)
        before = now
        if budget.may_try(now, pause):
            now += pause
            budget.tries()
            now += min(dialled, int(budget.left(now)))
            assert budget.left(now) >= 0
        budget.suspend(now)
        spent += now - before
        now += idle
    assert spent <= deadline
    assert budget.spent(now) == spent


# The same in examples ----------------------------------------------------------------------------


def used(tried: int = 2, spent: float = 3.0) -> Budget:
    """Of 3 attempts, 10 seconds, stable after 5; nobody waits, at the time 100."""
    budget = Budget(3, 10.0, 5.0)
    budget.resume(100.0 - spent)
    for _ in range(tried):
        budget.tries()
    budget.suspend(100.0)
    return budget


def connected(budget: Budget, now: float = 100.0) -> None:
    budget.resume(now)
    budget.tries()
    budget.made(now)
    budget.suspend(now)


def test_a_new_budget_is_whole() -> None:
    budget = Budget(3, 10.0, 5.0)
    assert (budget.tried, budget.spent(7.0), budget.left(7.0)) == (0, 0.0, 10.0)
    assert budget.may_try(7.0)


def test_the_first_attempt_counts() -> None:
    budget = Budget(1, 10.0, 5.0)
    budget.resume(0.0)
    assert budget.may_try(0.0)
    budget.tries()
    assert not budget.may_try(0.0)


@pytest.mark.parametrize(
    ("pause", "may"), [(0.0, True), (6.999, True), (7.0, False), (8.0, False), (1e9, False)]
)
def test_a_pause_must_end_before_the_deadline(pause: float, may: bool) -> None:
    budget = used(spent=3.0)
    budget.resume(200.0)
    assert budget.may_try(200.0, pause) is may


@pytest.mark.parametrize("pause", [float("nan"), float("inf")])
def test_a_pause_without_an_end_does_not_fit(pause: float) -> None:
    assert not used().may_try(100.0, pause)


def test_time_stands_still_while_nobody_waits_for_a_connection() -> None:
    budget = used(spent=3.0)
    assert budget.spent(100.0) == budget.spent(1e9) == 3.0
    budget.resume(1e9)
    assert budget.left(1e9) == 7.0
    assert budget.left(1e9 + 2) == 5.0
    assert budget.left(1e9 + 8) == -1.0


@pytest.mark.parametrize(("lived", "tried"), [(0.0, 3), (4.999, 3), (5.0, 0), (5.001, 0)])
def test_only_a_connection_that_has_lived_long_enough_refills(lived: float, tried: int) -> None:
    budget = used(tried=2, spent=3.0)
    connected(budget)
    budget.ended(100.0 + lived)
    assert budget.tried == tried
    assert budget.spent(200.0) == (0.0 if tried == 0 else 3.0)


def test_living_on_refills_nothing_before_the_end_is_known() -> None:
    budget = used(tried=2)
    connected(budget)
    assert budget.spent(1e6) == 3.0
    assert budget.tried == 3


def test_an_end_is_counted_once() -> None:
    budget = used(tried=1)
    connected(budget)
    budget.ended(101.0)
    budget.ended(1e6)  # Of nothing: there was no connection since.
    assert budget.tried == 2


def test_confirm_refills_a_used_up_budget() -> None:
    budget = used(tried=3, spent=10.0)
    budget.resume(200.0)
    assert not budget.may_try(200.0)
    budget.suspend(200.0)
    budget.confirm()
    budget.resume(300.0)
    assert budget.may_try(300.0, 9.999)
    assert (budget.tried, budget.left(300.0)) == (0, 10.0)


def test_confirm_while_dialling_takes_effect_when_the_connection_is_made() -> None:
    budget = used(tried=2, spent=3.0)
    budget.resume(200.0)
    budget.tries()
    budget.confirm()
    assert (budget.tried, budget.spent(201.0)) == (3, 4.0)
    budget.made(201.0)
    assert (budget.tried, budget.spent(201.0)) == (0, 0.0)
    budget.suspend(202.0)
    assert budget.spent(300.0) == 1.0  # From then on.


def fails_and_is_tried_again(budget: Budget) -> None:
    budget.tries()


def is_given_up_and_resumed(budget: Budget) -> None:
    budget.suspend(201.0)
    budget.resume(202.0)
    budget.tries()


@pytest.mark.parametrize("then", [fails_and_is_tried_again, is_given_up_and_resumed])
def test_confirm_of_an_attempt_that_fails_is_void(then: Callable[[Budget], None]) -> None:
    budget = used(tried=1)
    budget.resume(200.0)
    budget.tries()
    budget.confirm()
    then(budget)
    budget.made(203.0)
    budget.suspend(203.0)
    budget.ended(204.0)
    assert budget.tried == 3


def test_confirm_before_the_first_attempt_of_a_call_is_not_of_that_attempt() -> None:
    budget = used(tried=1)
    budget.resume(200.0)
    budget.confirm()  # By another thread, while the backoff is waited for.
    budget.tries()
    budget.made(201.0)
    assert budget.tried == 2


# Waiting for a local port ------------------------------------------------------------------------


def refusal(number: int = errno.EADDRINUSE) -> OSError:
    return OSError(number, "refused")


def busy(*holders: PortHolder, number: int = errno.EADDRINUSE) -> LocalPortBusyError:
    return LocalPortBusyError(number, "busy", "bind", ("", 40000), ("192.0.2.1", 80), holders)


def held(
    state: str = "TIME_WAIT", seconds: float | None = None, pid: int | None = None
) -> PortHolder:
    return PortHolder(state, ("127.0.0.1", 40000), ("192.0.2.1", 80), pid, None, None, seconds)


def first_look(wait: PortWait, error: OSError, now: float = 0.0) -> None:
    pause = wait.pause(error, now)
    assert pause is not None
    assert 0 < pause <= LOOK


BUSY_ERRNOS = [errno.EADDRINUSE, errno.EADDRNOTAVAIL]
each_busy = pytest.mark.parametrize("number", BUSY_ERRNOS, ids=errno.errorcode.get)

holders = st.lists(
    st.builds(
        held,
        st.sampled_from(PASSING * 3 + STAYING),
        st.none() | st.floats(0, 70),
        st.sampled_from([None, None, None, 4711]),
    ),
    max_size=3,
)
errors = st.one_of(
    st.builds(refusal, st.sampled_from([*BUSY_ERRNOS, errno.ECONNREFUSED, errno.ETIMEDOUT])),
    holders.map(lambda found: busy(*found)),
)


@quick
@given(
    st.lists(st.tuples(errors, st.floats(0, 5)), max_size=60),
    st.floats(0, 100),
    st.floats(0, 100),
)
def test_a_port_is_waited_for_within_the_limits_and_only_where_it_passes(
    turns: list[tuple[OSError, float]], until: float, give_up: float
) -> None:
    wait, now = PortWait(until, give_up), 0.0
    guessed = believed = False
    for error, elapsed in turns:
        pause = wait.pause(error, now)
        if pause is None:
            return
        assert pause > 0
        assert error.errno in BUSY_ERRNOS
        limit = min(give_up, until)
        if isinstance(error, LocalPortBusyError) and error.holders:
            assert error.passes
            if error.seconds_left is not None:
                limit = until
                assert pause >= error.seconds_left or (pause <= LOOK and not believed)
                if believed:
                    give_up += pause  # What is waited for by a known time does not count.
            believed = error.seconds_left is not None
            guessed = False
        else:
            assert not guessed
            guessed = True
        assert now + pause < limit
        now += pause + elapsed


@each_busy
@pytest.mark.parametrize("make", [refusal, lambda number: busy(number=number)])
def test_what_is_held_by_nobody_known_is_tried_once_more(
    make: Callable[[int], OSError], number: int
) -> None:
    wait = PortWait(until=60.0, give_up=10.0)
    first_look(wait, make(number))
    assert wait.pause(make(number), 1.0) is None


@each_busy
def test_what_has_gone_after_a_known_wait_is_tried_once_more(number: int) -> None:
    # TIME_WAIT may refuse the port and end before it is looked for, long after the timeout.
    wait, error = PortWait(until=100.0, give_up=10.0), busy(held("TIME_WAIT", 60.0))
    first_look(wait, refusal(number))
    first_look(wait, error)
    assert wait.pause(error, 1.0) == 60.0
    first_look(wait, refusal(number), 62.0)
    assert wait.pause(refusal(number), 63.0) is None


@each_busy
def test_once_more_is_not_after_the_deadline(number: int) -> None:
    assert PortWait(until=60.0, give_up=60.0).pause(refusal(number), 59.9999) is None
    assert PortWait(until=60.0, give_up=10.0).pause(refusal(number), 10.0) is None


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EACCES, errno.ENETUNREACH, None])
def test_other_refusals_stand(number: int | None) -> None:
    error = OSError("of no number") if number is None else refusal(number)
    assert PortWait(until=60.0, give_up=60.0).pause(error, 0.0) is None


@pytest.mark.parametrize("state", STAYING)
def test_what_does_not_pass_is_not_waited_for(state: str) -> None:
    assert PortWait(60.0, 60.0).pause(busy(held(state)), 0.0) is None
    assert PortWait(60.0, 60.0).pause(busy(held("TIME_WAIT", 1.0), held(state)), 0.0) is None


@pytest.mark.parametrize("state", PASSING)
def test_what_a_process_has_open_is_not_waited_for(state: str) -> None:
    assert PortWait(60.0, 60.0).pause(busy(held(state)), 0.0) is not None
    assert PortWait(60.0, 60.0).pause(busy(held(state, pid=1)), 0.0) is None


@pytest.mark.parametrize(("seconds", "waits"), [(39.9, True), (40.0, False), (59.0, False)])
def test_a_time_that_the_kernel_gives_is_waited_for_if_the_deadline_allows_it(
    seconds: float, waits: bool
) -> None:
    # The timeout of one address, here a second, does not matter.
    wait, error = PortWait(until=60.0, give_up=1.0), busy(held("TIME_WAIT", seconds))
    first_look(wait, error, 20.0)
    assert wait.pause(error, 20.0) == (seconds if waits else None)


def test_of_several_holders_the_last_to_go_is_waited_for() -> None:
    found = busy(held("TIME_WAIT", 3.0), held("TIME_WAIT", 7.0), held("TIME_WAIT", 5.0))
    wait = PortWait(60.0, 60.0)
    first_look(wait, found)
    assert wait.pause(found, 0.0) == 7.0


def test_a_time_is_believed_when_it_is_seen_twice_in_a_row() -> None:
    # What refused the port may have been FIN_WAIT, and become TIME_WAIT before it was looked for.
    wait = PortWait(60.0, 60.0)
    for _ in range(3):
        first_look(wait, busy(held("TIME_WAIT", 50.0)))
        first_look(wait, busy(held("FIN_WAIT2")))
    first_look(wait, busy(held("TIME_WAIT", 50.0)))
    assert wait.pause(busy(held("TIME_WAIT", 50.0)), 0.0) == 50.0


def test_a_time_that_has_run_out_is_no_busy_loop() -> None:
    wait = PortWait(60.0, 60.0)
    for _ in range(3):
        first_look(wait, busy(held("TIME_WAIT", 0.0)))


@pytest.mark.parametrize(("until", "give_up", "limit"), [(60.0, 10.0, 10.0), (5.0, 10.0, 5.0)])
def test_what_passes_at_an_unknown_time_is_looked_at_until_the_attempt_must_end(
    until: float, give_up: float, limit: float
) -> None:
    wait, now = PortWait(until, give_up), 0.0
    pauses: list[float] = []
    while (pause := wait.pause(busy(held("LAST_ACK")), now)) is not None:
        now += pause
        pauses.append(pause)
        assert len(pauses) < 1000
    assert limit - LOOK <= now < limit
    # Soon, as it usually takes a round trip; seldom, when it takes longer.
    assert pauses[0] <= 0.01
    assert all(shorter <= longer for shorter, longer in itertools.pairwise(pauses))
    assert pauses[-1] == LOOK
