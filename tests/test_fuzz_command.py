"""The command line from random arguments: one line of what is wrong, or what was asked for."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from command import PROGRAM, in_pipe
from fuzzing import LETTERS, each_length, hold
from hypothesis import strategies as st
from peer import Peer

from safesock import _audit_command, _netcat, _run, cli
from safesock._connector import Connector

ANY = st.text(LETTERS, max_size=8)
LONG = st.sampled_from(["9" * 5000, "-" * 300, "1" * 21, "a" * 300, "-1", "1e400", "nan", "inf"])
NUMBERS = st.integers(-2, 70000).map(str) | st.floats().map(str) | LONG
WORDS = st.sampled_from(["graceful", "abort", "drain", "linger=2", "drain=", "linger=0", "abort=1"])
MODES = WORDS | NUMBERS.map("drain={}".format) | NUMBERS.map("linger={}".format)
PLACES = st.sampled_from(["10.0.0.0/8:514", "[::1]", ":80", "[::1]:80", "::1", "a:1", ":0", ""])
PLACES |= NUMBERS.map(":{}".format) | NUMBERS.map("127.0.0.1:{}".format)
FLAGS = [
    "--help",
    "-h",
    "--version",
    "--json",
    "--all",
    "--tls",
    "-q",
    "--quiet",
    "--report",
    "--",
    "-m",
]
OPTIONS = {
    "--pid": NUMBERS,
    "--older-than": NUMBERS,
    "--local-port": NUMBERS,
    "--close": MODES,
    "--attempts": NUMBERS,
    "--deadline": NUMBERS,
    "--timeout": NUMBERS,
    "--wait": NUMBERS,
    "--grace": NUMBERS,
    "--sweep": NUMBERS,
    "--except": PLACES,
}


def option(name: str) -> st.SearchStrategy[list[str]]:
    value = OPTIONS[name] | ANY
    return value.map(lambda text: [name, text]) | value.map(lambda text: [f"{name}={text}"])


TOKENS = (
    st.sampled_from(list(OPTIONS)).flatmap(option)
    | st.sampled_from(FLAGS).map(lambda word: [word])
    | (ANY | NUMBERS | PLACES | st.sampled_from(list(OPTIONS))).map(lambda word: [word])
)
ARGUMENTS = st.lists(TOKENS, max_size=5).map(
    lambda parts: [word for part in parts for word in part]
)
# Those that are right in themselves: what is wrong is one of them at most.
FIT = {
    "audit": ["--pid", "--older-than"],
    "connect": ["--local-port", "--close", "--attempts", "--deadline", "--timeout", "--wait"],
    "run": ["--close", "--grace", "--sweep", "--except"],
    "demo": [],
}


def arguments(command: str) -> st.SearchStrategy[list[str]]:
    """Any, or options of the command's own."""
    own = [option(name) for name in FIT[command]]
    fitting = st.lists(st.one_of(own), max_size=3) if own else st.just([])
    flat = fitting.map(lambda parts: [word for part in parts for word in part])
    last = {"connect": ["127.0.0.1:9"], "run": ["--", "program", "--its", "own"]}.get(command, [])
    return ARGUMENTS | flat.map(lambda words: words + last)


class Began(Exception):  # noqa: N818 - it is none
    """What was asked for would have begun."""


def begins(*_: object) -> NoReturn:
    raise Began


class Output(io.StringIO):
    """As a terminal's or a pipe's: what is no UTF-8 cannot be written, but for stderr."""

    def __init__(self, errors: str) -> None:
        super().__init__()
        self._errors = errors

    def write(self, text: str) -> int:
        return super().write(text.encode("utf-8", self._errors).decode())


def status_of(words: list[str]) -> tuple[int | None, str, str]:
    """The exit status, or None where the command would have begun; what it has printed."""
    output, errors = Output("strict"), Output("backslashreplace")
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status: Any = cli.main(words)
        except SystemExit as ended:
            status = ended.code
        except Began:
            status = None
    assert status is None or type(status) is int
    return status, output.getvalue(), errors.getvalue()


def is_one_line(words: list[str]) -> None:
    """What comes of them: one line of what is wrong, help, or what was asked for."""
    status, output, errors = status_of(words)
    if status == 2:
        assert output == ""
        assert errors.startswith("safesock")
        assert ": error: " in errors
        assert errors.endswith("\n")
        assert len(errors.splitlines()) == 1, errors
    elif status is None:
        assert (output, errors) == ("", "")
    else:
        assert status in (0, 1, 126, 127)
        assert output or errors
    assert "Traceback" not in errors


@pytest.fixture(autouse=True)
def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A program takes the place of this process, a netcat and a demo take their time, and an audit
    looks at all that there is."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGPIPE, signal.SIGXFSZ)}
    monkeypatch.setattr(os, "execvpe", begins)
    monkeypatch.setattr(_netcat, "run", begins)
    monkeypatch.setattr(_audit_command, "run", begins)
    monkeypatch.setattr(cli, "_demo", begins)
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("command", FIT)
@each_length(40, 200)
def test_random_arguments_are_one_clear_line_or_understood(command: str, examples: int) -> None:
    hold(examples, lambda words: is_one_line([command, *words]), arguments(command))


@each_length(30, 150)
def test_so_are_random_commands(examples: int) -> None:
    hold(examples, is_one_line, ARGUMENTS)


