"""A subscriber that keeps what it is told, for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kernel import wait_until

import safesock
from safesock.events import Event

Kind = TypeVar("Kind", bound=Event)


class Listener:
    """What it has been told of the connections to one peer, and in which threads."""

    def __init__(self, address: Any) -> None:
        self._address = tuple(address[:2])
        self.events: list[Any] = []
        self.threads: list[threading.Thread] = []

    def __call__(self, event: Event) -> None:
        if event.peer is not None and tuple(event.peer[:2]) == self._address:
            self.threads.append(threading.current_thread())
            self.events.append(event)

    def kinds(self, connection: int | None = None) -> list[str]:
        """The names of the events, of this connection or of all."""
        return [
            type(event).__name__ for event in self.events if connection in (None, event.connection)
        ]

    def wait_for(self, kind: type[Kind], count: int = 1) -> Kind:
        """Until there are so many of them; gives the last."""
        wait_until(lambda: len(self._of(kind)) >= count, f"{count} {kind.__name__}")
        return self._of(kind)[-1]

    def _of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]


@contextmanager
def listening(address: Any) -> Iterator[Listener]:
    listener = Listener(address)
    with safesock.subscribe(listener):
        yield listener
