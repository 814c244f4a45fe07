"""`safesock demo`: what is left of client sockets whose server closes, plain ones and safesock's.

The same calls are made on both sides, and nobody calls close(). Every number that is shown is the
kernel's (`_demo_kernel`), of this process, in which the clients are alone (`_demo_server`).
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable
from typing import TextIO, TypeAlias

import safesock
from safesock import _demo_kernel as kernel
from safesock._demo_kernel import Count
from safesock._demo_screen import POOLS_HEAD, Attempt, Screen, ports_head
from safesock._demo_server import HOST, Server
from safesock._kernel import TcpState, set_reuse_address

# To this address, from this local port (0: any).
Connect: TypeAlias = Callable[[tuple[str, int], int], socket.socket]

POOL = 50  # Connections on either side of act 1, if the descriptor limit allows.
TURNS = 5  # Connections from the same port in act 2.
IDLE, AT_MOST = 4.0, 8.0  # Seconds that act 1 waits, and on a machine that is slow.
BEAT = 0.5  # Seconds to read a line.
_TICK = 0.1
_TIMEOUT = 2.0
_AT_REST = (None, TcpState.CLOSE_WAIT)
_SPARE = 16  # Descriptors for everything but the pools.


class CannotShowError(Exception):
    """This system does not let the demo show what it is about; the message says why."""


def plain_connection(address: tuple[str, int], local_port: int) -> socket.socket:
    """As clients connect that want a fixed port back: with SO_REUSEADDR."""
    sock = socket.socket()
    try:
        sock.settimeout(_TIMEOUT)
        if local_port:
            set_reuse_address(sock, True)
            sock.bind((HOST, local_port))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def safe_connection(address: tuple[str, int], local_port: int) -> socket.socket:
    """As the README says."""
    source = (HOST, local_port) if local_port else None
    return safesock.create_connection(address, _TIMEOUT, source)


class Side:
    """Clients of one kind. They keep every socket, as a pool does, and close none."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self.inodes: set[int] = set()
        self.sockets: list[socket.socket] = []

    def request(self, address: tuple[str, int], local_port: int = 0) -> socket.socket:
        """A new connection, and a first request on it."""
        sock = self._connect(address, local_port)
        self.sockets.append(sock)
        self.inodes.add(os.fstat(sock.fileno()).st_ino)
        sock.sendall(b"?")
        sock.recv(1)
        return sock

    def close(self) -> None:
        """By hand, at last."""
        for sock in self.sockets:
            sock.close()


class Show:
    """The server, both sides, and the screen with its clock. *pace* 0 leaves the pauses out."""

    def __init__(self, screen: Screen, server: Server, sides: tuple[Side, Side], pace: float):
        self.screen = screen
        self.server = server
        self.sides = self.plain, self.safe = sides
        self.pace = pace
        self._began = time.monotonic()
        self._seen: list[Count] = []

    def look(self, text: str, *, event: bool = True) -> list[Count]:
        """At the kernel's counts: a line that stays for an event, and for each change."""
        counts = kernel.counts(self.plain.inodes, self.safe.inodes)
        row = self.screen.pools_row(time.monotonic() - self._began, text, *counts)
        if event or counts != self._seen:
            self.screen.say(row)
            self._seen = counts
        self.screen.draw(row)
        return counts

    def watch(self, text: str, seconds: float, until: Callable[[Count, Count], bool]) -> bool:
        """Goes on looking for so many seconds, and on a slow machine until it is so."""
        start = time.monotonic()
        while True:
            done = until(*self.look(text, event=False))
            passed = time.monotonic() - start
            if passed >= (seconds * self.pace if done else AT_MOST):
                return done
            time.sleep(_TICK)


def run(
    stream: TextIO | None,
    plain: Connect = plain_connection,
    safe: Connect = safe_connection,
    pace: float = 1.0,
) -> int:
    """Shows it. Gives the exit status: 0 only if the *safe* side left nothing, by the kernel."""
    if not kernel.can_tell():
        raise CannotShowError(
            "CLOSE_WAIT and descriptors are counted in /proc, which is not here: it takes Linux"
        )
    screen = Screen(stream)
    size = _pool_size(screen)
    before = set(kernel.sockets())
    sides = Side(plain), Side(safe)
    with contextlib.ExitStack() as stack:
        stack.callback(screen.erase)
        for side in sides:
            stack.callback(side.close)
        show = Show(screen, stack.enter_context(Server()), sides, pace)
        idle = _idle_pools(show, size)
        port, used = _fixed_port(show)
        show.plain.close()
        (left,) = kernel.counts(set(kernel.sockets()) - before)
        return _verdict(screen, Count(max(left.close_wait, idle), left.descriptors), port, used)


