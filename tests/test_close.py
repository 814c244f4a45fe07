"""close: from anywhere, at any moment, as often as one likes; and sockets that nobody closes."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import kernel
import pytest
from kernel import wait_until
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd
from process import Script

from safesock import (
    Abort,
    Drain,
    Graceful,
    Linger,
    Policy,
    SafeSocket,
    _closing,
    create_connection,
)
from safesock._policy import CloseMode

MODES = [Graceful(), Drain(0.2), Linger(1), Abort()]
# The RST that ends a Drain comes after the FIN, which a reader sees.
SEEN = {Graceful: EOF, Drain: EOF, Linger: EOF, Abort: RESET}
# Unless the data in front of the FIN has not been delivered.
SEEN_WHEN_FULL = SEEN | {Drain: RESET}
by_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: type(mode).__name__)
by_timeout = pytest.mark.parametrize("timeout", [None, 60.0], ids=["blocking", "timeout"])


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Whose receive buffer is soon full, and stays as it is."""
    with Peer(receive_buffer=65536) as one:
        yield one


@pytest.fixture(autouse=True)
def _nothing_left_open(peer: Peer) -> Iterator[None]:
    before = kernel.descriptors()
    yield
    for end in peer.ends:
        end.close()
    assert kernel.left_open(before) == []


def connect(peer: Peer, mode: CloseMode, timeout: float | None = TIMEOUT) -> SafeSocket:
    return create_connection(peer.address, timeout, policy=Policy(mode))


def addresses(sock: socket.socket) -> tuple[Any, Any]:
    return sock.getsockname(), sock.getpeername()


def wait_until_gone(ends: tuple[Any, Any]) -> None:
    """Until the kernel has nothing left that could be used, or that would stay for ever."""
    harmless = (None, "TIME_WAIT", "FIN_WAIT1", "FIN_WAIT2")
    wait_until(lambda: kernel.state(*ends) in harmless, f"not {kernel.state(*ends)}")


def wait_for_state(sock: SafeSocket, state: str) -> None:
    wait_until(lambda: kernel.state_of(sock) == state, state)


def wait_for_loss(sock: SafeSocket) -> None:
    wait_until(lambda: sock.loss is not None, "the watcher notices the loss")


def fill(sock: SafeSocket) -> int:
    """Sends until the buffers are full, and stay so; how many bytes that took."""
    timeout, count = sock.gettimeout(), 0
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    sock.setblocking(False)
    while sent := send_what_fits(sock):
        count += sent
        select.select([], [sock], [], 0.1)  # The peer's kernel may still make room.
    sock.settimeout(timeout)
    return count


def send_what_fits(sock: SafeSocket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            count += socket.socket.send(sock, bytes(65536))
    return count


class Blocked:
    """A thread in a call that does not return by itself. `result`: what it gave or raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.result: object = None
        self._call = call
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:
            self.result = error

    def __enter__(self) -> Blocked:
        self._thread.start()
        wait_until(lambda: kernel.is_asleep(self._thread), "it blocks")
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "it was not woken"


@contextlib.contextmanager
def signal_when_blocked(act: Callable[[], object]) -> Iterator[None]:
    """Once this thread blocks in the kernel, a signal interrupts it, whose handler does *act*."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        handled.append(True)
        act()

    def send() -> None:
        wait_until(lambda: kernel.is_asleep(blocked), "it blocks")
        signal.pthread_kill(blocked_ident, signal.SIGUSR1)

    handled: list[bool] = []
    blocked, blocked_ident = threading.current_thread(), threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handle)
    sender = threading.Thread(target=send)
    try:
        sender.start()
        yield
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
        assert handled


def assert_reset_after_the_fin(end: PeerEnd) -> None:
    assert end.read_to_end() == (b"", EOF)
    assert end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE


def interrupt() -> None:
    raise KeyboardInterrupt


# Threads -----------------------------------------------------------------------------------------


def in_recv(sock: SafeSocket) -> tuple[Callable[[], object], Callable[[], object]]:
    return lambda: sock.recv(10), sock.close


def in_recv_into(sock: SafeSocket) -> tuple[Callable[[], object], Callable[[], object]]:
    return lambda: sock.recv_into(bytearray(10)), sock.close


