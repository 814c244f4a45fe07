"""`safesock audit`, on processes that the tests start."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import kernel
import pytest
from command import PROGRAM, Ended, in_pipe, in_terminal, running
from peer import Peer
from test_audit import holding, wait_for_state

from safesock import HeldConnection, _audit_words, cli

AUDIT = [*PROGRAM, "audit"]
# The command where there is no rich and no psutil.
WITHOUT_EXTRAS = """
import sys
sys.modules["rich"] = sys.modules["psutil"] = None
from safesock import cli
sys.exit(cli.main(["audit", *sys.argv[1:]]))
"""
PLAIN = [sys.executable, "-c", WITHOUT_EXTRAS]


def of(pid: int, *options: str, command: list[str] = AUDIT) -> Ended:
    return in_pipe([*command, "--pid", str(pid), *options])


def objects(ended: Ended) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ended.output)
    return found


def test_a_healthy_process_is_status_0(peer: Peer) -> None:
    with holding(peer.address) as (script, (fd,)):
        ended = of(script.pid)
    assert (ended.status, ended.errors) == (0, "")
    assert ended.lines[0].startswith(f"process {script.pid} (")
    assert ended.lines[0].endswith("): 1 connection")
    assert ended.lines[1].split() == list(_audit_words.HEAD)
    assert f"to 127.0.0.1:{peer.address[1]}" in ended.lines[2]
    assert f" {fd}  ESTABLISHED " in ended.lines[2]
    assert ended.lines[-1] == "nothing is in CLOSE_WAIT: 1 connection looked at"


@pytest.mark.parametrize("command", [AUDIT, PLAIN], ids=["with rich", "without"])
def test_close_wait_is_status_1_and_a_verdict_that_says_what_to_do(
    peer46: Peer, command: list[str]
) -> None:
    host, port = peer46.address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with holding(*[peer46.address] * 7) as (script, _):
        for _ in range(7):
            peer46.accept().fin()
        wait_for_state(script, peer46, "CLOSE_WAIT")
        ended = of(script.pid, command=command)
    assert (ended.status, ended.errors) == (1, "")
    told = ended.lines[-1]
    assert told.startswith(f"7 connections in CLOSE_WAIT to {where}, the oldest for ")
    assert "the server closed them, and the program has not" in told
    assert "safesock run -- ..." in told
    assert "safesock.enforce()" in told
    assert [line.strip() for line in ended.lines if "more" in line] == ["and 2 more"]


def test_json_is_a_list_with_all_there_is_to_know(peer46: Peer) -> None:
    host, port = peer46.address
    with holding(peer46.address, peer46.address) as (script, fds):
        ends = peer46.accept(), peer46.accept()
        local = {end.sock.getpeername()[1] for end in ends}
        ends[0].say(b"bye")
        ends[0].fin()
        kernel.wait_until(lambda: of(script.pid).status == 1, "the FIN arrives")
        ended = of(script.pid, "--json")
        later = of(script.pid, "--json", "--older-than", "3600")
    assert (ended.status, later.status, ended.errors) == (1, 0, "")
    closed, alive = objects(ended)
    assert {closed["fd"], alive["fd"]} == set(fds)
    assert (closed["state"], alive["state"]) == ("CLOSE_WAIT", "ESTABLISHED")
    assert (closed["found"], alive["found"]) == (True, False)
    assert (closed["unread"], closed["unacknowledged"]) == (3, 0)
    assert closed["age"] > 0
    assert alive["age"] is None
    bracketed = f"[{host}]" if ":" in host else host
    for one in (closed, alive):
        assert one["pid"] == script.pid
        assert one["peer"] == f"{bracketed}:{port}"
    assert {one["local"] for one in (closed, alive)} == {f"{bracketed}:{one}" for one in local}
    assert [one["found"] for one in objects(later)] == [False, False]


def test_what_is_younger_is_not_found_and_the_verdict_says_so(peer: Peer) -> None:
    with holding(peer.address) as (script, _):
        peer.accept().fin()
        wait_for_state(script, peer, "CLOSE_WAIT")
        ended = of(script.pid, "--older-than", "3600")
        kernel.wait_until(lambda: of(script.pid, "--older-than", "0.1").status == 1, "it is older")
    assert ended.status == 0
    assert ended.lines[-1].startswith("nothing is in CLOSE_WAIT for longer than 1 h: 1 connection")


def test_a_lost_connection_is_found_though_no_table_has_it(peer: Peer) -> None:
    with holding(peer.address) as (script, _):
        peer.accept().rst()
        kernel.wait_until(lambda: of(script.pid).status == 1, "the RST arrives")
        ended = of(script.pid, "--older-than", "3600")
    assert ended.status == 1
    assert "CLOSE (lost)" in ended.output
    assert ended.lines[-1].startswith("1 connection is over, by reset or timeout, and the program")


def test_without_a_process_all_that_can_be_read_are_shown(peer: Peer) -> None:
    with holding(peer.address) as (script, (fd,)):
        for options in (["--json"], ["--json", "--all"]):
            found = objects(in_pipe([*AUDIT, *options]))
            assert (script.pid, fd) in {(one["pid"], one["fd"]) for one in found}


def test_a_process_that_is_not_there_is_one_line_and_status_2() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    status, output, errors = of(gone.pid)
    assert (status, output) == (2, "")
    assert errors == f"safesock: error: [Errno 3] there is no process {gone.pid}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--pid", "x"], "--pid takes the number of a process: not 'x'"),
        (["--pid", "0"], "--pid takes the number of a process: not '0'"),
        (["--pid", "00"], "--pid takes the number of a process: not '00'"),
        (["--pid", "9" * 5000], "--pid takes the number of a process: not one of 5000 digits"),
        (["--pid", "²"], "--pid takes the number of a process: not '²'"),
        (["--older-than", "soon"], "--older-than takes a number: not 'soon'"),
        (["--older-than", "-1"], "--older-than takes seconds from 0 to "),
        (["--older-than", "nan"], "--older-than takes seconds from 0 to "),
        (["--pid", "1", "--all"], "argument --all: not allowed with argument --pid"),
        (["--json", "--watch"], "argument --watch: not allowed with argument --json"),
        (["more"], "unrecognized arguments: more"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_arguments_are_one_line_and_status_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", *arguments])
    output, errors = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert errors.startswith("safesock audit: error: ")
    assert told in errors
    assert errors.count("\n") == 1


def test_help_fits_a_terminal() -> None:
    status, output, errors = in_pipe([*AUDIT, "--help"])
    assert (status, errors) == (0, "")
    assert "exit status: 0 if nothing is left behind" in output
    assert max(map(len, output.splitlines())) <= 88


def test_without_rich_watch_names_the_extra() -> None:
    status, output, errors = in_pipe([*PLAIN, "--watch"])
    assert (status, output) == (2, "")
    assert errors == "safesock: error: --watch takes rich: pip install 'safesock[cli]'\n"


def test_watch_shows_what_becomes_of_a_connection_until_ctrl_c(peer: Peer) -> None:
    with holding(peer.address) as (script, _):
        command = [*AUDIT, "--pid", str(script.pid), "--watch"]
        with in_terminal(command, columns=120, TERM="xterm") as terminal:
            terminal.read_until(b"nothing is in CLOSE_WAIT")
            peer.accept().fin()
            terminal.read_until(b"1 connection in CLOSE_WAIT")
            terminal.press(b"\x03")
            status, output, _ = terminal.end()
    assert status == 130
    assert "Traceback" not in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l"), "the cursor is shown again"


def test_watch_gives_the_terminal_back_at_sigterm(peer: Peer) -> None:
    with holding(peer.address) as (script, _):
        command = [*AUDIT, "--pid", str(script.pid), "--watch"]
        with in_terminal(command, columns=120, TERM="xterm") as terminal:
            terminal.read_until(b"nothing is in CLOSE_WAIT")
            terminal.command.process.send_signal(signal.SIGTERM)
            status, output, _ = terminal.end()
    assert status == 143
    assert "Traceback" not in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l"), "the cursor is shown again"


def test_watch_has_its_verdict_on_a_screen_that_is_too_small() -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer()) for _ in range(30)]
        script, _ = stack.enter_context(holding(*(peer.address for peer in peers)))
        command = [*AUDIT, "--pid", str(script.pid), "--watch"]
        terminal = stack.enter_context(in_terminal(command, columns=120, TERM="xterm"))
        terminal.read_until(b"nothing is in CLOSE_WAIT: 30 connections looked at")
        terminal.press(b"\x03")
        assert terminal.end().status == 130


def test_watch_in_a_pipe_is_plain_text_and_ends_with_its_reader(peer: Peer) -> None:
    with holding(peer.address) as (script, _):
        with running([*AUDIT, "--pid", str(script.pid), "--watch"]) as command:
            command.read_until(b"nothing is in CLOSE_WAIT")
            command.read_until(b"nothing is in CLOSE_WAIT")
            command.stop_reading()
            assert command.end().status == 141
        with running([*AUDIT, "--pid", str(script.pid), "--watch"]) as command:
            command.read_until(b"nothing is in CLOSE_WAIT")
            command.process.send_signal(signal.SIGINT)
            assert command.end()[::2] == (130, "")


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["plain", "json"])
def test_without_a_stdout_there_is_a_status(peer: Peer, options: list[str]) -> None:
    with holding(peer.address) as (script, _):
        peer.accept().fin()
        wait_for_state(script, peer, "CLOSE_WAIT")
        command = [*AUDIT, "--pid", str(script.pid), *options]
        assert in_pipe(["sh", "-c", 'exec "$@" >&-', "sh", *command]) == (1, "", "")


def test_without_a_stdout_there_is_nothing_to_watch() -> None:
    status, _, errors = in_pipe(["sh", "-c", 'exec "$@" >&-', "sh", *AUDIT, "--watch"])
    assert status == 2
    assert errors == "safesock: error: --watch takes a stdout, and it is closed\n"


NOTES = """
import os, sys
from safesock import Audit, _audit_command, cli
_audit_command.audit_host = lambda unowned: Audit((), ("this could not be read",))
if sys.argv[1:]:
    sys.stderr = None  # As Python has it where the descriptor is closed.
