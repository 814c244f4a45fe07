"""A sequence on a governed socket beside the same on one of the standard library's: where they
differ there is a reason, or a fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sequences import SAID, SENT, Result, Sequence


class Case(NamedTuple):
    """One sequence, and what came of it on either side. A call's place among them is *at*."""

    mode: str
    on_loss: str
    sequence: Sequence
    plain: Result
    governed: Result
    at: int = 0

    @property
    def call(self) -> str:
        return (*self.sequence, "close")[self.at]

    @property
    def answers(self) -> tuple[str, str]:
        return self.plain.answers[self.at], self.governed.answers[self.at]

    @property
    def before(self) -> Sequence:
        return self.sequence[: self.at]

    def is_lost(self) -> bool:
        """Whether the peer had ended it before."""
        return bool({"FIN", "RST", "half-close", "close_notify"}.intersection(self.before))


class Difference(NamedTuple):
    """Where we answer something else on purpose, and why."""

    reason: str
    where: Callable[[Case], object]


BY_STREAMS = [
    Difference(
        "on_loss='close', streams: the end of file has closed it, and the next drain says so",
        lambda case: (
            case.on_loss == "close"
            and case.is_lost()
            and case.call == "send"
            and case.answers == ("None", "ConnectionResetError None")
        ),
    ),
]
IN_SILENCE = [
    Difference(
        "on_loss='release', after a half-close: a RST finds nothing any more that it could end, as"
        " our FIN has followed; the first send seems to succeed",
        lambda case: (
            case.on_loss == "release"
            and {"half-close", "RST"} <= set(case.before)
            and case.call == "send"
            and case.answers == ("BrokenPipeError 32", str(len(SENT)))
        ),
    ),
]
ANSWERS = [
    Difference(
        "on_loss='close': the loss has been told, and the call that told it closed the connection;"
        " a send cannot seem to succeed any more (contract 1)",
        lambda case: (
            case.on_loss == "close"
            and case.is_lost()
            and case.call == "send"
            and case.answers == (str(len(SENT)), "BrokenPipeError 32")
        ),
    ),
    Difference(
        "on_loss='release': our FIN has followed the peer's, and only the first send after that"
        " seems to succeed, also where the peer had closed one direction only",
        lambda case: (
            case.on_loss == "release"
            and "half-close" in case.before
            and "send" in case.before
            and case.call == "send"
            and case.answers == (str(len(SENT)), "BrokenPipeError 32")
        ),
    ),
    Difference(
        "shutdown after a loss by FIN does nothing where the kernel says ENOTCONN, as there is"
        " nothing left to shut down",
        lambda case: (
            case.is_lost() and case.call == "shutdown" and case.answers == ("OSError 107", "None")
        ),
    ),
    Difference(
        "on_loss='close': a send that is told of a RST closes the connection; what had come before"
        " the RST and was unread is counted (loss.unread), and not to be had any more",
        lambda case: (
            case.on_loss == "close"
            and {"data", "RST"} <= set(case.before)
            and case.call == "recv"
            and case.answers == (repr(SAID), "b''")
        ),
    ),
]
PEER = [
    Difference(
        "unread input: a plain close resets the connection, and what was sent may be lost; a close"
        " by any mode but Abort sends FIN (contract 5)",
        lambda case: (
            case.mode != "Abort"
            and {"data", "close_notify"}.intersection(case.sequence)
            and (case.plain.end, case.governed.end) == ("RESET", "EOF")
            and case.plain.received == case.governed.received
        ),
    ),
    Difference(
        "our side was ended with the loss, before the call by which a plain socket would have gone"
        " on talking to a peer that had closed one direction only",
        lambda case: (
            case.on_loss != "keep"
            and "half-close" in case.sequence
            and {"send", "shutdown"}.intersection(case.sequence) != set()
        ),
    ),
]


def compare(case: Case) -> set[str]:
    """The reasons for which it differs from the standard library. An AssertionError where it
    differs without one, or does not keep what its policy promises."""
    _keeps_its_promise(case)
    for at in range(len(case.sequence) + 1):
        one = case._replace(at=at)
        if one.call == "fork" or at >= len(case.governed.answers) or len(set(one.answers)) == 1:
            continue
        # From here on the two have gone different ways.
        return {_reason([*ANSWERS, *IN_SILENCE, *BY_STREAMS], one)}
    seen = [(side.received, side.end) for side in (case.plain, case.governed)]
    return set() if seen[0] == seen[1] else {_reason(PEER, case)}


def _reason(differences: list[Difference], case: Case) -> str:
    for one in differences:
        if one.where(case):
            return one.reason
    raise AssertionError(f"not as the standard library: {case}")


def _keeps_its_promise(case: Case) -> None:
    governed = case.governed
    if governed.end is None:
        return  # The peer was the first to go.
    ends = {"RESET"} if case.mode == "Abort" else {"EOF"}
    if "shutdown" in case.sequence:
        ends.add("EOF")  # The FIN was the owner's own.
    assert governed.end in ends, f"{case.mode} was seen as {governed.end}: {case}"
    if case.mode != "Abort":
        assert len(governed.received) == governed.accepted, f"lost bytes: {case}"
