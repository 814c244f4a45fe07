"""The proxy: `python -m chaos.proxy SEED SERVER_PORT LISTENER...`, the listeners as descriptors.

It passes on what clients and server send, does a drawn fault to each connection, and tells what it
has received and sent, and how the client has ended. It is the peer whose count is held against the
client's, so it reads each connection to its end, unless it resets it.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import selectors
import socket
import sys
import time
from collections.abc import Callable

from chaos.link import Link
from chaos.messages import is_over, tell

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
# Seconds after the end of the run in which what is still open may end.
_LAST = 10.0
# And within which a connection must: over a cable that is pulled, an end may never come.
_LONGEST = 45.0


class Loop:
    """What a `Link` needs of the world: readiness, and time."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self.hurries = False

    def listen(self, sock: socket.socket, events: int, call: Callable[[int], None] | None) -> None:
        """Calls on these *events*; 0 for none."""
        known = sock in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(sock)
        elif known:
            self._selector.modify(sock, events, call)
        else:
            self._selector.register(sock, events, call)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        due = time.monotonic() + (0 if self.hurries else seconds)
        heapq.heappush(self._timers, (due, next(self._number), call))

    def turn(self) -> None:
        now = time.monotonic()
        due = self._timers[0][0] if self._timers else now + 0.2
        for key, events in self._selector.select(min(max(due - now, 0), 0.2)):
            key.data(events)
        now = time.monotonic()
        while self._timers and (self.hurries or self._timers[0][0] <= now):
            heapq.heappop(self._timers)[2]()


class Proxy:
    def __init__(self, seed: str, server: tuple[str, int]) -> None:
        self._rng = random.Random(seed)
        self._server = server
        self._links: set[Link] = set()
        self._loop = Loop()

    def run(self, listeners: list[socket.socket]) -> None:
        for listener in listeners:
            listener.setblocking(False)
            self._loop.listen(listener, READ, self._acceptor(listener))
        tell("ready")
        while not is_over():
            self._loop.turn()
            self._give_up(_LONGEST)
        self._loop.hurries = True
        end = time.monotonic() + _LAST
        self._accept_all(listeners)
        while self._links and time.monotonic() < end:
            self._loop.turn()
        self._give_up(0)

    def _acceptor(self, listener: socket.socket) -> Callable[[int], None]:
        return lambda _: self._accept(listener)

    def _accept_all(self, listeners: list[socket.socket]) -> None:
        for listener in listeners:
            self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                client, address = listener.accept()
                link = Link(
                    self._loop, client, address, self._server, self._rng, self._links.discard
                )
                if not link.is_over():
                    self._links.add(link)

    def _give_up(self, age: float) -> None:
        now = time.monotonic()
        for link in [link for link in self._links if now - link.born > age]:
            link.give_up()


def main(seed: str, port: int, descriptors: list[int]) -> None:
    listeners = [socket.socket(fileno=fd) for fd in descriptors]
    Proxy(seed, ("127.0.0.1", port)).run(listeners)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [int(argument) for argument in sys.argv[3:]])
