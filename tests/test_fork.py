"""A forked child leaves its parent's connections alone, and the parent ends them all the same."""

from __future__ import annotations

import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kernel
import pytest
from kernel import wait_until
from peer import EOF, RESET, Peer, PeerEnd
from process import Gate, Script, fork, forked, in_child, join

from safesock import Abort, Drain, Graceful, Linger, Policy, SafeSocket, create_connection, wrap
from safesock._policy import CloseMode

MODES = [Graceful(), Drain(0.2), Linger(1), Abort()]
SEEN = {Graceful: EOF, Drain: EOF, Linger: EOF, Abort: RESET}
by_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: type(mode).__name__)


def assert_works(sock: SafeSocket, end: PeerEnd) -> None:
    sock.sendall(b"question")
    assert end.read(8) == b"question"
    end.say(b"answer")
    assert sock.recv(6) == b"answer"
    assert kernel.state_of(sock) == "ESTABLISHED"
    assert sock.loss is None
    assert sock.close_report is None


def close(held: list[SafeSocket]) -> None:
    sock = held[0]
    fd = sock.fileno()
    sock.close()
    assert sock.fileno() == -1
    assert fd not in kernel.descriptors()
    sock.close()


def close_by_with(held: list[SafeSocket]) -> None:
    with held[0]:
        pass


def close_by_file(held: list[SafeSocket]) -> None:
    file = held[0].makefile("rb")
    held[0].close()
    file.close()


def collect(held: list[SafeSocket]) -> None:
    fd = held[0].fileno()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        held.clear()
    assert fd not in kernel.descriptors()


def end_at_once(_held: list[SafeSocket]) -> None: ...


@contextmanager
def held_by_a_list(peer: Peer, policy: Policy) -> Iterator[tuple[list[SafeSocket], PeerEnd]]:
    """The only reference to a connected socket, so that a child can collect its copy."""
    held = [create_connection(peer.address, 20, policy=policy)]
    try:
        yield held, peer.accept()
    finally:
        held[0].close()


@by_mode
@pytest.mark.parametrize("act", [close, close_by_with, close_by_file, collect, end_at_once])
def test_child_that_is_done_leaves_the_connection_alone(
    peer: Peer, mode: CloseMode, act: Callable[[list[SafeSocket]], None]
) -> None:
    with held_by_a_list(peer, Policy(mode)) as (held, end):
        end.say(b"unread")
        assert held[0].recv(1, socket.MSG_PEEK) == b"u"
        in_child(lambda: act(held))
        assert held[0].recv(6) == b"unread"
        assert_works(held[0], end)
    assert end.read_to_end() == (b"", SEEN[type(mode)])


@by_mode
def test_child_of_a_child_leaves_the_connection_alone(peer: Peer, mode: CloseMode) -> None:
    with held_by_a_list(peer, Policy(mode)) as (held, end):
        in_child(lambda: in_child(lambda: close(held)))
        assert_works(held[0], end)


@by_mode
@pytest.mark.parametrize("on_loss", ["close", "release", "keep"])
def test_loss_that_the_child_notices_is_its_own_affair(
    peer: Peer, mode: CloseMode, on_loss: Any
) -> None:
    """The peer has closed its side, and the parent goes on sending."""

    def child(sock: SafeSocket) -> None:
        assert sock.recv(10) == b""
        assert sock.loss is not None
        assert (sock.fileno() == -1) == (on_loss == "close")
        sock.close()

    with peer.connected(Policy(mode, on_loss, watch=False)) as (sock, end):
        end.half_close()
        in_child(lambda: child(sock))
        assert kernel.state_of(sock) == "CLOSE_WAIT"
        assert sock.loss is None
        sock.sendall(b"still here")
        assert end.read(10) == b"still here"