def _idle_pools(show: Show, size: int) -> int:
    """Act 1. Gives the idle safesock connections that stayed in CLOSE_WAIT."""
    screen, server = show.screen, show.server
    screen.say(f"1. {size} idle connections on either side, and the server closes them", "bold")
    screen.say(POOLS_HEAD, "dim")
    for side in show.sides:
        for _ in range(size):
            side.request(server.address)
    show.look("a request on each")
    show.watch("idle", BEAT, lambda *_: True)
    server.close_on_all()
    if not show.watch("the server closes them", 0, lambda plain, _: plain.close_wait == size):
        raise CannotShowError("/proc/net/tcp does not show this process's sockets in CLOSE_WAIT")
    show.watch("idle", IDLE, lambda _, safe: safe.close_wait == 0)
    idle = show.look("still idle")[1].close_wait
    ends = [_reads_end(sock) for side in show.sides for sock in side.sockets]
    show.look(f'recv() gave b"" on {"each" if all(ends) else sum(ends)}')
    show.watch("recv() was called", 2 * BEAT, lambda *_: True)
    show.plain.close()
    show.look("close() on the plain ones")
    show.watch("", BEAT, lambda *_: True)
    return idle


def _fixed_port(show: Show) -> tuple[int, int]:
    """Act 2. Gives safesock's port, and how often it was used."""
    screen = show.screen
    ports = _free_ports()
    screen.say()
    screen.say(f"2. {TURNS} connections, one after the other, from one fixed local port", "bold")
    screen.say(ports_head(*ports), "dim")
    used = 0
    errors: dict[str, None] = {}  # Each once, in their order.
    for turn in range(1, TURNS + 1):
        plain = _attempt(show.server, show.plain, ports[0])
        safe = _attempt(show.server, show.safe, ports[1])
        screen.say(screen.ports_row(turn, plain, safe))
        used += safe.error is None
        for name, error in ("plain", plain.error), ("safesock", safe.error):
            if error:
                errors[f"{name}, with SO_REUSEADDR set: {error}"] = None
        time.sleep(BEAT * show.pace)
    for text in errors:
        screen.say(text)
    return ports[1], used


def _attempt(server: Server, side: Side, port: int) -> Attempt:
    """Connects from this port; the server closes, and the client reads the end."""
    try:
        sock = side.request(server.address, port)
    except TimeoutError:
        raise  # Five of these would take too long.
    except OSError as error:
        return Attempt(error, kernel.state_of_port(port))
    if kernel.state_of_port(port) is not TcpState.ESTABLISHED:
        raise CannotShowError(f"/proc/net/tcp does not show the connection from port {port}")
    server.close_on_all()
    _reads_end(sock)
    deadline = time.monotonic() + _TIMEOUT
    # A FIN of ours that is under way holds the port, too: LAST_ACK.
    while (state := kernel.state_of_port(port)) not in _AT_REST and time.monotonic() < deadline:
        time.sleep(_TICK / 10)
    return Attempt(None, state)


def _reads_end(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return False


def _verdict(screen: Screen, left: Count, port: int, used: int) -> int:
    nothing = left == Count(0, 0)
    times = f"{used} times" if used == TURNS else f"{used} of {TURNS} times"
    screen.say()
    screen.say(
        f"safesock left{' nothing' * nothing}: {left.close_wait} in CLOSE_WAIT, "
        f"{left.descriptors} descriptors, port {port} used {times}",
        "green" if nothing and used == TURNS else "red",
    )
    return 0 if nothing and used == TURNS else 1


def _pool_size(screen: Screen) -> int:
    free = kernel.free_descriptors()
    size = min(POOL, (free - _SPARE) // 2)
    if size < 1:
        raise CannotShowError(f"only {free} more descriptors may be opened: raise `ulimit -n`")
    screen.say("A server closes on its clients. Both sides make the same calls; close() comes")
    screen.say("last, and for the plain ones. Counted in /proc/self/net/tcp and /proc/self/fd.")
    if size < POOL:
        screen.say(f"Only {free} more descriptors may be opened (ulimit -n): a smaller pool.")
    screen.say()
    return size


def _free_ports() -> tuple[int, int]:
    """Two local ports that nobody uses; if possible none that the kernel gives to others."""
    free: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in (*random.sample(range(10_000, 30_000), 20), 0, 0):
            probe = stack.enter_context(socket.socket())  # Bound, so that the next is another.
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                free.append(probe.getsockname()[1])
            if len(free) == 2:
                return free[0], free[1]
    raise CannotShowError(f"no two local ports of {HOST} are free")