def in_readline(sock: SafeSocket) -> tuple[Callable[[], object], Callable[[], object]]:
    file = sock.makefile("rb", buffering=0)
    sock.close()
    return lambda: file.readline(), file.close


def in_buffered_readline(sock: SafeSocket) -> tuple[Callable[[], object], Callable[[], object]]:
    """Whose own close would wait for the reader to let go of the buffer."""
    file = sock.makefile("rb")
    sock.close()
    return lambda: file.readline(), file.raw.close


@by_mode
@by_timeout
@pytest.mark.parametrize("start", [in_recv, in_recv_into, in_readline, in_buffered_readline])
def test_close_wakes_a_blocked_reader(
    peer: Peer,
    mode: CloseMode,
    timeout: float | None,
    start: Callable[[SafeSocket], tuple[Callable[[], object], Callable[[], object]]],
) -> None:
    sock = connect(peer, mode, timeout)
    ends, end = addresses(sock), peer.accept()
    read, close = start(sock)
    with Blocked(read) as reader:
        close()
    assert not reader.result or isinstance(reader.result, OSError)
    assert sock.fileno() == -1
    assert sock.loss is None
    assert sock.close_report is not None
    wait_until_gone(ends)
    assert end.read_to_end() == (b"", SEEN[type(mode)])


def test_a_reader_that_waits_when_its_socket_is_aborted_reads_the_end(peer: Peer) -> None:
    for _ in range(10):
        sock = connect(peer, Abort(), timeout=None)
        peer.accept()
        with Blocked(lambda sock=sock: sock.recv(10)) as reader:  # type: ignore[misc]
            sock.close()
        assert reader.result == b""


@by_mode
@by_timeout
def test_close_wakes_a_sender_with_full_buffers(
    peer: Peer, mode: CloseMode, timeout: float | None
) -> None:
    sock = connect(peer, mode, timeout)
    ends, end, count = addresses(sock), peer.accept(), fill(sock)
    with Blocked(partial(sock.send, bytes(65536))) as sender:
        sock.close()
    assert isinstance(sender.result, OSError)
    assert sock.loss is None
    data, seen = end.read_to_end()
    assert seen == SEEN_WHEN_FULL[type(mode)]
    assert seen == RESET or count <= len(data) <= count + 65536
    wait_until_gone(ends)


def test_drain_is_done_as_soon_as_the_peer_closes(peer: Peer) -> None:
    sock = connect(peer, Drain(60))
    end = peer.accept()
    with Blocked(sock.close) as closing:
        end.say(b"dropped")
        assert end.read_to_end() == (b"", EOF)
        end.fin()
    assert closing.result is None
    assert sock.close_report is not None
    assert not sock.close_report.reset
    assert sock.close_report.unread == 7


@by_mode
def test_close_twice_leaves_the_next_owner_of_the_number_alone(peer: Peer, mode: CloseMode) -> None:
    sock = connect(peer, mode)
    fd, end = sock.fileno(), peer.accept()
    sock.close()
    report = sock.close_report
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stranger:
        assert stranger.fileno() == fd
        sock.close()
        stranger.connect(peer.address)
        sock.close()
        assert kernel.state_of(stranger) == "ESTABLISHED"
    assert sock.close_report is report
    assert end.read_to_end() == (b"", SEEN[type(mode)])


def bystander(stop: threading.Event) -> int:
    """Goes on opening descriptors and using them: a close that hits one of them shows."""
    rounds = 0
    while not stop.is_set() or not rounds:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(b"x")
            assert theirs.recv(1) == b"x"
            rounds += 1
    return rounds


