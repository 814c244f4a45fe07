"""What events cost: connecting and closing with nobody who listens, with a subscriber, and with the
log at DEBUG.

Each kind of program is a process of its own; they take turns.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import time

import safesock
from benchmarks.report import Row, compared
from benchmarks.server import serving
from benchmarks.workers import ask, working

_CALLS = 100


def rows(quick: bool) -> list[Row]:
    rounds = 10 if quick else 200
    found = []
    with (
        serving("echo") as address,
        working("listened", "nobody", address) as nobody,
        working("listened", "subscriber", address) as subscriber,
        working("listened", "log", address) as log,
    ):
        for what, worker in (("a subscriber", subscriber), ("the log at DEBUG", log)):
            both = compared(functools.partial(ask, worker), lambda: ask(nobody), rounds)
            title = f"connect and close with {what}, CPU"
            found.append(both.row(title, "nobody who listens", each=_CALLS))
    return found


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
