"""Every sequence of what both sides of a connection may do, up to a length, on the real kernel, by
each close mode and each on_loss, beside the standard library's own socket."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import kernel
import pytest
import sequences
import sequences_async
from loops import LOOPS
from sequences import FAR, LOCAL, MODES, FullLine, Line, Result, Sequence
from sequences_async import STREAM, TLS_STREAM, AsyncLine
from sequences_compared import ANSWERS, BY_STREAMS, IN_SILENCE, PEER, Case, compare
from sequences_tls import TLS_FAR, Contexts, TlsLine
from tls_peer import Certificates

from safesock import CloseMode, Policy

if TYPE_CHECKING:
    from safesock._policy import OnLoss

Make: TypeAlias = Callable[[socket.socket, Policy | None, CloseMode], Line]
Record = Callable[[str, object], None]
ON_LOSS: tuple[OnLoss, ...] = ("close", "release", "keep")
# Without those that take the longest.
QUICK = tuple(act for act in LOCAL if act not in ("fork", "close in a thread")) + FAR
ENDS = ("FIN", "RST", "half-close")
every_policy = pytest.mark.parametrize(
    ("mode", "on_loss"), [(mode, on_loss) for mode in MODES for on_loss in ON_LOSS]
)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as one:
        yield one


class Run:
    """Sequences by one policy. What a plain socket does is asked only once."""

    def __init__(self, make: Make, listener: socket.socket, mode: str, policy: Policy) -> None:
        self._make = make
        self._listener = listener
        self._mode = mode
        self._policy = policy
        self._plain: dict[Sequence, Result] = {}
        self.reasons: set[str] = set()
        self.count = 0

    def all(self, found: Iterator[Sequence]) -> None:
        before = kernel.descriptors()
        for sequence in found:
            self._one(sequence)
        assert kernel.left_open(before) == []

    def _one(self, sequence: Sequence) -> None:
        without = tuple("" if act == "fork" else act for act in sequence)
        plain = self._plain.get(without)
        if plain is None:
            plain = self._run(without, None)
            self._plain[without] = plain
        case = Case(
            self._mode,
            self._policy.on_loss,
            sequence,
            plain,
            self._run(sequence, self._policy),
        )
        self.reasons |= compare(case)
        self.count += 1

    def _run(self, sequence: Sequence, policy: Policy | None) -> Result:
        line = self._make(self._listener, policy, self._policy.close)
        return sequences.run(line, sequence)


def check(run: Run, found: Iterator[Sequence], what: str, record: Record) -> None:
    run.all(found)
    record("sequences", (what, run.count))


@every_policy
def test_two_acts(
    mode: str, on_loss: OnLoss, listener: socket.socket, record_property: Record
) -> None:
    run = Run(Line, listener, mode, Policy(MODES[mode], on_loss=on_loss, watch=False))
    check(run, sequences.sequences(2, QUICK), "of 2 acts, TCP", record_property)


@every_policy
@pytest.mark.campaign
def test_three_acts(
    mode: str, on_loss: OnLoss, listener: socket.socket, record_property: Record
) -> None:
    run = Run(Line, listener, mode, Policy(MODES[mode], on_loss=on_loss, watch=False))
    check(run, sequences.sequences(3, LOCAL + FAR), "of 3 acts, TCP", record_property)


@every_policy
@pytest.mark.campaign
@pytest.mark.parametrize("end", ENDS)
def test_three_acts_after_the_end(
    mode: str, on_loss: OnLoss, end: str, listener: socket.socket, record_property: Record
) -> None:
    """That its owner has been told of."""
    run = Run(Line, listener, mode, Policy(MODES[mode], on_loss=on_loss, watch=False))
    found = sequences.sequences(3, QUICK, (end, "recv"))
    check(run, found, "of 3 acts after the peer's end, TCP", record_property)


@every_policy
@pytest.mark.campaign
@pytest.mark.parametrize("end", ["RST", "half-close"])
def test_two_acts_after_silence(
    mode: str, on_loss: OnLoss, end: str, listener: socket.socket, record_property: Record
) -> None:
    """The watcher was the first to find it."""
    policy = Policy(MODES[mode], on_loss=on_loss, grace=0)
    run = Run(Line, listener, mode, policy)
    what = "of 2 acts after the peer's silent end, TCP"
    check(run, sequences.sequences(2, QUICK, (end,)), what, record_property)
    if (on_loss, end) == ("release", "half-close"):
        assert run.reasons >= {one.reason for one in IN_SILENCE}


@every_policy
@pytest.mark.campaign
def test_two_acts_over_tls(
    mode: str,
    on_loss: OnLoss,
    listener: socket.socket,
    certificates: Certificates,
    record_property: Record,
) -> None:
    contexts = Contexts(certificates)

    def make(*arguments: object) -> Line:
        return TlsLine(contexts, *arguments)

    run = Run(make, listener, mode, Policy(MODES[mode], on_loss=on_loss, watch=False))
    check(run, sequences.sequences(2, LOCAL + TLS_FAR), "of 2 acts, TLS", record_property)


@pytest.mark.parametrize("on_loss", ON_LOSS)
def test_all_that_was_accepted_arrives(
    on_loss: OnLoss, listener: socket.socket, record_property: Record
) -> None:
    """Where the peer has not read it before our side closed, which had input that it had not."""
    policy, count = Policy(on_loss=on_loss, watch=False), 0
    for sequence in sequences.sequences(2, ("recv", "shutdown", "data", "half-close")):
        for close in ("close", "drop"):
            line = FullLine(listener, policy, policy.close)
            found = sequences.run(line, (*sequence, close))
            assert (len(found.received), found.end) == (found.accepted, "EOF"), sequence
            count += 1
    record_property("sequences", ("of 3 acts, with full buffers", count))


def test_every_difference_is_met(listener: socket.socket) -> None:
    """A reason that nobody needs would hide a fault."""
    reasons: set[str] = set()
    for on_loss in ON_LOSS:
        run = Run(Line, listener, "Graceful", Policy(on_loss=on_loss, watch=False))
        for start in (
            ("data",),
            ("half-close", "recv"),
            ("half-close", "recv", "send"),
            ("half-close", "recv", "shutdown"),
            ("data", "RST", "send"),
        ):
            run.all(sequences.sequences(1, ("send", "recv", "shutdown", "close"), start))
        reasons |= run.reasons
    assert reasons == {one.reason for one in (*ANSWERS, *PEER)}


# On a loop ----------------------------------------------------------------------------------------


def on_loop(loop: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    complaints: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.get_loop().set_exception_handler(lambda _, what: complaints.append(what))
        runner.run(main())
    assert complaints == []


Connect: TypeAlias = Callable[[socket.socket, Policy | None, CloseMode], Awaitable[AsyncLine]]


class Streams:
    """Beside asyncio's own streams on its own loop: on both, ours do what those do."""

    def __init__(self, connect: Connect, listener: socket.socket, policy: Policy) -> None:
        self._connect = connect
        self._listener = listener
        self._policy = policy

    def compare(self, mode: str, loop: str, found: list[Sequence]) -> set[str]:
        """The reasons for all differences."""
        on_loop(loop, lambda: asyncio.sleep(0))  # What a loop opens once for all.
        before = kernel.descriptors()
        plain = self._results("asyncio", found, None)
        governed = self._results(loop, found, self._policy)
        # What was dropped may be closed by a thread, after the kernel has ended the connection.
        kernel.wait_until(lambda: kernel.left_open(before) == [], "all descriptors are closed")
        reasons: set[str] = set()
        for sequence in found:
            both = plain[sequence], governed[sequence]
            reasons |= compare(Case(mode, self._policy.on_loss, sequence, *both))
        return reasons

    def _results(
        self, loop: str, found: list[Sequence], policy: Policy | None
    ) -> dict[Sequence, Result]:
        results: dict[Sequence, Result] = {}

        async def run_all() -> None:
            for sequence in found:
                line = await self._connect(self._listener, policy, self._policy.close)
                results[sequence] = await sequences_async.run(line, sequence)

        on_loop(loop, run_all)
        return results