@by_mode
def test_close_from_eight_threads_at_once(peer: Peer, mode: CloseMode) -> None:
    stop, errors = threading.Event(), list[BaseException]()

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    def close(sock: SafeSocket, barrier: threading.Barrier) -> None:
        barrier.wait(TIMEOUT)
        sock.close()

    other = threading.Thread(target=guarded, args=[partial(bystander, stop)])
    other.start()
    try:
        for turn in range(5):
            sock, barrier = connect(peer, mode), threading.Barrier(8)
            ends, end = addresses(sock), peer.accept()
            if turn % 2:
                end.say(b"unread")
            calls = [partial(guarded, partial(close, sock, barrier)) for _ in range(8)]
            threads = [threading.Thread(target=call) for call in calls]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(TIMEOUT)
                assert not thread.is_alive()
            assert sock.fileno() == -1
            assert sock.loss is None
            wait_until_gone(ends)
            assert end.read_to_end() == (b"", SEEN[type(mode)])
    finally:
        stop.set()
        other.join(TIMEOUT)
    assert errors == []


# Signals -----------------------------------------------------------------------------------------


@by_mode
@by_timeout
@pytest.mark.parametrize("call", ["recv", "send"])
def test_close_in_a_signal_handler_that_interrupts_a_call(
    peer: Peer, mode: CloseMode, timeout: float | None, call: str
) -> None:
    sock = connect(peer, mode, timeout)
    ends, end = addresses(sock), peer.accept()
    if call == "send":
        fill(sock)
    with signal_when_blocked(sock.close), contextlib.suppress(OSError):
        answer = sock.recv(10) if call == "recv" else sock.send(bytes(65536))
        assert not answer
    assert sock.fileno() == -1
    assert sock.loss is None
    wait_until_gone(ends)
    assert end.read_to_end()[1] == (SEEN if call == "recv" else SEEN_WHEN_FULL)[type(mode)]


def test_close_in_a_signal_handler_that_interrupts_close(peer: Peer) -> None:
    sock = connect(peer, Drain(0.5))
    ends, end = addresses(sock), peer.accept()
    with signal_when_blocked(sock.close):
        sock.close()
    assert sock.fileno() == -1
    wait_until_gone(ends)
    assert_reset_after_the_fin(end)


def test_keyboard_interrupt_in_a_drain_leaves_nothing(peer: Peer) -> None:
    sock = connect(peer, Drain(60))
    ends, end = addresses(sock), peer.accept()
    with signal_when_blocked(interrupt), pytest.raises(KeyboardInterrupt):
        sock.close()
    assert sock.fileno() == -1
    assert sock.close_report is not None
    assert kernel.state(*ends) is None
    assert_reset_after_the_fin(end)
    sock.close()


