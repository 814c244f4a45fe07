"""The life of a connection: its states, what may happen in each, and what its owner is told there.

Tables, and no I/O, no clock, no lock. A connection keeps facts, not a state: each of them is set by
one kind of event, so that threads which do not wait for each other cannot undo what another has
found. `state_of` says which state the facts come to, and the tables say what follows.

    OPEN      nobody knows of an end
    ENDING    the watcher has ended it, and is about to record the loss
    RESETTING the same, and its RST is on its way
    LOST      the peer has closed, and our side has not
    RELEASED  the peer has closed, and so have we; the descriptor is its owner's
    DYING     the same, and its RST is on its way
    BROKEN    lost in any other way: the kernel has nothing left that could be ended
    CLOSED    by its owner, or with the loss: the descriptor is closed, or about to be
"""

from __future__ import annotations

import enum

from safesock._loss import Cause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from safesock._policy import OnLoss


class State(enum.Enum):
    """Where a connection stands, as far as this side knows."""

    OPEN = "open"
    ENDING = "ending"
    RESETTING = "resetting"
    LOST = "lost"
    RELEASED = "released"
    DYING = "dying"
    BROKEN = "broken"
    CLOSED = "closed"


class Event(enum.Enum):
    """What happens to it.

    FIN, BREAK: a loss is recorded, by the peer's end, or in any other way.
    END: our side is ended, and the descriptor stays. RESET: by a RST that takes a while.
    GONE: that RST is through. TAKE_BACK: it could not be ended yet.
    CLOSE: everything is done for close(2).
    """

    FIN = "fin"
    BREAK = "break"
    END = "end"
    RESET = "reset"
    GONE = "gone"
    TAKE_BACK = "take back"
    CLOSE = "close"


class Answer(enum.Enum):
    """What a send is told after our side was ended under its owner.

    KERNEL: what the kernel says. SUCCESS: it seems to succeed, as the first one does whose peer has
    closed, and is counted as lost. BROKEN_PIPE: nothing can be sent, and the kernel is not asked.
    """

    KERNEL = "kernel"
    SUCCESS = "success"
    BROKEN_PIPE = "broken pipe"


# What is not here cannot happen, and is refused.
MOVES: Mapping[State, Mapping[Event, State]] = {
    State.OPEN: {
        Event.FIN: State.LOST,
        Event.BREAK: State.BROKEN,
        Event.END: State.ENDING,
        Event.CLOSE: State.CLOSED,
    },
    State.ENDING: {
        Event.FIN: State.RELEASED,
        Event.BREAK: State.BROKEN,
        Event.RESET: State.RESETTING,
        Event.TAKE_BACK: State.OPEN,
        Event.CLOSE: State.CLOSED,
    },
    State.RESETTING: {
        Event.FIN: State.DYING,
        Event.BREAK: State.BROKEN,
        Event.CLOSE: State.CLOSED,
    },
    State.LOST: {Event.END: State.RELEASED, Event.CLOSE: State.CLOSED},
    State.RELEASED: {
        Event.RESET: State.DYING,
        Event.TAKE_BACK: State.LOST,
        Event.CLOSE: State.CLOSED,
    },
    State.DYING: {Event.GONE: State.RELEASED, Event.CLOSE: State.CLOSED},
    State.BROKEN: {Event.END: State.BROKEN, Event.CLOSE: State.CLOSED},
    State.CLOSED: {Event.CLOSE: State.CLOSED},
}

# What the call that notices a loss does next.
NEXT: Mapping[OnLoss, Event | None] = {"close": Event.CLOSE, "release": Event.END, "keep": None}

# Whether the watcher, when the grace is over, has something to do there. With "keep" a loss is
# told, and that is all; with "close" the call that told it may have been interrupted.
_STEPS_IN = frozenset({State.OPEN, State.RESETTING, State.DYING})
STEPS_IN: Mapping[OnLoss, frozenset[State]] = {
    "close": _STEPS_IN | {State.LOST},
    "release": _STEPS_IN | {State.LOST, State.BROKEN},
    "keep": _STEPS_IN,
}

# Where an error may come of our own end, while its owner knows only of the peer's: reads tell him
# b"" instead, and sends what is in the next table.
ENDED_HERE = frozenset({State.RELEASED, State.DYING})

# The first send there, and those after it; where its owner has ended his sending there is no first.
SENDS: Mapping[OnLoss, tuple[Answer, Answer]] = {
    "close": (Answer.BROKEN_PIPE, Answer.BROKEN_PIPE),
    "release": (Answer.SUCCESS, Answer.KERNEL),
    "keep": (Answer.KERNEL, Answer.KERNEL),
}


def state_of(cause: Cause | None, *, released: bool, dying: bool, closed: bool) -> State:
    """*cause*: of the loss, once it is recorded. *released*: our side has been ended. *dying*: by a
    RST that is still on its way. *closed*: or about to be."""
    if closed:
        return State.CLOSED
    if cause is None:
        return (State.RESETTING if dying else State.ENDING) if released else State.OPEN
    if cause is not Cause.FIN:
        return State.BROKEN
    return (State.DYING if dying else State.RELEASED) if released else State.LOST


def loss_by(cause: Cause) -> Event:
    """The event that a loss by this cause is."""
    return Event.FIN if cause is Cause.FIN else Event.BREAK


def answer_to_send(state: State, on_loss: OnLoss, *, is_first: bool) -> Answer:
    """What is told of a send for which the kernel has only an error."""
    return SENDS[on_loss][not is_first] if state in ENDED_HERE else Answer.KERNEL
