from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from command import PROGRAM, TIMEOUT, in_pipe, in_terminal, running, with_descriptors

import safesock
from safesock import cli

DEMO = [*PROGRAM, "demo"]


def test_the_version_is_the_packages() -> None:
    assert in_pipe([*PROGRAM, "--version"]) == (0, f"safesock {safesock.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--help"], ["usage: safesock [-h]", "demo ", "connect "]),
        (
            ["demo", "--help"],
            ["usage: safesock demo [-h]", "exit status: 0 if", "NO_COLOR", "TERM"],
        ),
        (
            ["connect", "--help"],
            ["usage: safesock connect [-h]", "exit status:", "SSL_CERT_FILE", "--local-port N"],
        ),
    ],
    ids=" ".join,
)
def test_help_tells_what_there_is(arguments: list[str], told: list[str]) -> None:
    status, output, errors = in_pipe([*PROGRAM, *arguments])
    assert (status, errors) == (0, "")
    assert [text for text in told if text not in output] == []
    assert max(map(len, output.splitlines())) <= 88


@pytest.mark.parametrize(
    "arguments",
    [[], ["frobnicate"], ["--frobnicate"], ["--vers"], ["demo", "more"], ["demo", "a\nb"], [""]],
    ids=repr,
)
def test_wrong_arguments_are_one_line_and_status_2(arguments: list[str]) -> None:
    status, output, errors = in_pipe([*PROGRAM, *arguments])
    assert (status, output) == (2, "")
    assert errors.startswith("safesock")
    assert ": error: " in errors
    assert "--help" in errors
    assert errors.count("\n") == 1
    assert errors.endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: HOST:PORT"),
        (["example.org"], "HOST:PORT takes a host and a port number: not 'example.org'"),
        ([":80"], "HOST:PORT takes a host and a port number: not ':80'"),
        (["[]:80"], "HOST:PORT takes a host and a port number: not '[]:80'"),
        (["example.org:http"], "takes a host and a port number: not 'example.org:http'"),
        (["example.org:²"], "takes a host and a port number: not 'example.org:²'"),
        (["::1:80"], "HOST:PORT takes an IPv6 address, and no other, as [::1]:80: not '::1:80'"),
        (["[localhost]:80"], "and no other, as [::1]:80: not '[localhost]:80'"),
        (["a:0"], "address takes a port from 1 to 65535: not 0"),
        (["a:65536"], "address takes a port from 1 to 65535: not 65536"),
        (["a:1", "--local-port", "65536"], "takes a port from 0 to 65535: not 65536"),
        (["a:1", "--local-port", "-1"], "takes a port from 0 to 65535: not -1"),
        (["a:1", "--local-port", "http"], "--local-port takes a number: not 'http'"),
        (["a:1", "--local-port", "1.0"], "--local-port takes a whole number: not '1.0'"),
        (["a:1", "--attempts", "0"], "Reconnect(attempts) takes a whole number from 1 to "),
        (["a:1", "--attempts", "1.5"], "Reconnect(attempts) takes a whole number from 1 to "),
        (["a:1", "--attempts", "²"], "--attempts takes a number: not '²'"),
        (["a:1", "--deadline", "0"], "Reconnect(deadline) takes seconds above 0: not 0"),
        (["a:1", "--deadline", "inf"], "Reconnect(deadline) takes seconds from 0 to "),
        (["a:1", "--deadline", ""], "--deadline takes a number: not ''"),
        (["a:1", "--timeout", "nan"], "timeout takes seconds above 0: not nan"),
        (["a:1", "--wait", "-1"], "--wait takes seconds from 0 to 2147484: not -1"),
        (["a:1", "--close", "kill"], "--close takes graceful, drain, drain=SECONDS, linger, "),
        (["a:1", "--close", "abort=1"], "--close takes graceful, drain, drain=SECONDS, linger, "),
        (["a:1", "--close", "drain="], "--close takes a number: not ''"),
        (["a:1", "--close", "drain=-1"], "Drain(timeout) takes seconds from 0 to "),
        (["a:1", "--close", "linger=0"], "write Abort() if that is what you want"),
        (["a:1", "--close", "linger=1.5"], "Linger(seconds) takes a whole number from 1 to "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_of_connect_are_one_line_and_status_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["connect", *arguments])
    assert ended.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("safesock connect: error: ")
    assert told in errors
    assert errors.endswith(" (see safesock connect --help)\n")
    assert errors.count("\n") == 1