@pytest.mark.parametrize("mode", [Graceful(), Abort()], ids=["Graceful", "Abort"])
@pytest.mark.parametrize("way", ["end", "sys.exit", "an exception", "an exit handler closes"])
def test_exit_of_a_child_leaves_the_connection_alone(peer: Peer, mode: CloseMode, way: str) -> None:
    """The interpreter's own exit, which collects what is still there."""
    text = f"""
import atexit, os, sys, safesock
from safesock import Abort, Drain, Graceful, Linger
address = sys.argv[1], int(sys.argv[2])
sock = safesock.create_connection(address, 60, policy=safesock.Policy({mode}))
sys.modules["json"] = sock
if os.fork() == 0:
    way = {way!r}
    if way == "sys.exit":
        sys.exit()
    if way == "an exception":
        sys.stderr = open(os.devnull, "w")
        raise RuntimeError
    if way == "an exit handler closes":
        atexit.register(sock.close)
else:
    os.wait()
    sock.sendall(b"question")
    assert sock.recv(6) == b"answer"
    sock.close()
"""
    with Script(text, *peer.address) as script:
        end = peer.accept()
        assert end.read(8) == b"question"
        end.say(b"answer")
        assert end.read_to_end() == (b"", SEEN[type(mode)])
        script.join()


@by_mode
def test_parent_that_closes_while_a_child_holds_it_ends_it_at_once(
    peer46: Peer, mode: CloseMode
) -> None:
    with Gate() as over, peer46.connected(Policy(mode)) as (sock, end):
        local, remote = sock.getsockname(), sock.getpeername()
        with forked(over.wait):
            try:
                end.say(b"unread")
                assert sock.recv(1, socket.MSG_PEEK) == b"u"
                sock.close()
                assert end.read_to_end() == (b"", SEEN[type(mode)])
                if isinstance(mode, (Graceful, Linger)):
                    end.half_close()  # Not by close: the child holds this one too.
                wait_until(lambda: kernel.state(local, remote) in (None, "TIME_WAIT"))
            finally:
                over.open()


@by_mode
def test_parent_that_collects_while_a_child_holds_it_ends_it_at_once(
    peer: Peer, mode: CloseMode
) -> None:
    held = [create_connection(peer.address, 20, policy=Policy(mode))]
    end = peer.accept()
    with Gate() as over, forked(over.wait):
        with pytest.warns(ResourceWarning):
            held.clear()
        try:
            assert end.read_to_end() == (b"", SEEN[type(mode)])
        finally:
            over.open()


@by_mode
def test_watcher_of_the_parent_ends_it_while_a_child_holds_it(peer: Peer, mode: CloseMode) -> None:
    with Gate() as over, peer.connected(Policy(mode, grace=0)) as (sock, end):
        local, remote = sock.getsockname(), sock.getpeername()
        with forked(over.wait):
            try:
                end.half_close()
                assert end.read_to_end() == (b"", SEEN[type(mode)])
                wait_until(lambda: kernel.state(local, remote) in (None, "TIME_WAIT"))
            finally:
                over.open()


def test_child_forked_while_a_thread_closes_closes_its_own_descriptor(peer: Peer) -> None:
    def child() -> None:
        sock.close()
        assert number not in kernel.descriptors()

    with peer.connected(Policy(Drain(20))) as (sock, end):
        number = sock.fileno()
        closer = threading.Thread(target=sock.close)
        closer.start()
        try:
            assert end.read_to_end() == (b"", EOF)
            kernel.wait_until_blocked(closer)
            in_child(child)
        finally:
            end.close()
            closer.join()


