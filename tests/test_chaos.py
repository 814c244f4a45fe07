"""`python -m chaos`: its accounting finds what is wrong, and for a short while all is well."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kernel
import pytest

import chaos.run
from chaos import faults, stream, tally, worker
from chaos.__main__ import main
from chaos.arena import why_no_network
from chaos.interruption import Interruption
from chaos.ledger import Ledger
from chaos.run import Run
from chaos.summary import as_json, as_text
from chaos.tally import Account, BrokenPromiseError, Tally
from safesock import Policy

ROOT = Path(__file__).parent.parent
TIMEOUT = 300

CLIENT: dict[str, Any] = {
    "token": 7,
    "port": 4000,
    "least": 100,
    "most": 100,
    "unacknowledged": 0,
    "unread": 0,
    "cause": "FIN",
    "mode": "Graceful",
    "reset": False,
    "got": 50,
    "read_by_program": 50,
    "exact": True,
    "lossy": False,
}
PEER: dict[str, Any] = {
    "token": 7,
    "port": 4000,
    "received": 100,
    "unread": 0,
    "written": 50,
    "end": "fin",
    "fault": "cut",
    "reset": False,
    "fin": True,
}
ABORTED = {"mode": "Abort", "reset": True, "exact": False, "cause": "CLOSED"}


def found(client: dict[str, Any], peer: dict[str, Any] | None, *, peer_first: bool) -> list[str]:
    ledger = Ledger()
    if peer is not None and peer_first:
        ledger.peer({**PEER, **peer})
    ledger.client({**CLIENT, **client})
    if peer is not None and not peer_first:
        ledger.peer({**PEER, **peer})
    ledger.finish()
    return [what.partition(":")[0] for what in ledger.broken]


@pytest.mark.parametrize("peer_first", [True, False])
@pytest.mark.parametrize(
    ("client", "peer"),
    [
        ({}, {}),
        (ABORTED, {"end": "rst"}),
        (ABORTED | {"unacknowledged": 60}, {"end": "rst", "received": 40}),
        ({"got": 20, "unread": 30}, {}),
        ({"cause": "RST", "exact": False}, {"end": "own", "reset": True, "received": 10}),
        ({"cause": "CLOSED", "got": 10}, {"end": "rst"}),  # More came after the close.
        ({}, {"token": None, "received": 100}),
        (ABORTED | {"least": 0, "most": 0}, None),
    ],
)
def test_the_ledger_is_content(
    client: dict[str, Any], peer: dict[str, Any] | None, peer_first: bool
) -> None:
    assert found(client, peer, peer_first=peer_first) == []


@pytest.mark.parametrize("peer_first", [True, False])
@pytest.mark.parametrize(
    ("client", "peer", "what"),
    [
        ({}, {"received": 101}, "more than was accepted"),
        ({}, {"received": 99}, "a clean close promises that"),
        (ABORTED, {"end": "rst", "received": 99}, "what was acknowledged"),
        ({"unacknowledged": 101}, {}, "not so many can be unacknowledged"),
        (ABORTED, {}, "does not see as RST"),
        ({"cause": "RST", "exact": False}, {}, "a RST that nobody has sent"),
        ({}, {"fin": False}, "a FIN that nobody has sent"),
        ({"cause": "CLOSED"}, {"end": "rst"}, "where a FIN was promised"),
        ({"read_by_program": 51, "got": None}, {}, "more was read than the peer has sent"),
        ({"got": 49}, {}, "neither read nor counted as unread"),
        ({}, {"token": None, "received": 10}, "acknowledged and not received"),
        ({}, None, "knows of no such connection"),
    ],
)
def test_the_ledger_finds(
    client: dict[str, Any], peer: dict[str, Any] | None, what: str, peer_first: bool
) -> None:
    assert what in " ".join(found(client, peer, peer_first=peer_first))


@pytest.mark.parametrize("last", ["own", "fin"])
def test_the_ledger_knows_that_a_port_is_used_again(last: str) -> None:
    """An attempt that failed, then one that was acknowledged, and one that was not."""
    ledger = Ledger()
    for end in ("rst", last):
        ledger.peer({**PEER, "token": None, "received": 0, "end": end})
    ledger.client({**CLIENT, "token": 8})
    ledger.client({**CLIENT, "token": 9, "unacknowledged": 100})
    ledger.finish()
    assert ledger.nameless == 2
    assert bool(ledger.broken) == (last == "fin")


def test_a_connection_is_known_by_how_it_begins() -> None:
    token = 0x0123456789ABCDEF
    assert stream.token_in(stream.header(token, (1, 2), stream.WAIT)) == token
    assert stream.token_in(f"GET {stream.path(token, 0, 9)} HTTP/1.1".encode()) == token
    assert stream.token_in(b"\x16\x03\x01\x00\x15" + stream.hostname(token).encode()) == token
    assert stream.token_in(stream.header(token, (1, 2), stream.WAIT)[:11]) is None


def test_bytes_of_another_connection_are_found() -> None:
    account = Account(1, sizes=(0, 1000))
    account.reads(bytes(stream.down(1)[:10]))
    with pytest.raises(BrokenPromiseError, match="others' bytes at 10"):
        account.reads(bytes(stream.down(2)[10:20]))
    with pytest.raises(BrokenPromiseError, match="others' bytes at 10"):
        account.reads(bytes(stream.down(1)[10:1001]))


# What is left, and what is told of it ------------------------------------------------------------


def passing_thread(over: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=over.wait)
    thread.start()
    return thread


def end(thread: threading.Thread, over: threading.Event) -> None:
    over.set()
    thread.join()
    path = f"/proc/self/task/{thread.native_id}"
    kernel.wait_until(lambda: not os.path.exists(path), "the thread has ended")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(condition: Any, what: str) -> None:
        assert condition(), what

    monkeypatch.setattr(kernel, "wait_until", look)


def test_a_thread_that_was_passing_by_is_no_room_for_one_that_is_left(
    request: pytest.FixtureRequest,
) -> None:
    over = threading.Event()
    passing = passing_thread(over)
    state = worker._State()
    end(passing, over)
    state.compare()
    over = threading.Event()
    left = passing_thread(over)
    request.getfixturevalue("impatient")
    try:
        with pytest.raises(BrokenPromiseError, match="left over: threads"):
            state.compare()
    finally:
        over.set()
        left.join()


@pytest.mark.usefixtures("impatient")
def test_a_task_that_is_left_is_found() -> None:
    loop = asyncio.new_event_loop()
    state = worker._State()
    assert state.seen()["tasks"] == 0
    task = loop.create_task(asyncio.sleep(0))
    assert worker._State().seen()["tasks"] == 1
    with pytest.raises(BrokenPromiseError, match="left over: tasks"):
        state.compare()
    loop.run_until_complete(task)
    loop.close()
    state.compare()


def a_run(interruption: Interruption | None = None) -> Run:
    run = Run("1", 60, interruption=interruption)
    run.told["blocking 0"] = {"counts": {"connections": 1234}, "losses": {}, "expected": {}}
    return run


def test_the_summary_shows_what_the_last_look_has_seen() -> None:
    run = a_run()
    before = dict.fromkeys(worker._State().seen(), 0)
    run.ends["asyncio 1"] = {
        "rounds": 9,
        "before": before,
        "after": before | {"close_wait": 3, "tasks": 4, "threads": 5},
    }
    assert "9 rounds: CLOSE_WAIT 3, tasks 4, descriptors +0, threads +5" in as_text(run)


def test_connections_and_bytes_of_the_summary_agree(capsys: pytest.CaptureFixture[str]) -> None:
    counted = Tally(random.Random(1))
    for peer in ("server", "server", "proxy"):
        counted.ended(Account(9), 1, None, None, Policy(), peer=peer)
    run = a_run()
    told = json.loads(capsys.readouterr().out)
    assert told.pop("kind") == "client"
    run.ledger.client(told)  # Of which the peer knows nothing.
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        (ABORTED | {"unacknowledged": 60}, {"end": "rst", "received": 70}),
        (ABORTED | {"unacknowledged": 10}, {"end": "own", "received": 70}),
        (ABORTED | {"unacknowledged": None}, {"end": "own", "received": 95}),
        (ABORTED | {"least": 60}, {"end": "rst", "received": 70}),
    ]
    for number, (client, peer_of_it) in enumerate(pairs):
        run.ledger.client({**CLIENT, **client, "token": number})
        run.ledger.peer({**PEER, **peer_of_it, "token": number})
        counted.counts["connections"] += 1
    run.ledger.client({**CLIENT, "token": 5})
    counted.counts["connections"] += 1
    run.told["blocking 0"] |= {"counts": counted.counts, "losses": counted.losses}
    for unmatched, nameless in ((2, 0), (0, 2)):
        found = as_json(run)
        accounted = found["accounted"]
        assert found["connections"] == 9
        assert accounted == {
            "with the peer's count": 5,
            "of these to the byte": 1,
            "of these by bounds only, and not in the bytes": 1,
            "ended before the peer knew them": nameless,
            "straight to the server: not counted": 2,
            "not matched, as the run was cut short": unmatched,
            "bytes accepted": 400,
            "bytes received": 100 + 70 + 70 + 95,
            "bytes not acknowledged, and told so": 30 + 10,
            "bytes acknowledged, and not read by the peer": 20,
            "bytes lost where no report tells of it": 5,
        }
        run.ledger.finish()


def test_why_a_loss_is_not_told_is_told() -> None:
    counted = Tally(random.Random(1))
    for struck, is_plain in ((False, True), (True, False), (False, False)):
        account = Account(1, struck=struck)
        counted.ended(account, 1, None, None, Policy(), peer="server", is_plain=is_plain)
    assert dict(counted.losses) == {
        "by other people's clients, under enforce: not told": 1,
        "closed while a signal handler raised: not told": 1,
        "forgotten by their owner: not told": 1,
    }
    assert counted.counts[tally.STRAIGHT] == 3


# The command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--seconds", "0", "takes seconds, above 0"),
        ("--seconds", "nan", "takes seconds, above 0"),
        ("--seed", "x", "invalid"),
        ("--at-least", "-3", "takes a number, from 0"),
        ("--only", "it", "invalid"),
        ("--json", "/nowhere/at/all", "cannot be written"),
    ],
)
def test_wrong_arguments_are_told(
    option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([f"{option}={value}"])
    assert f"argument {option}: {words}" in capsys.readouterr().err


BARE = """
import runpy, sys
sys.modules["trustme"] = sys.modules["uvloop"] = None
runpy.run_module("chaos", run_name="__main__", alter_sys=True)
"""


def test_help_takes_no_extra_and_names_the_exit_statuses() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BARE, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    words = " ".join(ended.stdout.split())
    assert "for at most 120 s more; else status 1" in words
    assert "130, it was interrupted" in words
    assert chaos.run.PATIENCE == 120


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those that a command sets are gone when the test is over."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is over at once, and not as promised."""
    monkeypatch.setattr(Run, "go", lambda run: run.broken.append("a promise"))


