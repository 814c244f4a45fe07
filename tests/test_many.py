"""Many connectors at once, whose server goes away and comes back: they do not come back as one."""

from __future__ import annotations

import contextlib
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kernel
import pytest
import tenacity
from process import Script

from safesock import Abort, Cause, Connector, Policy, Reconnect, create_connection

# A thousand threads share two cores, and with other tests: it is only to end some time.
TIMEOUT = 300.0
STACK = 512 * 1024
SEED = 1

# Accepts until it is told to close: by FIN, and with it the listening socket; by RST at the end.
SERVER = """
import selectors, socket, struct, sys

def accept_until_told(listener):
    held = []
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if listener in ready:
                held.append(listener.accept()[0])
            elif sys.stdin in ready:
                input()
                return held

with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
    address = listener.getsockname()
    print(address[1], flush=True)
    held = accept_until_told(listener)
for sock in held:
    sock.close()
print("gone", flush=True)
input()
with socket.create_server(address, backlog=4096) as listener:
    print("back", flush=True)
    held = accept_until_told(listener)
for sock in held:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
print(len(held))
"""


class Server:
    def __init__(self, script: Script) -> None:
        self._script = script
        self.address = ("127.0.0.1", int(script.read_line()))

    def goes(self) -> None:
        self._script.go_on()
        assert self._script.read_line() == "gone"

    def comes_back(self) -> None:
        self._script.go_on()
        assert self._script.read_line() == "back"

    def resets_all(self) -> int:
        """How many there were."""
        self._script.go_on()
        return int(self._script.join())


class Count:
    """Of threads that have come to some point."""

    def __init__(self) -> None:
        self._number = 0
        self._changed = threading.Condition()

    def up(self) -> None:
        with self._changed:
            self._number += 1
            self._changed.notify_all()

    def wait_for(self, number: int) -> None:
        with self._changed:
            reached = self._changed.wait_for(lambda: self._number >= number, TIMEOUT)
            assert reached, f"{self._number} of {number}"


class Clients:
    """Each connects, loses its connection, comes back, and meets a reset."""

    def __init__(self, address: tuple[str, int], wait: tenacity.wait.wait_base) -> None:
        self._address = address
        self._wait = wait
        self.connected, self.refused_twice, self.back = Count(), Count(), Count()
        # Seconds from a client's loss to when it was to try, not counting the first time, which
        # nobody waits for. Not of the clock: on a busy machine all wait for their turn.
        self.tries: list[float] = []
        self._lost = threading.local()
        self._locals: list[Any] = []
        self._connectors: list[Connector] = []

    @contextlib.contextmanager
    def closed_at_last(self) -> Iterator[None]:
        try:
            yield
        finally:
            for connector in self._connectors:
                connector.close()

    def live(self) -> None:
        reconnect = Reconnect(attempts=100, deadline=TIMEOUT, wait=self._waiting)
        with Connector(self._address, reconnect=reconnect, timeout=TIMEOUT) as connector:
            self._connectors.append(connector)
            self._lost.waits = 0.0
            sock = connector.connect()
            connector.confirm()
            self._locals.append(sock.getsockname())
            self.connected.up()
            assert sock.recv(1) == b""
            self._lost.at = time.monotonic()
            assert sock.loss is not None
            assert sock.loss.cause is Cause.FIN
            sock = connector.connect()
            self._has_tried()
            self._locals.append(sock.getsockname())
            self.back.up()
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b"", "it says nothing"

    def states(self) -> Counter[str]:
        """Of their ends of all connections that the kernel has anything left of."""
        table = kernel.connections()
        found = (table.get((local, self._address)) for local in set(self._locals))
        return Counter(state for state in found if state is not None)

    def _waiting(self, state: tenacity.RetryCallState) -> float:
        if state.attempt_number > 1:
            self._has_tried()
        if state.attempt_number == 2:
            self.refused_twice.up()
        seconds = float(self._wait(state))
        self._lost.waits += seconds
        return seconds

    def _has_tried(self) -> None:
        waited: float = self._lost.waits
        assert time.monotonic() - self._lost.at > 0.99 * waited, "it has slept for that"
        self.tries.append(waited)


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """Descriptors and small stacks for so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    stack = threading.stack_size(STACK)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(2 * count + 500, hard)), hard))
        yield
    finally:
        threading.stack_size(stack)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def come_back(count: int, wait: tenacity.wait.wait_base) -> list[float]:
    """When they tried to, in order, in seconds from the loss."""
    random.seed(SEED)
    with ThreadPoolExecutor(count) as threads, Script(SERVER) as script:
        server = Server(script)
        # Starts the watcher, which has a descriptor of its own.
        create_connection(server.address, TIMEOUT, policy=Policy(Abort())).close()
        descriptors = kernel.descriptors()
        clients = Clients(server.address, wait)
        with clients.closed_at_last():
            lives = [threads.submit(clients.live) for _ in range(count)]
            clients.connected.wait_for(count)
            server.goes()
            clients.refused_twice.wait_for(count)
            assert clients.states()["CLOSE_WAIT"] == 0
            server.comes_back()
            clients.back.wait_for(count)
            assert clients.states() == {"ESTABLISHED": count}
            assert server.resets_all() == count
            for life in lives:
                life.result(TIMEOUT)
        kernel.wait_until(lambda: not clients.states(), "nothing is left")
        assert kernel.left_open(descriptors) == []  # The pipes to the server are closed.
    return sorted(clients.tries)


def most_within(seconds: float, moments: list[float]) -> float:
    """The share of the moments that fall into so many seconds, where they are closest."""
    most = begin = 0
    for end, moment in enumerate(moments):
        while moment - moments[begin] > seconds:
            begin += 1
        most = max(most, end + 1 - begin)
    return most / len(moments)


def histogram(title: str, moments: list[float], step: float) -> str:
    bars = Counter(int(moment / step) for moment in moments)
    lines = [f"{title}: attempts by the time since the loss, without the first"]
    for bar in range(max(bars) + 1):
        line = "#" * round(bars[bar] * 100 / len(moments))
        lines.append(f"{bar * step:6.2f} s {bars[bar]:5} {line}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("count", "seconds"), [(50, 0.4), pytest.param(1000, 4.0, marks=pytest.mark.campaign)]
)
def test_all_come_back_spread_in_time_and_nothing_is_left(count: int, seconds: float) -> None:
    step = seconds / 8
    waits: dict[str, Callable[..., tenacity.wait.wait_base]] = {
        "full jitter": tenacity.wait_random_exponential,
        "no jitter": tenacity.wait_exponential,
    }
    shares = {}
    with room_for(count):
        for title, wait in waits.items():
            moments = come_back(count, wait(multiplier=seconds, max=seconds))
            shares[title] = most_within(step, moments)
            print(histogram(title, moments, step))
    assert shares["full jitter"] < 0.6 * shares["no jitter"], shares