def test_the_defaults_of_connect_are_the_librarys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["connect", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    default = safesock.Reconnect()
    assert f"(default: {default.attempts})" in text
    assert f"--deadline SECONDS for one outage (default: {default.deadline:g})" in text


def test_the_installed_command_is_main() -> None:
    (command,) = entry_points(group="console_scripts", name="safesock")
    assert command.load() is cli.main


def test_main_takes_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"safesock {safesock.__version__}\n"


def test_nothing_but_the_standard_library_is_imported() -> None:
    text = """\
import sys
before = set(sys.modules)
from safesock import _demo, cli
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
# Python's own too, though it is on no list.
print(*roots - sys.stdlib_module_names - {"_xxsubinterpreters"})
"""
    assert in_pipe([sys.executable, "-c", text]) == (0, "safesock\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["demo"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_error(arguments: list[str]) -> None:
    with running([*PROGRAM, *arguments]) as command:
        command.stop_reading()
        assert command.end() == (141, "", "")


def test_the_demo_ends_when_its_reader_goes() -> None:
    with running(DEMO) as command:
        command.read_until(b"\n")
        command.stop_reading()
        assert command.end() == (141, "", "")


@pytest.mark.parametrize("arguments", [["--help"], ["demo"]], ids=" ".join)
def test_a_full_disk_is_one_line_and_status_2(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [*PROGRAM, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            env={"PATH": ""},
            timeout=TIMEOUT,
            check=False,
        )
    assert (ended.returncode, ended.stderr.decode()) == (
        2,
        "safesock: error: [Errno 28] No space left on device\n",
    )


def test_ctrl_c_in_a_pipe_is_status_130() -> None:
    with running(DEMO) as command:
        command.read_until(b"\n")
        command.process.send_signal(signal.SIGINT)
        status, _, errors = command.end()
    assert (status, errors) == (130, "")


def test_ctrl_c_in_a_terminal_is_status_130_and_leaves_a_clean_line() -> None:
    with in_terminal(DEMO) as terminal:
        terminal.read_until(b"\r\x1b[K")
        terminal.press(b"\x03")
        status, output, _ = terminal.end()
    assert status == 130
    assert "Traceback" not in output
    assert "KeyboardInterrupt" not in output
    assert output.removesuffix("^C").endswith("\r\x1b[K")


def test_a_killed_demo_takes_its_server_with_it() -> None:
    with running(DEMO) as command:
        command.read_until(b"a request on each")
        assert len(command.processes()) == 2
        command.process.kill()
        assert command.end().status == -signal.SIGKILL


def test_without_room_for_descriptors_the_demo_says_so() -> None:
    status, output, errors = in_pipe(with_descriptors(16, DEMO))
    assert (status, output) == (2, "")
    assert errors.startswith("safesock: error: only ")
    assert "ulimit -n" in errors
    assert errors.count("\n") == 1


def test_without_proc_the_demo_says_what_it_cannot_show(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.sh"
    hidden.write_text('mount -t tmpfs none /proc && exec "$@"\n')
    status, output, errors = in_pipe(["unshare", "-rm", "sh", str(hidden), *DEMO])
    assert (status, output) == (2, "")
    assert errors.startswith("safesock: error: CLOSE_WAIT and descriptors are counted in /proc")
    assert errors.count("\n") == 1