@every_policy
@pytest.mark.campaign
@pytest.mark.parametrize("loop", LOOPS)
def test_two_acts_on_a_stream(
    mode: str, on_loss: OnLoss, loop: str, listener: socket.socket, record_property: Record
) -> None:
    policy = Policy(MODES[mode], on_loss=on_loss, watch=False)
    found = list(sequences.sequences(2, STREAM + FAR))
    reasons = Streams(sequences_async.connect, listener, policy).compare(mode, loop, found)
    assert on_loss != "close" or reasons >= {one.reason for one in BY_STREAMS}
    record_property("sequences", (f"of 2 acts, streams on {loop}", len(found)))


# The others end in a thread, or by a RST that TLS does not tell apart: what is told when is chance.
@pytest.mark.parametrize("mode", ["Graceful"])
@pytest.mark.parametrize("on_loss", ON_LOSS)
@pytest.mark.campaign
@pytest.mark.parametrize("loop", LOOPS)
def test_two_acts_on_a_stream_over_tls(
    mode: str,
    on_loss: OnLoss,
    loop: str,
    listener: socket.socket,
    certificates: Certificates,
    record_property: Record,
) -> None:
    policy = Policy(MODES[mode], on_loss=on_loss, watch=False)
    found = list(sequences.sequences(2, TLS_STREAM + TLS_FAR))
    connect = functools.partial(sequences_async.connect_tls, Contexts(certificates))
    Streams(connect, listener, policy).compare(mode, loop, found)
    record_property("sequences", (f"of 2 acts, TLS streams on {loop}", len(found)))
