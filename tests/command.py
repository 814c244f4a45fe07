"""The command `safesock` as a process of its own: in a pipe or a terminal, and what it leaves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kernel import wait_until

TIMEOUT = 180
PIPE = subprocess.PIPE
PROGRAM = [sys.executable, "-m", "safesock"]

# Makes stdin the controlling terminal, as a shell does: Ctrl-C then comes from the terminal.
_IN_TERMINAL = """\
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
_LIMITED = """\
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Ended(NamedTuple):
    """What became of a command. In a terminal, `output` has its stderr too."""

    status: int
    output: str
    errors: str

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


class Command:
    """A running command, which knows its own processes by a mark in their environment."""

    def __init__(
        self,
        command: list[str],
        stdout: int,
        stderr: int,
        stdin: int | None = None,
        **environment: str,
    ) -> None:
        self._mark = f"SAFESOCK_TEST={uuid.uuid4()}"
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ("COLUMNS", "LINES", "NO_COLOR", "TERM")
            and not name.startswith("PYTEST")
        }
        name, _, value = self._mark.partition("=")
        if stdin is None:
            stdin = subprocess.DEVNULL if stdout == PIPE else stdout
        self.process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=kept | environment | {name: value, "PYTHONUNBUFFERED": ""},
        )

    def read_until(self, text: bytes) -> None:
        """Through the line that has *text*."""
        assert self.process.stdout is not None
        line = b""
        while text not in line:
            line = self.process.stdout.readline()
            assert line, "its output ended"

    def say(self, data: bytes) -> None:
        """To its stdin, a pipe."""
        assert self.process.stdin is not None
        left = memoryview(data)
        while left:
            left = left[self.process.stdin.write(left) :]

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def read(self, count: int) -> bytes:
        """Exactly so many bytes of its output."""
        assert self.process.stdout is not None
        data = b""
        while len(data) < count:
            assert select.select([self.process.stdout], [], [], TIMEOUT)[0], "no more output"
            part = os.read(self.process.stdout.fileno(), count - len(data))
            assert part, f"its output ended after {data[-100:]!r}"
            data += part
        return data

    def read_errors_until(self, text: str) -> str:
        """Through the line of its stderr that has *text*, which is returned."""
        assert self.process.stderr is not None
        line = ""
        while text not in line:
            line = self.process.stderr.readline().decode()
            assert line, f"its stderr ended before {text!r}"
        return line

    def stop_reading(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.stdout = None

    def end(self) -> Ended:
        output, errors = self.process.communicate(timeout=TIMEOUT)
        return Ended(self.process.returncode, (output or b"").decode(), (errors or b"").decode())

    def processes(self) -> set[int]:
        """Its own and those that it has started, as long as they run."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._mark.encode() in (folder / "environ").read_bytes():
                    found.add(int(folder.name))
        return found

    def leaves_no_process(self) -> None:
        wait_until(lambda: not self.processes(), "all its processes end")


@contextlib.contextmanager
def running(
    command: list[str],
    stdout: int = PIPE,
    stderr: int = PIPE,
    stdin: int | None = None,
    **environment: str,
) -> Iterator[Command]:
    """With its output in pipes, unless told otherwise; no process is left."""
    one = Command(command, stdout, stderr, stdin, **environment)
    try:
        yield one
        one.leaves_no_process()
    finally:
        for pid in one.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        one.process.communicate()


def in_pipe(command: list[str]) -> Ended:
    with running(command) as one:
        return one.end()


def with_descriptors(limit: int, command: list[str]) -> list[str]:
    """*command* with `ulimit -n`."""
    return [sys.executable, "-c", _LIMITED, str(limit), *command]


class Terminal:
    """A terminal that a command runs in."""

    def __init__(self, master: int, command: Command) -> None:
        self._master = master
        self.command = command
        self._output = b""

    def read_until(self, text: bytes) -> None:
        while text not in self._output:
            assert self._read(), self._output

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> Ended:
        while self._read():
            pass
        status = self.command.process.wait(TIMEOUT)
        return Ended(status, self._output.decode().replace("\r\n", "\n"), "")

    def _read(self) -> bool:
        assert select.select([self._master], [], [], TIMEOUT)[0], self._output
        try:
            data = os.read(self._master, 65536)
        except OSError:
            data = b""  # EIO: nobody has the other end any more.
        self._output += data
        return bool(data)


@contextlib.contextmanager
def in_terminal(command: list[str], columns: int = 80, **environment: str) -> Iterator[Terminal]:
    """With so many columns; no process is left."""
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        wrapped = [sys.executable, "-c", _IN_TERMINAL, *command]
        with running(wrapped, slave, slave, slave, **environment) as one:
            os.close(slave)
            yield Terminal(master, one)
    finally:
        os.close(master)
