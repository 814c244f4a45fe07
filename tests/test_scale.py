"""Very many connections: what is done for each does not grow with their number, and what the
benchmark of that measures is right, at a size that takes no time."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import kernel
import netns
import pytest
from peer import TIMEOUT, Peer
from process import Script, in_child

import safesock
from benchmarks import scale, scale_shown
from benchmarks.crowd import KINDS, PLAIN
from safesock import Policy, SafeSocket, _watch

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scale.md"
FIGURES = ROOT / "benchmarks" / "scale.json"
CHART = ROOT / "benchmarks" / "scale.svg"
FEW, MANY = 50, 200
# Of what is done for four times as many; more where each is looked at with all the others.
MOST = 1.2 * MANY / FEW

# Processes that have sockets of other kinds, as nearly all have.
HOST = """
import os, socket, sys, safesock
from safesock import _audit
pair, read = socket.socketpair(), []
pids = []
for _ in range(int(sys.argv[1])):
    pids.append(os.fork())
    if not pids[-1]:
        sys.stdin.read()
        os._exit(0)
tables = {f"/proc/{pid}/net/unix" for pid in pids}
sys.addaudithook(lambda event, args: read.append(args[0]) if event == "open" else None)
_audit.audit_host(unowned=False)
print(len(tables & set(map(str, read))), flush=True)
"""
HOLDER = """
import socket, sys
socks = [socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20) for _ in range(20)]
print("made", flush=True)
input()
"""
AUDITOR = """
import sys, safesock
loaded = []
sys.addaudithook(lambda event, _: loaded.append(event) if event == "ctypes.dlopen" else None)
found = safesock.audit(int(sys.argv[1])).found()
print(sum(one.lost for one in found), loaded.count("ctypes.dlopen"))
"""


class Calls:
    """Of Python's functions and C's, in the thread that counts."""

    def __init__(self) -> None:
        self.number = 0
        self._before: Any = None

    def begin(self) -> None:
        if sys.getprofile() != self._count:
            self._before = sys.getprofile()
            sys.setprofile(self._count)

    def end(self) -> None:
        """In the same thread."""
        if sys.getprofile() == self._count:
            sys.setprofile(self._before)

    def _count(self, _frame: FrameType, event: str, _argument: object) -> None:
        self.number += event in ("call", "c_call")


class Acting(SafeSocket):
    """When its peer has closed, the thread of the watcher does this first."""

    act: Callable[[], None]

    def _peer_has_closed(self) -> float | None:
        self.act()
        return super()._peer_has_closed()


@contextlib.contextmanager
def connected(
    peer: Peer, count: int, make: Callable[[], socket.socket]
) -> Iterator[list[tuple[socket.socket, Any]]]:
    with contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(count):
            sock = stack.enter_context(make())
            sock.settimeout(TIMEOUT)
            sock.connect(peer.address)
            pairs.append((sock, peer.accept()))
        yield pairs


def are_watched() -> bool:
    watcher = _watch._watcher
    return watcher is not None and not watcher._young


def calls_of_the_watcher(peer: Peer, count: int) -> int:
    calls = Calls()

    def make(act: Callable[[], None] = calls.begin) -> SafeSocket:
        made = Acting(policy=Policy(grace=0.05))
        made.act = act
        return made

    with ending(peer, calls, make), connected(peer, count, make) as pairs:
        kernel.wait_until(are_watched, "all are watched")
        for _, end in pairs:
            end.fin()
        socks = [sock for sock, _ in pairs]
        kernel.wait_until(lambda: all(sock.loss for sock in socks), "all are lost", pause=0.05)  # type: ignore[attr-defined]
        assert "CLOSE_WAIT" not in {kernel.state_of(sock) for sock in socks}
        return calls.number


@contextlib.contextmanager
def ending(peer: Peer, calls: Calls, make: Callable[[Callable[[], None]], Any]) -> Iterator[None]:
    """The thread of the watcher counts no longer after it: one more connection has it stop."""
    left: list[object] = []

    def stop() -> None:
        calls.end()
        left.append(sys.getprofile())

    with connected(peer, 1, lambda: make(stop)) as [(_, end)]:
        try:
            yield
        finally:
            end.fin()
            kernel.wait_until(lambda: left, "the watcher counts no longer")
    assert left == [None]


def calls_of_an_audit(peer: Peer, count: int) -> int:
    calls = Calls()
    with connected(peer, count, SafeSocket):
        calls.begin()
        try:
            found = safesock.audit()
        finally:
            calls.end()
        assert sum(one.peer == peer.address for one in found) == count
    return calls.number


@pytest.fixture
def rounds() -> Iterator[int]:
    """An audit reads what others have in the same network: one round in a network of our own, or
    where that is not allowed a few, of which one is to have none of others that come and go."""
    if netns.why_not():
        yield 5
        return
    with netns.Namespace("scale") as own:
        own.ip("link set lo up")
        with own.entered():
            yield 1


@pytest.mark.parametrize("count_calls", [calls_of_the_watcher, calls_of_an_audit])
def test_four_times_as_many_take_four_times_as_much(
    rounds: int, count_calls: Callable[[Peer, int], int]
) -> None:
    counts = []
    with Peer() as peer:
        count_calls(peer, 2)  # What is done once.
        for _ in range(rounds):
            few, many = count_calls(peer, FEW), count_calls(peer, MANY)
            if 0 < few < many < MOST * few:
                return
            counts.append((few, many))
    pytest.fail(f"calls for {FEW} and for {MANY}: {counts}")


def test_what_a_network_has_is_read_once_and_not_for_each_process() -> None:
    with Script(HOST, 5) as script:
        assert int(script.read_line()) <= 1


def test_a_library_is_loaded_once_and_not_for_each_descriptor(peer: Peer) -> None:
    with Script(HOLDER, peer.address[1]) as holder:
        assert holder.read_line() == "made"
        for _ in range(20):
            peer.accept().rst()
        with Script(AUDITOR, holder.pid) as auditor:
            lost, loaded = map(int, auditor.join().split())
    assert lost == 20
    assert loaded <= 2  # ctypes itself loads one.


# The benchmark -----------------------------------------------------------------------------------


def test_the_page_and_the_chart_are_those_of_the_figures() -> None:
    results = scale._results_in(FIGURES)
    page = PAGE.read_text(encoding="utf-8")
    assert scale_shown.with_table(page, results) == page
    assert scale_shown.digest(results) in CHART.read_text(encoding="utf-8")
    assert {one.kind for one in results.measured} == set(KINDS)


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no page"):
        scale_shown.with_table("# A page", scale._results_in(FIGURES))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_growth_is_the_power_of_the_number(power: float) -> None:
    points = [(float(count), 3.0 * count**power) for count in (1_000, 2_000, 5_000)]
    assert scale_shown.slope(points) == pytest.approx(power)


def test_what_there_is_no_room_for_is_left_out_with_the_reason() -> None:
    def measure() -> None:
        sizes, reasons = scale.possible((100, 100_000_000))  # More than any system's.
        assert sizes[0] == 100
        assert max(sizes) < 100_000_000
        (reason,) = reasons.values()
        assert "descriptors here, and no more" in reason

    in_child(measure)  # It raises its own limit.


@pytest.fixture
def begins(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sizes of a run, which is interrupted."""
    begun: list[Any] = []

    def run(sizes: object) -> None:
        begun.append(sizes)
        raise KeyboardInterrupt

    monkeypatch.setattr(scale, "run", run)
    return begun


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--most", "0"], "argument --most: takes a number, from 2"),
        (["--most=-5"], "argument --most: takes a number, from 2"),
        (["--from", "{folder}/none"], "--from {folder}/none: No such file or directory"),
        (["--from", "{page}"], "--from {page}: not the results of a run"),
        (["--from", "{list}"], "--from {list}: not the results of a run"),
        (["--from", "{figures}", "--json", "{folder}/x"], "--from measures nothing"),
        (["--from", "{figures}", "--most", "2000"], "--from measures nothing"),
        (["--json", "{folder}/none/x"], "--json {folder}/none/x: No such file or directory"),
        (["--page", "{list}"], "--page {list}: no page for the results"),
        (["--page", "{folder}/none"], "--page {folder}/none: No such file or directory"),
        (["--chart", "{folder}/x.bmp"], "--chart takes a .svg or a .png: not {folder}/x.bmp"),
        (["--chart", "{folder}/none/x.svg"], "--chart {folder}/none/x.svg: No such file or"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_told_before_anything_is_measured(
    arguments: list[str], told: str, begins: list[Any], tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "list").write_text("[]", encoding="utf-8")
    names = {"folder": tmp_path, "list": tmp_path / "list", "page": PAGE, "figures": FIGURES}
    with pytest.raises(SystemExit, match="2"):
        scale.main([word.format(**names) for word in arguments])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("python -m benchmarks.scale: error: ")
    assert told.format(**names) in last
    assert not begins


def test_a_run_that_is_interrupted_is_no_error(begins: list[Any]) -> None:
    assert scale.main([]) == 130
    assert scale.main(["--most", "4999"]) == 130
    assert scale.main(["--most", "7"]) == 130
    assert begins == [list(scale.SIZES), [1000, 2000], [7]]


def test_where_there_is_room_for_none_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    why = "there is no room"
    monkeypatch.setattr(scale, "possible", lambda sizes: ([], {str(sizes[0]): why}))
    file = tmp_path / "found.json"
    assert scale.main(["--most", "1000", "--json", str(file)]) == 0
    assert f"1,000 were not possible: {why}." in capsys.readouterr().out
    assert scale._results_in(file).left_out == {"1000": why}


@pytest.mark.campaign
@pytest.mark.once
def test_every_kind_is_measured_and_ends_well() -> None:
    threads = threading.active_count()
    results = scale.run((MANY,), idle=0.2)
    assert not results.left_out
    assert [(one.kind, one.count) for one in results.measured] == [(kind, MANY) for kind in KINDS]
    for one in results.measured:
        assert one.traced > 0
        assert (one.late is not None) == (one.idle is not None) == (one.kind in PLAIN)
        assert str(one.count) in scale_shown.text(results)
    assert threading.active_count() == threads