def test_a_close_that_is_interrupted_counts_no_fin_among_the_bytes(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = create_connection(peer.address, TIMEOUT, policy=Policy(watch=False))
    end = peer.accept()
    end.half_close()
    wait_for_state(sock, "CLOSE_WAIT")
    sock.sendall(b"four")
    drop, interrupts = _closing._drop_unread, [KeyboardInterrupt]

    def interrupted(raw: Any) -> int:
        wait_for_state(sock, "CLOSE")  # Both have sent a FIN, which the state does not tell.
        while interrupts:
            raise interrupts.pop()
        return drop(raw)

    monkeypatch.setattr(_closing, "_drop_unread", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sock.close()
    assert sock.close_report is not None
    assert sock.close_report.sent == 4
    assert end.read_to_end() == (b"four", EOF)


def test_abort_after_a_fin_of_ours_does_not_claim_a_reset(peer: Peer) -> None:
    """The connection was released by its policy, which is changed after that."""
    with create_connection(
        peer.address, TIMEOUT, policy=Policy(on_loss="release", watch=False)
    ) as sock:
        end = peer.accept()
        end.fin()
        assert sock.recv(1) == b""
        wait_for_state(sock, "CLOSE")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        assert sock.close_report is not None
        assert (sock.close_report.mode, sock.close_report.reset) == (Abort(), False)


def test_keyboard_interrupt_while_a_drain_is_collected_leaves_nothing(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = list[object]()
    monkeypatch.setattr(sys, "unraisablehook", lambda event: errors.append(event.exc_type))
    sock = connect(peer, Drain(60))
    fd, ends, end = sock.fileno(), addresses(sock), peer.accept()
    with signal_when_blocked(interrupt), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del sock
    assert errors == [KeyboardInterrupt]
    assert fd not in kernel.descriptors()
    assert kernel.state(*ends) is None
    assert_reset_after_the_fin(end)


@by_mode
def test_keyboard_interrupt_at_any_moment_of_close_leaves_nothing(
    peer: Peer, mode: CloseMode
) -> None:
    def handle(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Who stops waiting for a Drain aborts.
    seen = {SEEN[type(mode)], RESET} if isinstance(mode, Drain) else {SEEN[type(mode)]}
    delays, interrupted = random.Random(1), 0
    before = signal.signal(signal.SIGALRM, handle)
    try:
        for _ in range(40):
            sock = connect(peer, mode)
            ends, end = addresses(sock), peer.accept()
            end.half_close() if isinstance(mode, Drain) else end.say(b"unread")
            try:
                signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-6, 2e-4))
                sock.close()
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.getitimer(signal.ITIMER_REAL)  # A last chance for the handler, in here.
            except KeyboardInterrupt:
                interrupted += 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                del sock
            wait_until_gone(ends)
            assert end.read_to_end()[1] in seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted


@by_mode
def test_close_again_closes_whatever_line_keyboard_interrupt_struck(
    peer: Peer, mode: CloseMode
) -> None:
    def close_but_for(strike: int) -> bool:
        lines = 0

        def trace(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal lines
            if not frame.f_globals["__name__"].startswith("safesock."):
                return None
            lines += event == "line"
            if lines == strike:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            sock.close()
        except KeyboardInterrupt:
            return False
        finally:
            sys.settrace(before)
        return True

    for strike in range(1, 1000):
        sock = connect(peer, mode)
        end = peer.accept()
        end.half_close()
        done = close_but_for(strike)
        sock.close()
        assert sock.fileno() == -1
        assert sock.close_report is not None
        end.close()
        if done:
            break
    assert done
    assert strike > 10


# Collected ---------------------------------------------------------------------------------------


@by_mode
def test_collected_socket_ends_by_its_policy(peer: Peer, mode: CloseMode) -> None:
    sock = connect(peer, mode)
    ends, end = addresses(sock), peer.accept()
    count = fill(sock)
    end.say(b"unread")
    sock.recv(1, socket.MSG_PEEK)
    with pytest.warns(ResourceWarning, match="unclosed <safesock.SafeSocket") as caught:
        del sock
    assert len(caught) == 1
    data, seen = end.read_to_end()
    assert seen == SEEN_WHEN_FULL[type(mode)]
    assert seen == RESET or len(data) == count
    wait_until_gone(ends)


@by_mode
def test_collected_in_a_reference_cycle(peer: Peer, mode: CloseMode) -> None:
    class Client:
        def __init__(self) -> None:
            self.sock = connect(peer, mode)
            self.itself = self

    dead, end = weakref.ref(Client()), peer.accept()
    with pytest.warns(ResourceWarning):
        gc.collect()
    assert dead() is None
    assert end.read_to_end() == (b"", SEEN[type(mode)])


@by_mode
def test_exception_that_holds_the_frame_keeps_the_connection_for_as_long(
    peer: Peer, mode: CloseMode
) -> None:
    def fail() -> None:
        sock = connect(peer, mode)
        raise RuntimeError(sock.getpeername())

    held: list[Exception] = []
    try:
        fail()
    except RuntimeError as error:
        held.append(error)
    end = peer.accept()
    assert kernel.state(end.sock.getpeername(), peer.address) == "ESTABLISHED"
    with pytest.warns(ResourceWarning):
        held.clear()
    assert end.read_to_end() == (b"", SEEN[type(mode)])


@by_mode
def test_closed_socket_is_collected_without_a_warning(peer: Peer, mode: CloseMode) -> None:
    sock = connect(peer, mode)
    end = peer.accept()
    sock.close()
    dead = weakref.ref(sock)
    del sock
    assert dead() is None
    assert end.read_to_end() == (b"", SEEN[type(mode)])


FAILING: dict[str, Callable[[SafeSocket], object]] = {
    "recv": lambda sock: sock.recv(10),
    "recv_into": lambda sock: sock.recv_into(bytearray(10)),
    "recvfrom": lambda sock: sock.recvfrom(10),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(10)),
    "recvmsg": lambda sock: sock.recvmsg(10),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(10)]),
    "send": lambda sock: sock.send(b"x"),
    "sendall": lambda sock: sock.sendall(b"x"),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
    "sendto": lambda sock: sock.sendto(b"x", ("127.0.0.1", 9)),
    "getsockopt": lambda sock: sock.getsockopt(-1, -1),
    "setsockopt": lambda sock: sock.setsockopt(-1, -1, 1),
}


