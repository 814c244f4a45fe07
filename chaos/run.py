"""A run: starts all, disturbs it, hears what the processes tell, and ends it."""

from __future__ import annotations

import contextlib
import json
import random
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from chaos import KINDS
from chaos.arena import Arena, Process, arena, why_no_network
from chaos.interruption import Interruption
from chaos.ledger import Ledger

# Seconds for the clients' last round, and for the proxy's last connections.
_LAST_ROUND, _LAST_LINKS = 150, 30
_LARGE = 1 << 16
# And for as many connections as there have to be.
PATIENCE = 120.0
_WORD = 10.0


class _AtOnceError(Exception):
    """The run is to end without what is usually done then."""


class Run:
    """*seconds*, from when the clients are warm; longer, until there are *at_least* so many
    connections, where the machine is slow."""

    def __init__(
        self,
        seed: str,
        seconds: float,
        kinds: tuple[str, ...] = KINDS,
        at_least: int = 0,
        interruption: Interruption | None = None,
    ) -> None:
        self.seed, self.seconds, self.kinds, self.at_least = seed, seconds, kinds, at_least
        self.ledger = Ledger()
        self.broken: list[str] = []
        self.left_out: str | None = None
        self.elapsed = 0.0
        self.told: dict[str, dict[str, Any]] = {}
        self.ends: dict[str, dict[str, Any]] = {}
        self.disturbed: Counter[str] = Counter()
        self._interruption = interruption or Interruption()
        self._rng = random.Random(f"{seed} run")
        self._selector = selectors.DefaultSelector()
        self._rest: dict[Process, bytes] = {}
        self._ready: set[str] = set()
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._is_ending = False
        self._began = self._said = time.monotonic()

    @property
    def interrupted(self) -> bool:
        return self._interruption.asked

    def counts(self, which: str = "counts") -> Counter[str]:
        """Those of all clients together."""
        total: Counter[str] = Counter()
        for told in self.told.values():
            total.update(told[which])
        return total

    def go(self) -> None:
        self.left_out = why_no_network()
        self._began = self._said = time.monotonic()
        with arena(self.seed) as made:
            # Whatever is asked for, the arena is left as any other: nothing of it stays behind.
            with contextlib.suppress(_AtOnceError):
                if not self.interrupted:
                    self._go(made)
            self.elapsed = time.monotonic() - self._began
        self.broken += self.ledger.broken

    def _go(self, made: Arena) -> None:
        proxy, clients = self._begin(made)
        end = time.monotonic() + _LAST_ROUND
        names = {client.name for client in clients}
        while not self._ready >= names and self._may_go_on(clients, end):
            self._turn()
        if not self._ready >= names and not self.interrupted:
            self.broken.append(f"not ready: {', '.join(sorted(names - self._ready))}")
        end = time.monotonic() + self.seconds
        while self._may_go_on(clients, end):
            self._turn()
        end += PATIENCE
        while self.counts()["connections"] < self.at_least and self._may_go_on(clients, end):
            self._turn()
        if (made_so_far := self.counts()["connections"]) < self.at_least and not self.interrupted:
            self.broken.append(f"{made_so_far} connections only, and not {self.at_least}")
        self._is_ending = True
        for _, call in self._timers:
            call()  # What is the matter with the cable is over, and the server is there.
        self._end(clients, _LAST_ROUND)
        self._end([proxy], _LAST_LINKS)
        if not self.broken:
            self.ledger.finish()

    def _may_go_on(self, clients: list[Process], until: float) -> bool:
        if ended := [client for client in clients if client not in self._rest]:
            self._has_died(ended)
        is_wanted = not (self.interrupted or self.broken or self.ledger.broken)
        return is_wanted and time.monotonic() < until

    def _begin(self, made: Arena) -> tuple[Process, list[Process]]:
        self._made = made
        proxy = made.start_proxy()
        for process in (made.start_server(), proxy):
            self._hear(process)
        while not {"server", "proxy"} <= self._ready:
            self._turn()
        clients = made.start_clients(self.kinds)
        for client in clients:
            self._hear(client)
        self._later(1.0, self._kill_the_server)
        if made.disturbances is not None:
            self._later(0.5, self._disturb)
        return proxy, clients

    def _end(self, processes: list[Process], seconds: float) -> None:
        for process in processes:
            process.end()
        deadline = time.monotonic() + seconds
        while any(process in self._rest for process in processes):
            self._turn()
            if time.monotonic() > deadline:
                self.broken.append(f"{processes[0].name} does not end")
                return
        self._has_died([process for process in processes if process.wait(10)])

    def _has_died(self, processes: list[Process]) -> None:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(10)
                if not self.broken:
                    self.broken.append(f"the client {process.name} ended with status {status}")

    # What is done to them -------------------------------------------------------------------------

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        if not self._is_ending:
            self._timers.append((time.monotonic() + seconds, call))

    def _kill_the_server(self) -> None:
        if self._is_ending:
            return
        assert self._made.server is not None
        self._made.server.kill()
        self.disturbed["server killed"] += 1
        self._later(self._rng.uniform(0.02, 0.4), self._start_the_server)

    def _start_the_server(self) -> None:
        self._hear(self._made.start_server())
        self._later(self._rng.uniform(1, 4), self._kill_the_server)

    def _disturb(self) -> None:
        if self._is_ending:
            return
        assert self._made.disturbances is not None
        name, begin, end = self._made.disturbances.draw(self._rng)
        begin()
        self.disturbed[name] += 1

        def calm_down() -> None:
            end()
            self._later(self._rng.uniform(0.2, 0.8), self._disturb)

        self._later(self._rng.choice((0.05, 0.3, 1.0)), calm_down)

    # What they tell -------------------------------------------------------------------------------

    def _hear(self, process: Process) -> None:
        self._rest[process] = b""
        self._selector.register(process.lines, selectors.EVENT_READ, process)

    def _turn(self) -> None:
        """Raises `_AtOnceError` where that is wanted."""
        if self._interruption.at_once:
            raise _AtOnceError
        for key, _ in self._selector.select(0.05):
            self._read(key.data)
        now = time.monotonic()
        for timer in [timer for timer in self._timers if timer[0] <= now and not self._is_ending]:
            self._timers.remove(timer)
            timer[1]()
        if now - self._said >= _WORD:
            self._said = now
            made = self.counts()["connections"]
            words = f"{now - self._began:.0f} s: {made:,} connections so far"
            print(words, file=sys.stderr, flush=True)

    def _read(self, process: Process) -> None:
        data = process.lines.read1(_LARGE)  # type: ignore[attr-defined]
        if not data:
            self._selector.unregister(process.lines)
            process.lines.close()
            del self._rest[process]
            return
        *lines, self._rest[process] = (self._rest[process] + data).split(b"\n")
        for line in lines:
            self._told(process, json.loads(line))

    def _told(self, process: Process, what: dict[str, Any]) -> None:
        kind = what.pop("kind")
        if kind == "client":
            self.ledger.client(what)
        elif kind == "peer":
            self.ledger.peer(what)
        elif kind == "counts":
            self.told[process.name] = what
        elif kind == "end":
            self.ends[process.name] = what
        elif kind == "ready":
            self._ready.add(process.name)
        else:
            self.broken.append(f"{process.name}: {what['what']}")