@pytest.mark.usefixtures("handlers", "goes")
@pytest.mark.parametrize("package", ["trustme", "uvloop"])
def test_a_missing_package_is_told_with_what_brings_it(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert f"error: it takes {package}: pip install -e '.[test]'" in capsys.readouterr().err
    if package == "uvloop":
        assert main(["--only", "blocking"]) == 1


@pytest.mark.usefixtures("handlers", "goes")
def test_how_to_repeat_it_has_all_the_options_that_were_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--seconds=5", "--only=blocking", "--only=asyncio", "--times=2", "--at-least=9"]
    assert main([*given, "--seed", "7"]) == 1
    assert f"Once more: python -m chaos {' '.join(given)} --seed 7\n" in capsys.readouterr().err
    file = str(tmp_path / "two words")
    assert main(["--json", file]) == 1
    seed = json.loads(Path(file).read_text(encoding="utf-8"))["seed"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"Once more: python -m chaos --json '{file}' --seed {seed}"


@pytest.mark.usefixtures("handlers")
def test_the_first_signal_asks_and_the_second_ends_at_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    interruption = Interruption()
    interruption.listen()
    run = a_run(interruption)
    run._turn()
    signal.raise_signal(signal.SIGINT)
    assert run.interrupted
    words = "interrupted: it ends in order; once more ends it at once\n"
    assert capfd.readouterr().err == words
    run._turn()
    signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err == ""
    with pytest.raises(chaos.run._AtOnceError):
        run._turn()


def test_a_run_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run()
    run._turn()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(chaos.run, "_WORD", 0.0)
    run._turn()
    assert capsys.readouterr().err.endswith(" s: 1,234 connections so far\n")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "chaos", *arguments]


@pytest.mark.campaign
@pytest.mark.once
@pytest.mark.parametrize("seed", [1, 2])
def test_under_every_fault_all_is_as_promised(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    arguments = command("--seconds", "8", "--seed", str(seed), "--at-least", "500")
    ended = subprocess.run(
        [*arguments, "--json", str(file)],
        cwd=ROOT,
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["connections"] >= 500
    assert set(report["faults"]) == set(faults.KINDS)
    assert report["accounted"]["of these to the byte"] > 0
    assert report["exceptions"]["OSError(EMFILE)"] > 0
    for what in ("signals", "signals that raised", "jumps of the clock", "ENOBUFS", "retries"):
        assert report["counts"][what] > 0, what
    expected = {"server killed"}
    if why_no_network() is None:
        expected |= {"packets lost", "cable pulled", "link down", "host vanished", "client deaf"}
    assert set(report["disturbances"]) == expected
    assert {"FIN", "RST", "CLOSED"} <= set(report["losses"])


@pytest.mark.campaign
@pytest.mark.once
def test_control_c_ends_it_with_what_there_is(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    arguments = command("--seconds", "600", "--only", "blocking", "--json", str(file))
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("seed ")
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert "; interrupted" in printed
    assert json.loads(file.read_text(encoding="utf-8"))["interrupted"] is True


@pytest.mark.campaign
@pytest.mark.once
def test_control_c_twice_ends_it_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command("--seconds", "600"),
        cwd=ROOT,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("seed ")
        kernel.wait_until(lambda: list(tmp_path.iterdir()), "the arena is made", timeout=TIMEOUT)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("interrupted: ")
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert "; interrupted" in printed
    assert said == ""
    assert list(tmp_path.iterdir()) == []
    assert list(Path("/run/netns").glob(f"safesock-{process.pid}-*")) == []


@pytest.mark.campaign
@pytest.mark.once
def test_control_c_before_anything_has_begun_is_no_traceback() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(command(), cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("seed ")
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert "; interrupted" in printed
    assert said == "interrupted: it ends in order; once more ends it at once\n"
