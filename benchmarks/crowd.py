"""One process with very many idle connections of one kind, which does what it is told.

It is told by words on stdin, and answers each with a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import safesock
import safesock.asyncio
from benchmarks.peers import SPARE, Address, make_room

# What has no policy: it is measured beside what has, and stays in CLOSE_WAIT.
PLAIN = {"SafeSocket": "socket.socket", "under enforce()": "socket.socket"} | {
    "safesock.asyncio": "asyncio"
}
KINDS = tuple(dict.fromkeys([*PLAIN.values(), *PLAIN]))
_AUDITS = 3
_QUIET = 0.0005  # Seconds of CPU in a twentieth of a second.


class Crowd:
    """Those who are told, and the process that they are in, as another one sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def __call__(self, word: str, *arguments: float) -> Any:
        """What it answers. Raises OSError where it has met a limit of the system's."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(word, *arguments, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"{word}: what it has failed by is on stderr"
        answer = json.loads(line)
        if isinstance(answer, str):
            raise OSError(answer)
        return answer


@contextlib.contextmanager
def crowd(kind: str, addresses: list[Address]) -> Iterator[Crowd]:
    command = [sys.executable, "-m", "benchmarks.crowd", kind, json.dumps(addresses)]
    pipe = subprocess.PIPE
    # In a group of its own: Ctrl-C is for this process, which ends that one.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, process_group=0) as process:
        try:
            yield Crowd(process)
        finally:
            process.kill()


# In that process --------------------------------------------------------------------------------


class _Sockets:
    def __init__(self, kind: str, make: Callable[..., Any]) -> None:
        self.held: list[Any] = []
        self._make = make
        self._enforcement = safesock.enforce() if kind == "under enforce()" else None
        self._is_plain = kind in PLAIN.values()
        policy = safesock.Policy() if self._enforcement is None else self._enforcement.policy
        # What is a stream is read all the time, and has no need of one.
        self.grace = 0.0 if kind == "safesock.asyncio" else policy.grace

    def connect(self, addresses: list[Address], count: int) -> None:
        for turn in range(len(self.held), count):
            self.held.append(self._make(addresses[turn % len(addresses)]))

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def next_line(self) -> str:
        return sys.stdin.readline()

    def losses(self) -> int:
        """Those that are recorded; and what the kernel has does not say otherwise."""
        if self._is_plain:
            return 0
        if self._enforcement is not None:
            report = self._enforcement.report()
            assert report.missed == 0
            return report.released
        causes = [None if one.loss is None else one.loss.cause for one in self.held]
        return causes.count(safesock.Cause.FIN)

    def end(self) -> None:
        for sock in self.held:
            assert sock.recv(1) == b""
            sock.close()


class _Streams(_Sockets):
    def __init__(self, kind: str, make: Callable[..., Any]) -> None:
        super().__init__(kind, make)
        self._loop = asyncio.new_event_loop()

    def connect(self, addresses: list[Address], count: int) -> None:
        self._loop.run_until_complete(self._connect(addresses, count))

    async def _connect(self, addresses: list[Address], count: int) -> None:
        for turn in range(len(self.held), count):
            self.held.append(await self._make(*addresses[turn % len(addresses)]))

    def sleep(self, seconds: float) -> None:
        self._loop.run_until_complete(asyncio.sleep(seconds))

    def next_line(self) -> str:
        self._loop.add_reader(sys.stdin.fileno(), self._loop.stop)
        self._loop.run_forever()
        self._loop.remove_reader(sys.stdin.fileno())
        return sys.stdin.readline()

    def losses(self) -> int:
        if self._is_plain:
            return 0
        causes = [None if one.loss is None else one.loss.cause for _, one in self.held]
        return causes.count(safesock.Cause.FIN)

    def end(self) -> None:
        self._loop.run_until_complete(self._end())

    async def _end(self) -> None:
        for reader, writer in self.held:
            assert await reader.read(1) == b""
            writer.close()
        for _, writer in self.held:
            await writer.wait_closed()


class _Told:
    """Each method is a word, but for those of its own."""

    def __init__(self, members: _Sockets, addresses: list[Address]) -> None:
        self._members = members
        self._addresses = addresses
        members.connect(addresses, 1)  # What is made once, such as the watcher, is not counted.
        gc.collect()
        self._resident = _resident()
        self._descriptors = len(os.listdir("/proc/self/fd"))

    def trace(self) -> int:
        """From now on what is connected is counted by tracemalloc."""
        tracemalloc.start()
        return 0

    def connect(self, count: float) -> float:
        """As many as are wanted, all in all; the bytes that each has taken."""
        make_room(int(count) + SPARE)
        more = int(count) - 1
        before, _ = tracemalloc.get_traced_memory()
        had = len(self._members.held)
        self._members.connect(self._addresses, int(count))
        self._become_quiet()
        gc.collect()
        if tracemalloc.is_tracing():
            after, _ = tracemalloc.get_traced_memory()
            return (after - before) / (int(count) - had)
        return (_resident() - self._resident) / more

    def _become_quiet(self) -> None:
        """Those that have just been made are watched a moment later."""
        deadline = time.monotonic() + 60
        while self._used(0.05) > _QUIET:
            assert time.monotonic() < deadline, "it is never quiet"

    def _used(self, seconds: float) -> float:
        before = time.process_time()
        self._members.sleep(seconds)
        return time.process_time() - before

    def idle(self, seconds: float) -> float:
        """Seconds of CPU in so many."""
        return self._used(seconds)

    def audit(self) -> float:
        """Seconds of one of itself."""
        taken = []
        for _ in range(_AUDITS):
            before = time.perf_counter()
            found = safesock.audit()
            taken.append(time.perf_counter() - before)
            assert len(found) == len(self._members.held)
            del found
        return min(taken)

    def grace(self) -> float:
        return self._members.grace

    def losses(self) -> int:
        return self._members.losses()

    def end(self) -> int:
        """How many descriptors are left, when all have been closed."""
        count = len(self._members.held)
        self._members.end()
        self._members.sleep(0)
        left = len(os.listdir("/proc/self/fd")) - self._descriptors + 1
        assert count > 1
        return left


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _members(kind: str) -> _Sockets:
    if kind == "SafeSocket":
        return _Sockets(kind, safesock.create_connection)
    if kind == "safesock.asyncio":
        return _Streams(kind, safesock.asyncio.open_connection)
    if kind == "asyncio":
        return _Streams(kind, asyncio.open_connection)
    return _Sockets(kind, socket.create_connection)


def _obey(kind: str, addresses: list[Address]) -> None:
    members = _members(kind)
    told = _Told(members, addresses)
    while line := members.next_line():
        word, *arguments = line.split()
        try:
            answer = getattr(told, word)(*map(float, arguments))
        except OSError as error:
            answer = f"{type(error).__name__}: {error}"
        try:
            print(json.dumps(answer), flush=True)
        except BrokenPipeError:
            os._exit(1)  # Whoever has asked has been interrupted.


if __name__ == "__main__":
    _obey(sys.argv[1], [(host, port) for host, port in json.loads(sys.argv[2])])