@pytest.mark.parametrize("how", ["would block", "reset", "reset, noted by the watcher"])
@pytest.mark.parametrize("call", FAILING.values(), ids=FAILING)
def test_a_call_that_failed_does_not_keep_the_socket_alive(
    peer: Peer, call: Callable[[SafeSocket], object], how: str
) -> None:
    policy = Policy(grace=0.0 if how.endswith("watcher") else 60.0)
    sock = create_connection(peer.address, TIMEOUT, policy=policy)
    end = peer.accept()
    sock.setblocking(False)
    if how == "would block":
        fill(sock)
    else:
        end.rst()
        wait_for_state(sock, "CLOSE")
    if how.endswith("watcher"):
        wait_for_loss(sock)
    failed = False
    try:
        call(sock)
    except OSError:
        failed = True
    assert failed
    dead = weakref.ref(sock)
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del sock
            alive = dead() is not None
            gc.collect()
        assert not alive
    finally:
        gc.enable()


# The interpreter's exit, and the end of the process ----------------------------------------------

CONNECT = """
import atexit, json, os, sys, threading, safesock
from safesock import Abort, Drain, Graceful, Linger
def connect():
    policy = safesock.Policy({mode})
    sock = safesock.create_connection((sys.argv[1], int(sys.argv[2])), 60, policy=policy)
    sock.recv(1, 2)  # MSG_PEEK: there is unread input.
    sock.setblocking(False)
    count = 0
    try:
        while True:
            count += sock.send(bytes(65536))
    except BlockingIOError:
        print(count, flush=True)
    return sock
"""
PLACES = {
    "global": "sock = connect()",
    "another module": "json.sock = connect()",
    "a function that exits": """
def main():
    sock = connect()
    sys.exit()
main()
""",
    "a cycle": """
class Client: pass
client = Client()
client.itself, client.sock = client, connect()
""",
    "a thread": """
def run(): sock = connect()
threading.Thread(target=run).start()
""",
    "a daemon thread": """
def run():
    sock = connect()
    connected.set()
    threading.Event().wait()
connected = threading.Event()
threading.Thread(target=run, daemon=True).start()
connected.wait()
""",
    "an exit handler": """
@atexit.register
def last():
    global sock
    sock = connect()
""",
    "a file": "file = connect().makefile('rwb')",
}


# A daemon thread's socket is never collected: what holds then is what was set at the connect.
COLLECTED = [place for place in PLACES if place != "a daemon thread"]


@pytest.mark.parametrize(
    ("mode", "place"),
    [(Graceful(), place) for place in COLLECTED] + [(Abort(), place) for place in PLACES],
    ids=str,
)
def test_interpreter_exit_ends_what_is_open(peer: Peer, place: str, mode: CloseMode) -> None:
    """Graceful: all that was sent arrives, though there is unread input. Abort: RST."""
    with Script(CONNECT.format(mode=mode) + PLACES[place], *peer.address) as script:
        end = peer.accept()
        end.say(b"unread")
        count = int(script.join())
        data, seen = end.read_to_end()
    assert count
    assert seen == SEEN[type(mode)]
    assert seen == RESET or len(data) == count


def test_interpreter_exit_drains(peer: Peer) -> None:
    with Script(CONNECT.format(mode=Drain(60)) + "s = connect()", *peer.address) as it:
        end = peer.accept()
        end.say(b"unread")
        count = int(it.read_line())
        assert (len(end.read(count)), end.read_to_end()) == (count, (b"", EOF))
        end.say(b"more")
        end.fin()
        it.join()


def test_abort_holds_for_a_killed_process(peer: Peer) -> None:
    text = CONNECT.format(mode=Abort()) + "sock = connect()\ninput()"
    with Script(text, *peer.address) as script:
        end = peer.accept()
        end.say(b"unread")
        wait_until(lambda: end.sock.recv(1, socket.MSG_PEEK))
        os.kill(script.pid, signal.SIGKILL)
        assert end.read_to_end()[1] == RESET


