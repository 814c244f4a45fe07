"""Other processes: forked children of the test, and scripts in an interpreter of their own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from kernel import wait_until

TIMEOUT = 180


class Gate:
    """Opened in one process, waited for in another. To be made before the fork."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def open(self) -> None:
        os.write(self._writer, b".")

    def wait(self) -> None:
        assert select.select([self._reader], [], [], TIMEOUT)[0], "the gate stayed shut"
        os.read(self._reader, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._reader)
        os.close(self._writer)


def fork(act: Callable[[], object]) -> int:
    """A child that does *act* and is gone, without the interpreter's exit; status 0 if all went
    well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Other threads: that is the point.
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.alarm(2 * TIMEOUT)
        act()
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def join(pid: int) -> None:
    """Until the child has ended, well."""
    statuses: list[int] = []

    def ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            statuses.append(status)
        return bool(found)

    try:
        wait_until(ended, f"child {pid} ends", TIMEOUT)
    finally:
        if not statuses:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert statuses == [0], "the child's traceback is on stderr"


@contextlib.contextmanager
def forked(act: Callable[[], object]) -> Iterator[None]:
    """A child that does *act*, and is waited for."""
    pid = fork(act)
    try:
        yield
    finally:
        join(pid)


def in_child(act: Callable[[], object]) -> None:
    """Does *act* in a forked child, to the end."""
    join(fork(act))


class Script:
    """A Python program of its own. Once it has ended, `output` is what it has printed."""

    def __init__(self, text: str, *arguments: object) -> None:
        # Forking beside the watcher's thread is the point, not a mistake to be warned of.
        command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", text]
        command += [str(argument) for argument in arguments]
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self.output = ""

    def go_on(self) -> None:
        """The script's next `input()` returns."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def read_line(self) -> str:
        """What it prints next. Waits for it; fails where the script has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        assert line, self._process.communicate()[1].decode()
        return line.rstrip()

    def join(self) -> str:
        """Until it has ended, well and with nothing on stderr; what it has printed."""
        printed, complaints = self._process.communicate(timeout=TIMEOUT)
        assert complaints.decode() == ""
        assert self._process.returncode == 0
        self.output = printed.decode()
        return self.output

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


def run_script(text: str, *arguments: object) -> str:
    """Runs it to its end; what it has printed."""
    with Script(text, *arguments) as script:
        return script.join()