@by_mode
def test_wrap_makes_the_child_the_owner(peer: Peer, mode: CloseMode) -> None:
    """From a plain socket or from the parent's SafeSocket, it ends by the policy in the child,
    while the parent still has its descriptor."""
    for kind in (socket.socket, SafeSocket):
        with kind(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.connect(peer.address)
            end = peer.accept()

            def child(given: socket.socket = sock) -> None:
                with wrap(given, Policy(mode)) as mine:
                    assert given.fileno() == -1
                    mine.sendall(b"from the child")
                assert mine.close_report is not None
                assert mine.close_report.mode == mode

            in_child(child)
            assert end.read(14) == b"from the child"
            assert end.read_to_end() == (b"", SEEN[type(mode)])


def test_child_that_wraps_notices_by_its_own_watcher(peer: Peer) -> None:
    def child() -> None:
        with wrap(sock, Policy(grace=0)) as mine:
            ready.open()
            wait_until(lambda: mine.loss is not None)

    with Gate() as ready, socket.create_connection(peer.address, 20) as sock:
        end = peer.accept()
        with forked(child):
            ready.wait()
            end.half_close()
            assert end.read_to_end() == (b"", EOF)


@by_mode
def test_child_has_connections_of_its_own(peer: Peer, mode: CloseMode) -> None:
    def child() -> None:
        with create_connection(peer.address, 20, policy=Policy(mode)) as mine:
            mine.sendall(b"mine")
        assert mine.close_report is not None

    with peer.connected(Policy(mode)) as (sock, end), forked(child):
        other = peer.accept()
        assert other.read(4) == b"mine"
        assert other.read_to_end() == (b"", SEEN[type(mode)])
        assert_works(sock, end)


def test_forks_while_threads_use_sockets_and_the_watcher(peer: Peer) -> None:
    """Every child can use sockets and a watcher of its own; none hangs on a lock."""
    stop, stop_serving = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def serve() -> None:
        while not stop_serving.is_set():
            sock, _ = peer.listener.accept()
            with sock:
                sock.shutdown(socket.SHUT_WR)

    def churn() -> None:
        try:
            while not stop.is_set():
                use()
        except BaseException as error:
            errors.append(error)

    def use() -> None:
        with create_connection(peer.address, 20, policy=Policy(grace=0)) as sock:
            wait_until(lambda: sock.loss is not None)
            assert sock.recv(1) == b""

    def child() -> None:
        use()
        assert len(os.listdir("/proc/self/task")) == 2

    threads = [threading.Thread(target=churn) for _ in range(3)]
    server = threading.Thread(target=serve)
    server.start()
    use()  # What Python imports for the first of all connections; a fork in an import hangs.
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            pids = [fork(child) for _ in range(2)]
            for pid in pids:
                join(pid)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        stop_serving.set()
        socket.create_connection(peer.address, 20).close()  # For the accept that still waits.
        server.join(20)
    assert not any(thread.is_alive() for thread in [server, *threads])
    assert errors == []


def test_fork_while_the_first_watcher_starts() -> None:
    """A fork at any moment of it leaves the parent's watcher working, and the child its own."""
    text = """
import os, signal, socket, sys, threading, time, safesock
def noticed():
    # From the kernel: our FIN has come, though nobody has read.
    with safesock.create_connection(address, 20, policy=safesock.Policy(grace=0)) as sock:
        end, _ = listener.accept()
        with end:
            end.settimeout(20)
            end.shutdown(socket.SHUT_WR)
            return end.recv(1) == b""
def connect():
    barrier.wait(20)
    policy = safesock.Policy(grace=0)
    socks.append(safesock.create_connection(address, 20, policy=policy))
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
listener.settimeout(20)
address = listener.getsockname()
# What Python imports for the first of all connections; a fork in an import hangs.
with socket.create_connection(address, 20):
    listener.accept()[0].close()
barrier = threading.Barrier(2)
socks = []
thread = threading.Thread(target=connect)
thread.start()
barrier.wait(20)
time.sleep(float(sys.argv[1]))
pid = os.fork()
if pid == 0:
    signal.alarm(40)
    for sock in socks:
        sock.close()
    other = socket.create_server(("127.0.0.1", 0))
    other.settimeout(20)
    listener, address = other, other.getsockname()
    os._exit(0 if noticed() else 1)
thread.join(20)
first, _ = listener.accept()
with first, socks[0]:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert noticed()
    first.settimeout(20)
    first.shutdown(socket.SHUT_WR)
    assert first.recv(1) == b""
listener.close()
"""
    for step in range(5):
        with Script(text, step * 2e-4) as script:
            script.join()


def test_child_forked_while_a_thread_makes_the_watcher_makes_its_own() -> None:
    text = """
import os, signal, socket, threading, safesock
from safesock import _watch
server = socket.create_server(("127.0.0.1", 0))
begun, over = threading.Event(), threading.Event()
def start():
    with _watch._starting:
        begun.set()
        over.wait(20)
safesock.create_connection(server.getsockname(), 20).close()
thread = threading.Thread(target=start)
thread.start()
assert begun.wait(20)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    sock = safesock.create_connection(server.getsockname(), 20)
    assert _watch.watched() == {sock.fileno(): sock}
    os._exit(0)
over.set()
thread.join()
assert os.waitpid(pid, 0)[1] == 0
server.close()
"""
    with Script(text) as script:
        script.join()
