"""How long an audit of very many sockets takes: of another process, by the command, and of one's
own.

The process has both ends of each connection, and half of the ends are in CLOSE_WAIT.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import safesock
from benchmarks.report import Row

_WANTED = 50_000
_SPARE = 100
# Of each address of the listening end: there are no more ports to connect from.
_FROM_EACH = 10_000


def rows(quick: bool) -> list[Row]:
    wanted = 2_000 if quick else _WANTED
    times = 1 if quick else 3
    with _holder(wanted) as process:
        assert process.stdout is not None
        count = int(process.stdout.readline())
        # The last FIN may be on its way still.
        while len(safesock.audit(process.pid).found()) < count // 2:
            time.sleep(0.05)
        other = min(_seconds(process.pid, count) for _ in range(times))
        command = min(_seconds_of_command(process.pid, count) for _ in range(times))
        assert process.stdin is not None
        process.stdin.write("\n" * times)
        process.stdin.close()
        own = min(float(process.stdout.readline()) for _ in range(times))
    return [
        Row(f"audit of {count:,} sockets of another process", other, 2.0, "s"),
        Row("the same by the command, with --json", command, 2.0, "s"),
        Row("the same in the process itself", own, 2.0, "s"),
    ]


@contextlib.contextmanager
def _holder(wanted: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.audited", str(wanted)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _seconds(pid: int, count: int) -> float:
    start = time.perf_counter()
    found = safesock.audit(pid)
    taken = time.perf_counter() - start
    _check(found, count)
    return taken


def _check(found: safesock.Audit, count: int) -> None:
    assert len(found) == count
    assert len(found.found()) == count // 2
    assert all(one.age is not None for one in found.found())


def _seconds_of_command(pid: int, count: int) -> float:
    command = [sys.executable, "-m", "safesock", "audit", "--pid", str(pid), "--json"]
    start = time.perf_counter()
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    taken = time.perf_counter() - start
    assert ended.returncode == 1
    assert len(json.loads(ended.stdout)) == count
    return taken


def _hold(wanted: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # Not root: with what there is.
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted + _SPARE, max(hard, wanted + _SPARE)))
    room, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if room < wanted + _SPARE:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        room = hard
    ends = []
    for turn in range(min(wanted, room - _SPARE) // 2):
        if turn % _FROM_EACH == 0:
            listener = socket.create_server((f"127.0.1.{turn // _FROM_EACH + 1}", 0))
        ends.append(socket.create_connection(listener.getsockname()))
        ends.append(listener.accept()[0])
        ends[-1].shutdown(socket.SHUT_WR)
    print(len(ends), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        found = safesock.audit()
        taken = time.perf_counter() - start
        _check(found, len(ends))
        print(taken, flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        _hold(int(sys.argv[1]))
    else:
        print(*rows(quick=False), sep="\n")
