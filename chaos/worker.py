"""A client process: `python -m chaos.worker KIND SEED PLACES...`. Rounds of connections, each in
some weather, and after each a look at what is left."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kernel

import safesock
from chaos import weather
from chaos.asynchronous import Asynchronous
from chaos.blocking import Blocking
from chaos.enforced import Enforced
from chaos.messages import is_over, tell
from chaos.places import Places
from chaos.tally import BrokenPromiseError, Tally
from chaos.weather import StruckError, Weather
from safesock.events import BudgetExhausted, Event, Retrying

# Connections of a round, or a little more; and the seconds after which it is over anyway.
_ROUND, _ROUND_SECONDS = 60, 1.0
# Seconds after which a round hangs: then it says where.
_HANGS = 120
_WARM_UP = 6


class Client:
    """What a kind of client is to the worker."""

    def __init__(self, kind: str, places: Places, rng: random.Random, tally: Tally) -> None:
        self._blocking: Any = None
        self._asynchronous: Asynchronous | None = None
        self.weathers: list[tuple[str, Weather]] = [
            ("calm", weather.calm),
            ("signals", weather.signals),
            ("few descriptors", weather.few_descriptors),
            ("jumping clock", weather.jumping_clock),
        ]
        if kind in LOOPS:
            self._asynchronous = Asynchronous(places, rng, tally, LOOPS[kind]())
        else:
            self._blocking = (Blocking if kind == "blocking" else Enforced)(places, rng, tally)
        if kind == "blocking":
            self.weathers.append(("raising handler", weather.raising))

    def round(
        self, sky: contextlib.AbstractContextManager[None], go_on: Callable[[], bool]
    ) -> None:
        if self._asynchronous is not None:
            self._asynchronous.round(_ROUND, sky, go_on)
            return
        with sky:
            for _ in range(_ROUND):
                if go_on():
                    self._blocking.exchange()

    def settle(self) -> None:
        if self._blocking is not None:
            self._blocking.settle()


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


LOOPS: dict[str, Callable[[], Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": lambda: asyncio.SelectorEventLoop,
    "uvloop": _uvloop,
}


class Worker:
    def __init__(self, kind: str, seed: str, places: Places) -> None:
        self._rng = random.Random(f"{seed} {kind}")
        self._tally = Tally(self._rng)
        self._client = Client(kind, places, self._rng, self._tally)
        self._weathers: list[tuple[str, Weather]] = []
        self._rounds = 0
        self._most_close_wait = 0

    def run(self) -> None:
        with safesock.subscribe(self._hear):
            self._warm_up()
            self._report()
            before = _State()
            tell("ready")
            while not is_over():
                self._round()
                before.compare()
                self._report()
            before.compare_memory(self._tally.counts["connections"])
        tell("end", before=before.seen(), after=_State().seen(), rounds=self._rounds)

    def _warm_up(self) -> None:
        """Everything once, without which the first round would have it all."""
        # First with descriptors for the watcher: where it finds none, what is made is not watched.
        self._weathers = [("calm", weather.calm)]
        for _ in range(_WARM_UP):
            self._round()
        gc.collect()
        gc.freeze()  # The rounds look at what they leave, and at no more.

    def _round(self) -> None:
        faulthandler.dump_traceback_later(_HANGS, exit=True)
        if not self._weathers:
            self._weathers = list(self._client.weathers)
            self._rng.shuffle(self._weathers)
        name, sky = self._weathers.pop()
        self._tally.counts[f"rounds: {name}"] += 1
        end = time.monotonic() + _ROUND_SECONDS
        self._client.round(sky(self._rng, self._tally.counts), lambda: time.monotonic() < end)
        self._client.settle()
        self._rounds += 1
        faulthandler.cancel_dump_traceback_later()

    def _hear(self, event: Event) -> None:
        if isinstance(event, Retrying):
            self._tally.counts["retries"] += 1
        elif isinstance(event, BudgetExhausted):
            self._tally.counts["budgets exhausted"] += 1

    def _report(self) -> None:
        tally = self._tally
        tell("counts", counts=tally.counts, expected=tally.expected, losses=tally.losses)


class _State:
    """What this process has, when it has no connection."""

    def __init__(self) -> None:
        gc.collect()
        self.descriptors = kernel.descriptors()
        self.threads = _threads()
        self.close_wait = len(_close_wait())
        self.tasks = len(_tasks())
        self.blocks = sys.getallocatedblocks()
        self.resident = _resident()

    def compare(self) -> None:
        """Raises `BrokenPromiseError` where something is left."""
        gc.collect()
        for what, left in (
            ("connections in CLOSE_WAIT", _close_wait),
            ("descriptors", lambda: kernel.left_open(self.descriptors)),
            ("threads", lambda: range(self.threads, _threads())),
            ("tasks", _tasks),
        ):
            try:
                kernel.wait_until(lambda left=left: not left(), what)  # type: ignore[misc]
            except AssertionError:
                found = f"{what}: {list(left())}; connections: {safesock.audit()}"
                raise BrokenPromiseError(f"left over: {found}") from None
        # One that was only passing by when it was counted is no room for one that is left.
        self.threads = min(self.threads, _threads())

    def compare_memory(self, connections: int) -> None:
        """Raises `BrokenPromiseError` where what was left would add up."""
        after = _State()
        if after.blocks - self.blocks > _BLOCKS + connections * _BLOCKS_EACH:
            raise BrokenPromiseError(f"{after.blocks - self.blocks} blocks of memory more")
        if after.resident - self.resident > _BYTES + connections * _BYTES_EACH:
            raise BrokenPromiseError(f"{after.resident - self.resident} bytes of memory more")

    def seen(self) -> dict[str, Any]:
        return {
            "descriptors": len(self.descriptors),
            "threads": self.threads,
            "close_wait": self.close_wait,
            "tasks": self.tasks,
            "blocks": self.blocks,
            "resident": self.resident,
        }


# What memory may grow by from the end of the warm-up to the end: caches, free lists and what is in
# between fill up once. A connection that left one object would have one block and 50 bytes each.
_BLOCKS, _BLOCKS_EACH = 5000, 0.2
_BYTES, _BYTES_EACH = 8_000_000, 20


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _tasks() -> list[object]:
    """Those that have not ended, of whatever loop, made since the warm-up."""
    alive = (one for one in gc.get_objects() if issubclass(type(one), asyncio.Task))
    return [task for task in alive if not task.done()]


def _close_wait() -> list[str]:
    """The addresses of this process's connections in that state."""
    names = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            names.add(os.readlink(f"/proc/self/fd/{number}"))
    found = []
    with open("/proc/self/net/tcp", encoding="ascii") as lines:
        for line in lines:
            fields = line.split()
            if fields[3] == "08" and f"socket:[{fields[9]}]" in names:
                found.append(f"{fields[1]} to {fields[2]}")
    return found


def _hear_of_unraisable(what: Any) -> None:
    """What `__del__` raised: nothing, unless a signal handler did."""
    if not isinstance(what.exc_value, StruckError):
        tell("broken", what=f"unraisable: {what.exc_value!r} in {what.object!r}")


def main(kind: str, seed: str, places: Places) -> None:
    faulthandler.enable()
    sys.unraisablehook = _hear_of_unraisable
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # It warns of writes after the end.
    try:
        Worker(kind, seed, places).run()
    except BrokenPromiseError as error:
        tell("broken", what=str(error))
    except ExceptionGroup as group:
        errors = group.split(BrokenPromiseError)[0]
        if errors is None:
            raise
        tell("broken", what="; ".join(map(str, errors.exceptions)))
    finally:
        faulthandler.dump_traceback_later(_HANGS / 4, exit=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Places.of(sys.argv[3:]))