@each_length(30, 150)
def test_what_run_understands_the_program_understands_too(
    examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options travel as text."""
    found: list[tuple[list[str], dict[str, str]]] = []

    def execute(_: str, command: list[str], environment: dict[str, str]) -> NoReturn:
        found.append((command, environment))
        raise Began

    monkeypatch.setattr(os, "execvpe", execute)

    def claim(words: list[str], own: list[str]) -> None:
        found.clear()
        status, _, _ = status_of(["run", *words, "--", "program", *own])
        for command, environment in found:
            assert status is None
            assert command == ["program", *own]
            assert environment["PYTHONPATH"].split(os.pathsep)[0] == _run.BOOTSTRAP
            options = environment[_run.OPTIONS]
            policy, _, only = _run._meant_by(
                [
                    (name, value)
                    for name, _, value in (one.partition("=") for one in options.split(";"))
                ]
            )
            assert policy.on_loss == "release"
            assert (only is not None) == any(word.startswith("--except") for word in words)

    parts = st.lists(st.one_of([option(name) for name in FIT["run"]]), max_size=3)
    words = parts.map(lambda parts: [word for part in parts for word in part])
    hold(examples, claim, words, st.lists(ANY | st.sampled_from(FLAGS), max_size=3))


@each_length(30, 150)
def test_what_connect_understands_is_what_it_does(
    examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[Connector, float]] = []

    def run(connector: Connector, tls: object, news: object, wait: float) -> NoReturn:
        assert tls is None
        assert news is not None
        found.append((connector, wait))
        raise Began

    monkeypatch.setattr(_netcat, "run", run)

    def claim(values: dict[str, str]) -> None:
        found.clear()
        words = [f"{name}={value}" for name, value in values.items()]
        status, _, _ = status_of(["connect", "127.0.0.1:9", *words])
        assert (status is None) == bool(found)
        for connector, wait in found:
            choice = connector._recovery._choice
            assert choice.attempts == int(values.get("--attempts", 8))
            assert choice.deadline == float(values.get("--deadline", 60))
            assert connector._to._timeout == float(values.get("--timeout", 10))
            assert wait == float(values.get("--wait", 5))
            port = values.get("--local-port")
            assert connector._to.local_address == (None if port is None else ("", int(port)))
            connector.close()

    fields = {name: OPTIONS[name] | ANY for name in FIT["connect"]}
    hold(examples, claim, st.fixed_dictionaries({}, optional=fields))


# Really -----------------------------------------------------------------------------------------


@pytest.fixture
def for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()


@pytest.mark.usefixtures("for_real")
@each_length(4, 30)
def test_connect_to_who_refuses_or_answers(
    examples: int, peer: Peer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # Nobody listens there, and nobody else can.
        refuses = held.getsockname()[1]

        def claim(answers: bool, mode: str, attempts: int, quiet: bool) -> None:
            port = peer.address[1] if answers else refuses
            words = ["connect", f"127.0.0.1:{port}", "--close", mode, "--wait", "0"]
            words += ["--attempts", str(attempts), "--deadline", "60" if answers else "1"]
            words += ["-q"] * quiet
            with open(os.devnull) as nothing, monkeypatch.context() as patch:
                patch.setattr(sys, "stdin", nothing)
                patch.setattr(sys, "stdout", sys.__stdout__)
                status = cli.main(words)
            output, errors = capfd.readouterr()
            assert output == ""
            assert "Traceback" not in errors
            assert status == (0 if answers else 1)
            assert answers or errors.count("\n") >= 1
            if answers:
                peer.accept().close()

        modes = st.sampled_from(["graceful", "abort", "drain=0", "linger=1"])
        hold(examples, claim, st.booleans(), modes, st.integers(1, 2), st.booleans())


@pytest.mark.usefixtures("for_real")
@each_length(4, 20)
def test_audits_of_what_may_be_there(examples: int) -> None:
    def claim(pid: int, older_than: str, as_json: bool) -> None:
        words = ["audit", "--pid", str(pid), "--older-than", older_than, *["--json"] * as_json]
        status, output, errors = status_of(words)
        assert status in (0, 1, 2)
        assert bool(output) == (status != 2)
        if status == 2:
            assert len(errors.splitlines()) == 1

    pids = st.sampled_from([os.getpid(), os.getppid(), 2**22 + 1, 2**31, 10**19])
    hold(examples, claim, pids, st.sampled_from(["0", "1e6", "2147483"]), st.booleans())


@pytest.mark.campaign
@pytest.mark.usefixtures("for_real")
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--", "true"], 0),
        (["--close", "drain=0.5", "--grace", "0", "--", "false"], 1),
        (["--except", ":80", "--sweep", "0.1", "--", "true", "\udc80", ""], 0),
        (["--", "/"], 126),
        (["--", ""], 126),
        (["--", "no\nsuch\x1bprogram"], 127),
    ],
)
def test_run_ends_as_its_program_does(words: list[str], status: int) -> None:
    ended = in_pipe([*PROGRAM, "run", *words])
    assert ended.status == status
    assert ended.output == ""
    assert len(ended.errors.splitlines()) == (status > 1)


# What these have found --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["connect", f"a:{'9' * 5000}"], "HOST:PORT takes a host and a port number"),
        (["run", "--except", f":{'9' * 5000}", "--", "true"], "--except takes HOST, HOST:PORT or"),
    ],
    ids=["connect", "run"],
)
def test_a_port_of_thousands_of_digits_is_refused_by_name(words: list[str], told: str) -> None:
    status, _, errors = status_of(words)
    assert status == 2
    assert told in errors