sys.exit(cli.main(["audit", "--json"]))
"""


def test_notes_never_get_into_the_json() -> None:
    command = [sys.executable, "-c", NOTES]
    assert in_pipe(command) == (0, "[]\n", "safesock: this could not be read\n")
    assert in_pipe([*command, "without stderr"]) == (0, "[]\n", "")


def test_a_terminal_without_rich_gets_plain_lines(peer: Peer) -> None:
    with (
        holding(peer.address) as (script, _),
        in_terminal([*PLAIN, "--pid", str(script.pid)]) as terminal,
    ):
        status, output, _ = terminal.end()
    assert status == 0
    assert "\x1b" not in output
    assert output.endswith("nothing is in CLOSE_WAIT: 1 connection looked at\n")


def test_a_process_cannot_write_to_the_terminal_by_its_name(tmp_path: Path) -> None:
    text = "import socket; a = socket.create_server(('127.0.0.1', 0))\n"
    text += "b = socket.create_connection(a.getsockname()); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", text, "\x1b[31m[bold]\n"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ended = of(process.pid)
        process.communicate(b"\n")
    assert ended.status == 0
    assert "\x1b" not in ended.output


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (250, "4 min 10 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (11_520, "3 h 12 min"),
        (90_000, "1 d 1 h"),
        (4_000_000, "46 d 7 h"),
    ],
)
def test_durations_are_told_in_two_units(seconds: float, told: str) -> None:
    assert _audit_words.duration(seconds) == told


def one(port: int, age: float | None = 1.0, **fields: Any) -> HeldConnection:
    local = ("10.0.0.1", 1000 + port)
    given = {"peer": ("10.0.0.5", port), "state": "CLOSE_WAIT", **fields}
    return HeldConnection(
        1, port, given.pop("state"), age, local, given.pop("peer"), 0, 0, port, **given
    )


@pytest.mark.parametrize(
    ("ones", "told"),
    [
        ([one(1)], "1 connection in CLOSE_WAIT to 10.0.0.5:1, for 1 s: the server closed it, "),
        ([one(1), one(1)], "1 connection in CLOSE_WAIT to 10.0.0.5:1, for 1 s: "),
        ([one(1, None)], "1 connection in CLOSE_WAIT to 10.0.0.5:1: the server closed it, "),
        (
            [one(1), one(2), one(3, peer=("10.0.0.5", 1), age=7)],
            "3 connections in CLOSE_WAIT with 2 peers, 2 of them to 10.0.0.5:1, the oldest for 7 s",
        ),
        (
            [one(1, accepted=True), one(2, accepted=True)],
            "2 connections in CLOSE_WAIT with 2 peers",
        ),
    ],
)
def test_the_verdict_says_how_many_to_whom_and_for_how_long(
    ones: list[HeldConnection], told: str
) -> None:
    import safesock

    assert _audit_words.verdict(safesock.Audit(tuple(ones)), None).startswith(told)
