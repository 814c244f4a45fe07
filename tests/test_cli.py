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
        (["--help"], ["usage: safesock [-h]", "demo "]),
        (
            ["demo", "--help"],
            ["usage: safesock demo [-h]", "exit status: 0 if", "NO_COLOR", "TERM"],
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
print(*roots - sys.stdlib_module_names)
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
