"""`python -m chaos`: its accounting finds what is wrong, and for a short while all is well."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chaos import faults, stream
from chaos.__main__ import main
from chaos.arena import why_no_network
from chaos.ledger import Ledger
from chaos.tally import Account, BrokenPromiseError

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


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--seconds", "0", "takes seconds, above 0"),
        ("--seconds", "nan", "takes seconds, above 0"),
        ("--seed", "x", "invalid"),
        ("--only", "it", "invalid"),
        ("--json", "/nowhere/at/all", "cannot be written"),
    ],
)
def test_wrong_arguments_are_told(
    option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([option, value])
    assert f"argument {option}: {words}" in capsys.readouterr().err


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
