"""A storm: many threads do at random whatever can be done to the sockets that they share, while
their peers do the same."""

from __future__ import annotations

import contextlib
import faulthandler
import random
import selectors
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kernel

import safesock
from safesock import Abort, Drain, Graceful, Linger, Policy, Reconnect, SafeSocket
from safesock._ward import ward_of

# Seconds within which all threads end, also on a machine that has much else to do.
PATIENCE = 150
_RESET = struct.pack("ii", 1, 0)
MODES = [Graceful(), Drain(0.02), Linger(1), Abort()]


def mark(port: int) -> bytes:
    """The only byte that goes to and fro on the connection of this local port of the client's."""
    return bytes([port % 251 + 1])


class PlainServer:
    """Accepts, and sends data, FIN and RST at random; sees to it that no byte is of another
    connection, where *marked*."""

    def __init__(self, seed: int, marked: bool) -> None:
        self.faults: list[str] = []
        self._random = random.Random(seed)
        self._marked = marked
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.address = self._listener.getsockname()
        self._ends: dict[socket.socket, bytes] = {}
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with self._listener, selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._is_over:
                for key, _ in selector.select(0.005):
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    else:
                        self._read(selector, key.fileobj)
                for end in self._random.sample(list(self._ends), min(len(self._ends), 4)):
                    self._act(selector, end)
            for end in list(self._ends):
                self._drop(selector, end)

    def _accept(self, selector: Any) -> None:
        with contextlib.suppress(OSError):
            end, peer = self._listener.accept()
            end.setblocking(False)
            self._ends[end] = mark(peer[1]) if self._marked else b"\0"
            selector.register(end, selectors.EVENT_READ)

    def _read(self, selector: Any, end: Any) -> None:
        try:
            data = end.recv(65536)
        except OSError:
            data = b""
        if data.strip(self._ends[end]):
            self.faults.append(f"a stranger's bytes came: {data[:20]!r}")
        if not data:
            self._drop(selector, end)

    def _act(self, selector: Any, end: socket.socket) -> None:
        act = self._random.random()
        with contextlib.suppress(OSError):
            if act < 0.5:
                end.send(self._ends[end] * self._random.choice([1, 100, 20_000]))
            elif act < 0.65:
                end.shutdown(socket.SHUT_WR)
            elif act < 0.8:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._drop(selector, end)
            elif act < 0.9:
                self._drop(selector, end)

    def _drop(self, selector: Any, end: socket.socket) -> None:
        selector.unregister(end)
        del self._ends[end]
        end.close()


class TlsServer:
    """The same with TLS, which sees to the bytes by itself."""

    def __init__(self, seed: int, context: ssl.SSLContext) -> None:
        self.faults: list[str] = []
        self._random = random.Random(seed)
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(0.1)
        self.address = self._listener.getsockname()
        self._is_over = False
        self._pool = ThreadPoolExecutor(6, "tls-server")
        self._pool.submit(self._run)

    def close(self) -> None:
        self._is_over = True
        self._pool.shutdown()

    def _run(self) -> None:
        with self._listener:
            while not self._is_over:
                with contextlib.suppress(TimeoutError):
                    self._pool.submit(self._serve, self._listener.accept()[0])

    def _serve(self, end: socket.socket) -> None:
        with end:
            end.settimeout(0.2)
            try:
                with self._context.wrap_socket(end, server_side=True) as tls:
                    self._talk(tls)
            except OSError as error:
                # What a stranger wrote into the middle of it.
                if getattr(error, "reason", None) in _CLUTTER:
                    self.faults.append(repr(error))

    def _talk(self, tls: ssl.SSLSocket) -> None:
        for _ in range(self._random.randrange(20)):
            if self._is_over:
                return
            act = self._random.random()
            if act < 0.4:
                tls.send(bytes(self._random.choice([1, 5000])))
            elif act < 0.8:
                tls.settimeout(0.01)
                with contextlib.suppress(TimeoutError):
                    tls.recv(50_000)
                tls.settimeout(0.2)
            elif act < 0.9:
                tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                return
            else:
                return


