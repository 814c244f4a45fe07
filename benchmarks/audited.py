"""How long an audit of very many sockets takes, by the library and by the command.

They are held by one process, or several where the system gives a process fewer descriptors. Each
has both ends of its connections, and one end of each is in CLOSE_WAIT.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

import safesock
from benchmarks.report import Row
from safesock._audit import audit_host

_WANTED = 50_000
_SPARE = 100
# Of each address of the listening end: there are no more ports to connect from.
_FROM_EACH = 10_000


def rows(quick: bool) -> list[Row]:
    wanted = 2_000 if quick else _WANTED
    times = 1 if quick else 5
    with contextlib.ExitStack() as stack:
        pids: set[int] = set()
        count = 0
        while count < wanted:
            process = stack.enter_context(_holder(wanted - count))
            assert process.stdout is not None
            count += int(process.stdout.readline())
            pids.add(process.pid)
        # The last FIN may be on its way still.
        while _of(pids, audit_host(unowned=False).found()) < count // 2:
            time.sleep(0.05)
        library = min(_seconds(pids, count) for _ in range(times))
        command = min(_seconds_of_command(pids, count) for _ in range(times))
    return [
        Row(f"audit of {count:,} sockets", library[0], 2.0, "s", f"{library[1]:.2f} s of CPU"),
        Row(
            f"audit of {count:,} sockets by the command",
            command[0],
            2.0,
            "s",
            f"{command[1]:.2f} s of CPU",
        ),
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


def _of(pids: set[int], ones: Iterable[safesock.HeldConnection]) -> int:
    return sum(one.pid in pids for one in ones)


def _seconds(pids: set[int], count: int) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    found = audit_host(unowned=False)
    taken = time.perf_counter() - start, time.process_time() - cpu
    assert _of(pids, found) == count
    assert _of(pids, found.found()) == count // 2
    assert all(one.age is not None for one in found.found() if not one.lost)
    return taken


def _seconds_of_command(pids: set[int], count: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "safesock", "audit", "--json"]
    start, cpu = time.perf_counter(), _cpu_of_children()
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    taken = time.perf_counter() - start, _cpu_of_children() - cpu
    assert ended.returncode == 1
    assert sum(one["pid"] in pids for one in json.loads(ended.stdout)) == count
    return taken


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1:]:
        _hold(int(sys.argv[1]))
    else:
        print(*rows(quick=False), sep="\n")