# Whatever has happened before --------------------------------------------------------------------


def nothing(_sock: SafeSocket, _end: PeerEnd) -> None: ...


def reset(sock: SafeSocket, end: PeerEnd) -> None:
    end.rst()
    wait_for_state(sock, "CLOSE")


def reset_and_told(sock: SafeSocket, end: PeerEnd) -> None:
    end.rst()
    with pytest.raises(ConnectionResetError):
        sock.recv(10)


def peer_closed(sock: SafeSocket, end: PeerEnd) -> None:
    end.fin()
    wait_for_state(sock, "CLOSE_WAIT")


def shut_down(sock: SafeSocket, _end: PeerEnd) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def closed_behind_its_back(sock: SafeSocket, _end: PeerEnd) -> None:
    os.close(sock.fileno())


def detached(sock: SafeSocket, _end: PeerEnd) -> None:
    os.close(sock.detach())


@by_mode
@pytest.mark.parametrize(
    "before",
    [nothing, reset, reset_and_told, peer_closed, shut_down, closed_behind_its_back, detached],
)
def test_close_never_raises(
    peer: Peer, mode: CloseMode, before: Callable[[SafeSocket, PeerEnd], None]
) -> None:
    sock = connect(peer, mode)
    ends = addresses(sock)
    before(sock, peer.accept())
    sock.close()
    sock.close()
    assert sock.fileno() == -1
    wait_until_gone(ends)


@by_mode
def test_close_before_and_during_a_connect(peer: Peer, mode: CloseMode) -> None:
    SafeSocket(policy=Policy(mode)).close()
    sock = SafeSocket(policy=Policy(mode))
    sock.setblocking(False)
    sock.connect_ex(peer.address)
    sock.close()
    assert sock.fileno() == -1
    assert peer.accept().read_to_end() == (b"", SEEN[type(mode)])


@by_mode
def test_with_statement_ends_by_the_policy(peer: Peer, mode: CloseMode) -> None:
    with connect(peer, mode) as sock:
        end = peer.accept()
        sock.sendall(b"all")
        assert end.read(3) == b"all"
    assert sock.fileno() == -1
    assert end.read_to_end() == (b"", SEEN[type(mode)])


@by_mode
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_with_statement_that_an_exception_leaves(
    peer: Peer, mode: CloseMode, kind: type[BaseException]
) -> None:
    sock, end = connect(peer, mode), peer.accept()
    with pytest.raises(kind, match=r"^mine$"), sock:
        raise kind("mine")
    assert sock.fileno() == -1
    assert end.read_to_end() == (b"", SEEN[type(mode)])


# makefile ----------------------------------------------------------------------------------------


@by_mode
@pytest.mark.parametrize("files_first", [False, True], ids=["socket first", "files first"])
def test_files_keep_the_connection_until_the_last_is_closed(
    peer: Peer, mode: CloseMode, files_first: bool
) -> None:
    sock = connect(peer, mode)
    ends, end = addresses(sock), peer.accept()
    reader, writer = sock.makefile("rb"), sock.makefile("wb")
    closers = [sock.close, reader.close] if not files_first else [reader.close, writer.close]
    for close in closers:
        close()
        assert kernel.state(*ends) == "ESTABLISHED"
        assert sock.close_report is None
    if not files_first:
        writer.write(b"through the file")
        writer.flush()
        assert end.read(16) == b"through the file"
        writer.close()
    else:
        sock.close()
    assert sock.fileno() == -1
    assert sock.close_report is not None
    assert sock.close_report.mode == mode
    assert end.read_to_end() == (b"", SEEN[type(mode)])
    sock.close()
    reader.close()
    writer.close()


@by_mode
def test_last_file_that_is_collected_ends_by_the_policy(peer: Peer, mode: CloseMode) -> None:
    sock = connect(peer, mode)
    end = peer.accept()
    file = sock.makefile("rb")
    sock.close()
    del sock
    end.say(b"still there\n")
    assert file.readline() == b"still there\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del file
    assert end.read_to_end() == (b"", SEEN[type(mode)])