_CLUTTER = {
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "BAD_RECORD_TYPE",
}


class Shared:
    """A place for a socket that all threads share."""

    def __init__(self, make: Callable[[random.Random], Any], *, is_tls: bool, gives: bytes | None):
        self.make = make
        self.is_tls = is_tls
        # None: by the port.
        self.gives = gives
        self.sock: Any = None
        # OpenSSL's objects are not for two threads at a time.
        self.turn: Any = threading.Lock() if is_tls else contextlib.nullcontext()


class Storm:
    """*threads* threads, which do *acts* acts each with as many places as there are *makers*."""

    def __init__(self, seed: int, places: list[Shared], threads: int, acts: int) -> None:
        self.faults: list[str] = []
        self.detached: set[int] = set()
        self.done: Counter[str] = Counter()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._file.write(bytes(100_000))
        self._file.flush()
        self._places = places
        self._acts = acts
        self._threads = [
            threading.Thread(
                target=self._run, args=(random.Random(f"{seed} {n}"),), name="storm", daemon=True
            )
            for n in range(threads)
        ]

    def blow(self) -> None:
        """To its end."""
        for thread in self._threads:
            thread.start()
        until = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        if any(thread.is_alive() for thread in self._threads):
            faulthandler.dump_traceback(2, all_threads=True)
            raise AssertionError("threads are stuck: see where, on stderr")
        for place in self._places:
            if place.sock is not None:
                place.sock.close()
                place.sock = None
        self._file.close()

    def _run(self, chance: random.Random) -> None:
        try:
            for _ in range(self._acts):
                self._act(chance)
        except BaseException as error:
            self.faults.append(f"{error!r} at {error.__traceback__ and _where(error)}")

    def _act(self, chance: random.Random) -> None:
        place = chance.choice(self._places)
        sock = place.sock
        if sock is None:
            with contextlib.suppress(OSError):
                place.sock = place.make(chance)
                self.done["made"] += 1
            return
        name = chance.choice(_TLS_ACTS if place.is_tls else _ACTS)
        try:
            getattr(self, f"_{name}")(chance, place, sock)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not isinstance(error, ssl.SSLError):
                _check_words(error)
        self.done[name] += 1

    # What is done ---------------------------------------------------------------------------------

    def _bytes(self, place: Shared, sock: Any) -> bytes:
        if place.gives is not None:
            return place.gives
        return mark(sock.getsockname()[1])

    def _check(self, place: Shared, data: bytes) -> None:
        if place.is_tls or not data:
            return
        if place.gives is not None and data.strip(place.gives):
            self.faults.append(f"a stranger's bytes: {data[:20]!r}")
        if len(set(data)) > 1:
            self.faults.append(f"bytes of two: {set(data)}")

    def _recv(self, chance: random.Random, place: Shared, sock: Any) -> None:
        with place.turn:
            self._check(place, sock.recv(chance.choice([1, 5000])))

    def _recv_into(self, _: random.Random, place: Shared, sock: Any) -> None:
        buffer = bytearray(3000)
        with place.turn:
            count = sock.recv_into(buffer)
        self._check(place, bytes(buffer[:count]))

    def _send(self, chance: random.Random, place: Shared, sock: Any) -> None:
        data = self._bytes(place, sock) * chance.choice([1, 5000])
        with place.turn:
            sock.send(data)

    def _sendall(self, _: random.Random, place: Shared, sock: Any) -> None:
        data = self._bytes(place, sock) * 30_000
        with place.turn:
            sock.sendall(data)

    def _sendfile(self, _: random.Random, place: Shared, sock: Any) -> None:
        if place.gives == b"\0":  # That is what is in it.
            sock.sendfile(self._file, 0, 100_000)

    def _shutdown(self, chance: random.Random, _: Shared, sock: Any) -> None:
        sock.shutdown(chance.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))

    def _close(self, _: random.Random, place: Shared, sock: Any) -> None:
        place.sock = None
        sock.close()

    def _close_and_leave(self, _: random.Random, __: Shared, sock: Any) -> None:
        sock.close()

    def _drop(self, _: random.Random, place: Shared, __: Any) -> None:
        place.sock = None

    def _settimeout(self, chance: random.Random, _: Shared, sock: Any) -> None:
        sock.settimeout(chance.choice([0, 0.001, 0.02]))

    def _detach(self, _: random.Random, place: Shared, sock: Any) -> None:
        if place.gives is not None:
            return
        ward = ward_of(sock)
        connection = getattr(sock if ward is None else ward, "_connection", None)
        connection = connection or getattr(ward, "connection", None)
        if connection is not None:
            self.detached.add(connection.number)
        fd = sock.detach()
        place.sock = None
        if fd >= 0:
            socket.socket(fileno=fd).close()

    def _makefile(self, _: random.Random, place: Shared, sock: Any) -> None:
        with place.turn, sock.makefile("rb") as file:
            self._check(place, file.read1(100))

    def _ask(self, _: random.Random, __: Shared, sock: Any) -> None:
        repr(sock)
        sock.fileno()
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        sock.getpeername()
        sock.getsockname()


