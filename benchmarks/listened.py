"""What events cost: connecting and closing with nobody who listens, with a subscriber, and with the
log at DEBUG.

Each kind of program is a process of its own; they take turns.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import safesock
from benchmarks.report import Row, median_ratio
from benchmarks.server import serving

_CALLS = 100


def rows(quick: bool) -> list[Row]:
    rounds = 10 if quick else 200
    found = []
    with (
        serving("echo") as address,
        _worker("nobody", address) as nobody,
        _worker("subscriber", address) as subscriber,
        _worker("log", address) as log,
    ):
        for what, worker in (("a subscriber", subscriber), ("the log at DEBUG", log)):
            ratio, spread = median_ratio(
                functools.partial(_told, worker), lambda: _told(nobody), rounds
            )
            found.append(Row(f"connect and close with {what}", ratio, None, "x", f"±{spread:.3f}"))
    return found


@contextlib.contextmanager
def _worker(kind: str, address: tuple[str, int]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.listened", kind, *map(str, address)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _told(worker: subprocess.Popen[str]) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def _work(kind: str, host: str, port: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    told: list[safesock.events.Event] = []
    if kind == "subscriber":
        safesock.subscribe(told.append)
    if kind == "log":
        logging.basicConfig(level="DEBUG", handlers=[logging.NullHandler()])
    for _ in sys.stdin:
        told.clear()
        start = time.thread_time()
        for _ in range(_CALLS):
            safesock.create_connection((host, int(port))).close()
        print(time.thread_time() - start, flush=True)
        assert kind != "subscriber" or len(told) == 3 * _CALLS


if __name__ == "__main__":
    _work(*sys.argv[1:])
