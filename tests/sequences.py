"""Sequences of what both sides of a connection do, on the real kernel: each is run on a governed
socket, and on one of the standard library's beside it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import kernel
from kernel import wait_until
from peer import TIMEOUT
from process import Gate, fork, join

from safesock import Abort, CloseMode, Drain, Graceful, Linger, Policy, create_connection
from safesock._connection import Connection
from safesock._life import MOVES, State

SENT, SAID = b"ping", b"pong!"
LOCAL = ("send", "recv", "shutdown", "close", "close in a thread", "drop", "fork")
FAR = ("data", "FIN", "RST", "half-close")
CLOSES = {"close", "close in a thread", "drop"}
PEER_OPEN = {"ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2"}
HELD = {"ESTABLISHED", "CLOSE_WAIT"}
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Sequence = tuple[str, ...]
MODES: dict[str, CloseMode] = {
    "Graceful": Graceful(),
    "Drain": Drain(0.001),
    "Linger": Linger(1),
    "Abort": Abort(),
}


def sequences(length: int, acts: Sequence, start: Sequence = ()) -> Iterator[Sequence]:
    """All that begin with *start* and go on with so many *acts*, but for those that cannot be:
    nobody has a socket that was dropped, and a peer that has gone does nothing more. Silence is
    what is not in them."""
    if not length:
        yield start
        return
    for act in acts:
        if may_follow(start, act):
            yield from sequences(length - 1, acts, (*start, act))


def may_follow(before: Sequence, act: str) -> bool:
    """Whether it can be done after what was *before*."""
    if act in LOCAL:
        once = act in ("drop", "fork")
        return "drop" not in before and not (once and {*CLOSES, act}.intersection(before))
    if "FIN" in before or "RST" in before:
        return False
    ended = {"half-close", "close_notify"}.intersection(before)
    return not ended or act in ("FIN", "RST") or (act == "half-close" and act not in before)


class Result(NamedTuple):
    """What was answered to each act, and what the peer saw: all bytes, and how they ended."""

    answers: tuple[str, ...]
    accepted: int
    end: str | None
    received: bytes


def plain_connection(address: Any, mode: CloseMode) -> socket.socket:
    """By a socket of the standard library's, with as much of *mode* as that has."""
    sock = socket.create_connection(address, TIMEOUT)
    if isinstance(mode, (Abort, Linger)):
        linger = struct.pack("ii", 1, mode.seconds if isinstance(mode, Linger) else 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    sock.setblocking(False)
    return sock


class Line:
    """One connection, made without waiting for anybody."""

    def __init__(self, listener: socket.socket, policy: Policy | None, mode: CloseMode) -> None:
        self.policy = policy
        self.sock: Any = self._connect(listener, policy, mode)
        self.far: Any = self._accept(listener)
        self.far.setblocking(False)
        self.ends = self.sock.getsockname(), listener.getsockname()
        self.accepted, self.received = 0, b""
        # How what the peer reads has ended, as far as it has.
        self.end: str | None = None
        self._children: list[tuple[int, Gate]] = []
        self._shake()

    def _connect(self, listener: socket.socket, policy: Policy | None, mode: CloseMode) -> Any:
        address = listener.getsockname()
        if policy is None:
            return plain_connection(address, mode)
        sock = create_connection(address, TIMEOUT, policy=policy)
        sock.setblocking(False)
        return sock

    def _accept(self, listener: socket.socket) -> Any:
        return listener.accept()[0]

    def _shake(self) -> None:
        pass

    @property
    def is_open(self) -> bool:
        """Whether our side has its descriptor."""
        return self.sock is not None and self.sock.fileno() >= 0

    @property
    def connection(self) -> Connection | None:
        return None if self.policy is None or self.sock is None else self.sock._connection

    def state(self) -> str | None:
        return kernel.state_of(self.sock) if self.is_open else None

    def act(self, name: str) -> str:
        """Does it, and waits until the kernel of the other side knows of it."""
        if name not in LOCAL:
            if name:
                self._far_act(name)
            return ""
        try:
            return str(self._local(name))
        except _AGAIN:
            return "would block"
        except OSError as error:
            return f"{type(error).__name__} {error.errno}"

    # Our side -------------------------------------------------------------------------------------

    def _local(self, name: str) -> object:
        match name:
            case "send":
                return self._send()
            case "recv":
                return self._recv()
            case "shutdown":
                self.sock.shutdown(socket.SHUT_WR)
                self._waits_for_far(lambda: kernel.state_of(self.far) not in PEER_OPEN)
            case "close":
                self.sock.close()
            case "close in a thread":
                thread = threading.Thread(target=self.sock.close)
                thread.start()
                thread.join()
            case "drop":
                self.sock = None
            case "fork":
                self._fork()
        if name in CLOSES:
            self._waits_for_far(lambda: kernel.state_of(self.far) not in PEER_OPEN)
        return None

    def _waits_for_far(self, condition: Callable[[], bool]) -> None:
        if self.far.fileno() >= 0:
            wait_until(condition, "the peer's kernel knows", pause=0.0002)

    def _send(self) -> int:
        ended = self.connection is not None and self.connection.released
        count: int = self.sock.send(SENT)
        if ended:
            return count
        if self.far.fileno() < 0:
            # Nobody is there: RST.
            wait_until(lambda: self.state() in (None, "CLOSE"), "RST", pause=0.0002)
        else:
            self.accepted += count
            self._waits_for_far(lambda: len(self._read()) >= self.accepted)
        return count

    def _recv(self) -> object:
        return self.sock.recv(64)

    def _fork(self) -> None:
        ready, gate = Gate(), Gate()

        def child() -> None:
            self.far.close()
            ready.open()
            gate.wait()
            self.sock.close()

        pid = fork(child)
        self._children.append((pid, gate))
        ready.wait()
        ready.__exit__(None, None, None)

    # The peer ------------------------------------------------------------------------------------

    def _far_act(self, name: str) -> None:
        before = kernel.unread(self.sock) if self.is_open else 0
        try:
            self._far_do(name)
        except ConnectionResetError:  # The kernel tells of it only once.
            self.end = "RESET"
        except OSError:
            pass  # Our side has closed.
        if self.is_open:
            wait_until(lambda: self._knows(name, before), f"it knows of {name}", pause=0.0002)
        connection = self.connection
        if name != "data" and self.is_open and self.policy is not None and self.policy.watch:
            assert connection is not None
            wait_until(lambda: connection.loss and not connection.is_dying, "the watcher")

    def _far_do(self, name: str) -> None:
        match name:
            case "data":
                self.far.send(SAID)
            case "half-close":
                socket.socket.shutdown(self.far, socket.SHUT_WR)
            case "FIN":
                self._read()
                self.far.close()
            case "RST":
                linger = struct.pack("ii", 1, 0)
                self.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.far.close()

    def _knows(self, name: str, before: int) -> bool:
        state = self.state()
        if state in (None, "CLOSE"):
            return True
        if name in ("data", "close_notify"):
            return kernel.unread(self.sock) > before
        return name != "RST" and state not in PEER_OPEN

    def _read(self) -> bytes:
        """All that has come to the peer."""
        try:
            while self.end is None:
                data = self._far_recv()
                self.received += data
                self.end = None if data else "EOF"
        except _AGAIN:
            pass
        except ConnectionResetError:
            self.end = "RESET"
        return self.received

    def peer_sees(self) -> str | None:
        """The end, after all bytes; None where it was not there any more."""
        if self.far.fileno() < 0:
            return None
        self._read()
        return self.end or "nothing at all"

    def _far_recv(self) -> bytes:
        data: bytes = self.far.recv(65536)
        return data

    def finish(self) -> None:
        self.far.close()
        if self.sock is not None:
            self.sock.close()
        for pid, gate in self._children:
            gate.open()
            join(pid)
            gate.__exit__(None, None, None)


class FullLine(Line):
    """Our side has sent all that is accepted, and the peer reads when all is done."""

    def _shake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.accepted += self.sock.send(bytes(65536))

    def _waits_for_far(self, _: Callable[[], bool]) -> None:
        pass  # What is sent now comes behind all that.

    def peer_sees(self) -> str | None:
        wait_until(lambda: self._read() and self.end, "the end")
        return self.end


def run(line: Line, sequence: Sequence) -> Result:
    """To the end, of which the invariants that need nothing to compare with hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            governed = line.policy is not None
            acts = [_governed_act(line, act) if governed else line.act(act) for act in sequence]
            if line.sock is not None:
                acts.append(line.act("close"))
            return result(line, acts)
        finally:
            line.finish()


def result(line: Line, acts: list[str]) -> Result:
    """After the last of them, which has closed it."""
    if line.policy is not None:
        assert not line.is_open
        left = kernel.state(*line.ends)
        assert left not in HELD, f"{left} is left of it"
    return Result(tuple(acts), line.accepted, line.peer_sees(), line.received)


def _governed_act(line: Line, act: str) -> str:
    connection = line.connection
    if connection is None:
        return line.act(act)
    before, loss = connection.state, connection.loss
    answer = line.act(act)
    after = connection.state
    assert after in _reachable(before), f"{before} to {after} by {act}"
    assert loss is None or (connection.loss and connection.loss.cause is loss.cause)
    told = loss is None and connection.loss is not None and act in LOCAL
    if told and connection.policy.on_loss == "close":
        assert after is State.CLOSED
        assert not line.is_open
    return answer


def _reachable(state: State) -> set[State]:
    found, new = {state}, {state}
    while new:
        new = {after for one in new for after in MOVES[one].values()} - found
        found |= new
    return found