_TLS_ACTS = ["recv", "recv_into", "send", "sendall", "ask", "settimeout", "makefile"] * 3
_TLS_ACTS += ["close", "close_and_leave", "drop"]
_ACTS = ["recv", "recv_into", "send", "sendall", "ask", "settimeout", "makefile"] * 3
_ACTS += ["close", "close_and_leave", "drop", "shutdown", "detach", "sendfile"]
# What the standard library says, too.
_WORDS = (
    "Invalid file descriptor",
    "closed",
    "detached",
    "unwrapped",
    "non-blocking",
    "read/write",
    "I/O operation",
)


def _check_words(error: ValueError) -> None:
    if not any(word in str(error) for word in _WORDS):
        raise error


def _where(error: BaseException) -> str:
    trace, where = error.__traceback__, ""
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return where


def safe(address: Any) -> Callable[[random.Random], SafeSocket]:
    """Makes a `SafeSocket`, by any policy."""

    def make(chance: random.Random) -> SafeSocket:
        on_loss: Any = chance.choice(["close", "release", "keep"])
        policy = Policy(chance.choice(MODES), on_loss, grace=chance.choice([0.0, 0.01]))
        sock = safesock.create_connection(address, 5, policy=policy)
        sock.settimeout(0.01)
        return sock

    return make


def plain(address: Any) -> Callable[[random.Random], socket.socket]:
    """Makes a plain socket, which is to be enforced."""

    def make(_: random.Random) -> socket.socket:
        sock = socket.create_connection(address, 5)
        sock.settimeout(0.01)
        return sock

    return make


def for_life(address: Any) -> Callable[[random.Random], SafeSocket]:
    """Makes a socket for life."""

    def make(chance: random.Random) -> SafeSocket:
        reconnect = Reconnect(attempts=3, deadline=5.0, stable_after=0.01)
        policy = Policy(chance.choice(MODES), grace=0.01)
        connector = safesock.Connector(address, policy=policy, reconnect=reconnect)
        sock = connector.socket()
        sock.settimeout(0.01)
        return sock

    return make


def tls(address: Any, context: ssl.SSLContext) -> Callable[[random.Random], ssl.SSLSocket]:
    """Makes a `SafeSSLSocket`."""

    def make(chance: random.Random) -> ssl.SSLSocket:
        sock = safe(address)(chance)
        sock.settimeout(0.5)
        made = safesock.secure(context).wrap_socket(sock, server_hostname="localhost")
        made.settimeout(0.01)
        return made

    return make


@contextlib.contextmanager
def switching(seconds: float) -> Iterator[None]:
    """Threads take turns after so short a time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def nothing_is_left(ports: list[int]) -> None:
    """No connection to these ports, but what the kernel keeps for a while."""
    for port in ports:
        kernel.wait_until(
            lambda port=port: (
                set(kernel.connections(peer_port=port).values())  # type: ignore[misc]
                <= {"TIME_WAIT", "FIN_WAIT2"}
            ),
            f"nothing but TIME_WAIT is left to port {port}",
        )
