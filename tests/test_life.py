"""The pure core: every sequence of calls and peer acts up to a length, by the library's tables,
in a model of what goes on around them. Nothing here has a socket, a thread or a clock."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from safesock import _life
from safesock._budget import Budget
from safesock._life import MOVES, Answer, Event, State
from safesock._loss import Cause

if TYPE_CHECKING:
    from safesock._policy import OnLoss

Record = Callable[[str, object], None]
ON_LOSS: tuple[OnLoss, ...] = ("close", "release", "keep")

# One life -----------------------------------------------------------------------------------------


@dataclasses.dataclass(unsafe_hash=True)
class Life:
    """The facts that a connection keeps, and a kernel that is as simple as can be."""

    on_loss: OnLoss
    abort: bool
    # The facts.
    cause: Cause | None = None
    released: bool = False
    dying: bool = False
    closed: bool = False
    is_first: bool = True
    # The kernel: what the peer has sent of its end, what is unread, and what our side has sent.
    fin: bool = False
    rst: bool = False
    notify: bool = False
    unread: bool = False
    ended: bool = False
    # What the owner has been told.
    signals: int = 0
    successes: int = 0
    # What has happened in this life, and in all that were copied from it.
    moves: set[tuple[State, Event]] = dataclasses.field(default_factory=set, compare=False)

    @property
    def state(self) -> State:
        return self._state(closed=self.closed)

    def _state(self, *, closed: bool) -> State:
        return _life.state_of(self.cause, released=self.released, dying=self.dying, closed=closed)

    def happens(self, event: Event, **facts: object) -> None:
        """The facts change, and the state with them as the table says."""
        before = self.state
        for name, value in facts.items():
            setattr(self, name, value)
        assert self.state is MOVES[before][event], (before, event)
        self.moves.add((before, event))

    # What is done, in the order in which a connection does it ------------------------------------

    def lose(self, cause: Cause) -> None:
        if _life.loss_by(cause) in MOVES[self.state]:
            self.happens(_life.loss_by(cause), cause=cause)
            then = _life.NEXT[self.on_loss]
            if then is Event.END:
                self.end()
            elif then is Event.CLOSE:
                self.close()

    def end(self) -> None:
        """As `release`: an `Abort` may have to wait for its RST, or for a better moment."""
        if Event.END not in MOVES[self.state]:
            return
        self.happens(Event.END, released=True)
        if self.state is not State.BROKEN and self.abort and self.unread and not self.rst:
            self.happens(Event.RESET, dying=True)
        self.ended = True

    def take_back(self) -> None:
        """As `release`, where the system cannot do it yet."""
        if Event.END in MOVES[self.state] and self.state is not State.BROKEN:
            self.happens(Event.END, released=True)
            self.happens(Event.TAKE_BACK, released=False)

    def close(self) -> None:
        self.happens(Event.CLOSE, closed=True)
        self.ended = True

    # What its owner calls -------------------------------------------------------------------------

    def recv(self) -> None:
        if self.closed:
            return
        if self.notify:
            self._is_told(Cause.FIN)
        elif self.unread and not self.rst:
            self.unread = False
        elif self.rst and self.cause is None:
            self._is_told(Cause.RST)
        elif self.fin:
            self._is_told(Cause.FIN)

    def send(self) -> None:
        if self.closed:
            return
        if self._state(closed=False) in _life.ENDED_HERE:
            told = _life.answer_to_send(self.state, self.on_loss, is_first=self.is_first)
            self.successes += told is Answer.SUCCESS
            self.is_first = False
        elif self.rst and self.cause is None:
            self._is_told(Cause.RST)

    def _is_told(self, cause: Cause) -> None:
        if self.cause is None:
            self.signals += 1
            self.lose(cause)

    def shutdown(self) -> None:
        self.is_first = self.is_first and self.closed

    # What the watcher does, once the peer's end has been silent for the grace -------------------

    def silence(self, meanwhile: Callable[[Life], None] | None = None) -> None:
        """*meanwhile*: what another thread does between the two steps, where it waited in vain."""
        if self.state not in _life.STEPS_IN[self.on_loss] or not (self.fin or self.rst):
            return
        if self.state is State.DYING:
            self.happens(Event.GONE, dying=False)
            return
        if _life.NEXT[self.on_loss] is not None:
            self.end()
        if meanwhile is not None:
            meanwhile(self)
        cause = Cause.RST if self.rst else Cause.FIN
        if _life.loss_by(cause) in MOVES[self.state]:
            self.happens(_life.loss_by(cause), cause=cause)

    def close_in_silence(self) -> None:
        self.silence(Life.close)

    def reset_in_silence(self) -> None:
        self.silence(Life._is_reset)

    def _is_reset(self) -> None:
        self.rst = True
        self._is_told(Cause.RST)


# Drop the reference and close in another thread are a close, of which the table knows one; a fork
# gives the child facts of its own.
OWNER: dict[str, Callable[[Life], None]] = {
    "send": Life.send,
    "recv": Life.recv,
    "shutdown": Life.shutdown,
    "close": Life.close,
    "close in another thread": Life.close,
    "drop": Life.close,
    "fork": lambda life: copy.copy(life).close(),
    "not yet": Life.take_back,
    "close, amid what the watcher does": Life.close_in_silence,
    "an error, amid what the watcher does": Life.reset_in_silence,
}
PEER: dict[str, Callable[[Life], None]] = {
    "data": lambda life: setattr(life, "unread", True),
    "FIN": lambda life: setattr(life, "fin", True),
    "half-close": lambda life: setattr(life, "fin", True),
    "RST": lambda life: setattr(life, "rst", True),
    "close_notify": lambda life: setattr(life, "notify", True),
    "silence": Life.silence,
}
ACTS = (*OWNER.values(), *PEER.values())
LENGTH = 8


def lives(life: Life, length: int) -> Iterator[tuple[Life, int]]:
    """All that this one may have come to after any number of acts up to *length*; and by how many
    sequences. Those that came to the same are the same from there on."""
    found = Counter({life: 1})
    for _ in range(length):
        yield from found.items()
        after: Counter[Life] = Counter()
        for one, count in found.items():
            for act in ACTS:
                another = copy.copy(one)
                act(another)
                after[another] += count
        found = after
    yield from found.items()


def check(life: Life) -> None:
    assert life.signals <= 1
    assert life.successes <= (life.on_loss == "release")
    if life.on_loss == "close" and life.signals:
        assert life.state is State.CLOSED
    if life.cause is Cause.FIN:  # Else it would be CLOSE_WAIT.
        assert life.ended or life.on_loss == "keep"
    if life.on_loss == "keep":
        assert life.ended is life.closed
    assert life.dying <= life.released


@pytest.mark.parametrize("on_loss", ON_LOSS)
@pytest.mark.parametrize("abort", [False, True], ids=["FIN", "RST"])
def test_every_life(on_loss: OnLoss, abort: bool, record_property: Record) -> None:
    total = 0
    for life, count in lives(Life(on_loss, abort), LENGTH):
        check(life)
        total += count
    assert total == sum(len(ACTS) ** n for n in range(LENGTH + 1))
    record_property(
        "sequences",
        (
            f"of up to {LENGTH} acts, by the table of a life, the same situations taken together",
            total,
        ),
    )


def test_every_row_of_the_table_happens() -> None:
    moves: set[tuple[State, Event]] = set()
    for on_loss in ON_LOSS:
        for abort in (False, True):
            for one, _ in lives(Life(on_loss, abort), 5):
                moves |= one.moves
    assert moves == {(state, event) for state, row in MOVES.items() for event in row}


def test_facts_come_to_one_state_each() -> None:
    reached = set()
    for cause, released, dying, closed in itertools.product(
        [None, *Cause], [False, True], [False, True], [False, True]
    ):
        if dying <= released:
            reached.add(_life.state_of(cause, released=released, dying=dying, closed=closed))
    assert reached == set(State) == set(MOVES)


def test_who_closed_stays_closed() -> None:
    assert MOVES[State.CLOSED] == {Event.CLOSE: State.CLOSED}
    assert all(row[Event.CLOSE] is State.CLOSED for row in MOVES.values())


# The budget -------------------------------------------------------------------------------------


ATTEMPTS, DEADLINE, STABLE = 2, 10, 3


@dataclasses.dataclass(eq=False)
class Outage:
    """A budget as a connector uses it, and beside it a ledger of what has been spent."""

    budget: Budget = dataclasses.field(default_factory=lambda: Budget(ATTEMPTS, DEADLINE, STABLE))
    now: float = 0.0
    dials: bool = False
    tries: bool = False
    made: float | None = None
    is_good: bool = False
    # Since the last time that it was over.
    tried: int = 0
    spent: float = 0.0

    def acts(self) -> Iterator[Callable[[Outage], None]]:
        """What a connector could do now."""
        yield Outage.a_second
        yield Outage.a_while
        yield Outage.confirm
        if not self.dials:
            yield Outage.resume
        elif self.tries:
            yield Outage.fails
            yield Outage.makes
        else:
            yield Outage.gives_up
            if self.budget.may_try(self.now):
                yield Outage.begins
        if self.made is not None:
            yield Outage.ends

    def _passes(self, seconds: float) -> None:
        self.now += seconds
        self.spent += seconds * self.dials

    def a_second(self) -> None:
        self._passes(1.0)

    def a_while(self) -> None:
        self._passes(4.0)

    def resume(self) -> None:
        if self.made is not None:
            self.ends()
        self.budget.resume(self.now)
        self.dials = True

    def gives_up(self) -> None:
        self.budget.suspend(self.now)
        self.dials = False

    def begins(self) -> None:
        self.budget.tries()
        self.tries, self.is_good = True, False
        self.tried += 1

    def fails(self) -> None:
        self.tries = False

    def makes(self) -> None:
        self.budget.made(self.now)
        self.tries, self.made = False, self.now
        if self.is_good:
            self._is_over()
        self.gives_up()

    def ends(self) -> None:
        assert self.made is not None
        lived, self.made = self.now - self.made, None
        self.budget.ended(self.now)
        if lived >= STABLE:
            self._is_over()

    def confirm(self) -> None:
        self.budget.confirm()
        if self.dials:
            self.is_good = True
        else:
            self._is_over()

    def _is_over(self) -> None:
        self.tried, self.spent = 0, 0.0

    def check(self) -> None:
        assert self.tried <= ATTEMPTS
        assert self.budget.tried == self.tried
        assert self.budget.spent(self.now) == self.spent
        assert self.budget.left(self.now) == DEADLINE - self.spent
        may = self.tried < ATTEMPTS and self.spent < DEADLINE
        assert self.budget.may_try(self.now) is may
        assert not self.budget.may_try(self.now, pause=DEADLINE - self.spent)

    def facts(self) -> tuple[object, ...]:
        """What it is the same by: times count from now."""
        budget = self.budget
        times = (self.made, budget._made, budget._since)
        since = (None if time is None else self.now - time for time in times)
        state = (self.dials, self.tries, self.is_good, self.tried, self.spent)
        return (*since, *state, budget.tried, budget._spent, budget._confirmed)


def outages(length: int) -> Iterator[tuple[Outage, int]]:
    """As `lives`."""
    found = {Outage().facts(): (Outage(), 1)}
    for _ in range(length):
        yield from found.values()
        after: dict[tuple[object, ...], tuple[Outage, int]] = {}
        for outage, count in found.values():
            for act in outage.acts():
                another = copy.copy(outage)
                another.budget = copy.copy(outage.budget)
                act(another)
                facts = another.facts()
                after[facts] = another, count + after.get(facts, (another, 0))[1]
        found = after
    yield from found.values()


def test_every_outage(record_property: Record) -> None:
    total = 0
    for outage, count in outages(LENGTH):
        outage.check()
        total += count
    record_property("sequences", (f"of up to {LENGTH} acts, by the budget of an outage", total))
