"""Every close mode on the wire and in the kernel."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TypeAlias

import kernel
import pytest
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd

import safesock
from safesock import Abort, Drain, Graceful, KeepAlive, Linger, Policy, SafeSocket
from safesock._policy import CloseMode

UNREAD = b"nobody reads this"
# Bounds that no test waits out.
MODES = [Graceful(), Drain(TIMEOUT), Linger(20), Abort()]
# What a machine that does something else for a while may add.
SLACK = 8.0

GOING_ON = ("ESTABLISHED", "CLOSE_WAIT")


Holder: TypeAlias = Callable[[int], AbstractContextManager[None]]


def connect(peer: Peer, mode: CloseMode, **choices: Any) -> SafeSocket:
    """A connection that the watcher leaves alone, with the timeout of the tests."""
    policy = Policy(close=mode, grace=600, **choices)
    return safesock.create_connection(peer.address, TIMEOUT, policy=policy)


def fill(sock: socket.socket) -> bytes:
    """What the kernel accepts while the peer does not read."""
    data = bytes(range(251)) * 4096
    accepted = 0
    sock.setblocking(False)
    while accepted < len(data):
        try:
            accepted += sock.send(data[accepted : accepted + 65536])
        except BlockingIOError:
            break
    assert kernel.unacknowledged(sock), f"all {accepted} bytes have arrived"
    return data[:accepted]


def receive_unread(sock: socket.socket, end: PeerEnd) -> None:
    end.say(UNREAD)
    kernel.wait_until(lambda: kernel.unread(sock) == len(UNREAD), "the bytes have come")


def receive_fin(sock: socket.socket, end: PeerEnd) -> None:
    end.half_close()
    kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT", "the FIN has come")


@contextmanager
def held_by_nobody_else(_: int) -> Iterator[None]:
    yield


@contextmanager
def held_by_a_duplicate(fd: int) -> Iterator[None]:
    with socket.socket(fileno=os.dup(fd)):
        yield


@contextmanager
def held_by_a_child(fd: int) -> Iterator[None]:
    # Quicker than fork(2) of this process. It reads its standard input and leaves *fd* alone.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[fd]):
        yield


@contextmanager
def held_by_a_forked_child(_: int) -> Iterator[None]:
    """Before the connection is accepted, so that the child holds this end only."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        # The child makes system calls only, so it needs no lock that another thread may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    try:
        yield
    finally:
        os.close(theirs)
        os.waitpid(child, 0)


HOLDERS = {
    "nobody else": held_by_nobody_else,
    "a duplicate": held_by_a_duplicate,
    "a child": held_by_a_child,
}
each_holder = pytest.mark.parametrize("held", HOLDERS.values(), ids=HOLDERS)
each_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: type(mode).__name__)
each_unread = pytest.mark.parametrize("unread", [False, True], ids=["all read", "unread input"])
each_fin = pytest.mark.parametrize("fin", [False, True], ids=["peer open", "peer's FIN"])
each_unsent = pytest.mark.parametrize("unsent", [False, True], ids=["sent", "unsent"])
each_timeout = pytest.mark.parametrize(
    "timeout", [None, TIMEOUT, 0.0], ids=["blocking", "timeout", "non-blocking"]
)


def read_and_close(end: PeerEnd) -> tuple[bytes, str]:
    result = end.read_to_end()
    end.close()
    return result


def seconds(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def assert_ended(local: Any, remote: Any, mode: object) -> None:
    """Once the peer has closed as well; what an aborted one leaves is nothing, at once."""
    if isinstance(mode, Abort):
        assert kernel.state(local, remote) is None
    kernel.wait_until(lambda: kernel.state(local, remote) in (None, "TIME_WAIT"), "it has ended")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
@each_timeout
@each_holder
@each_unsent
@each_fin
@each_unread
@each_mode
def test_a_connection_ends_as_its_mode_says(
    mode: CloseMode,
    unread: bool,
    fin: bool,
    unsent: bool,
    held: Holder,
    timeout: float | None,
    family: int,
) -> None:
    check_close(mode, unread, fin, unsent, held, timeout, family)


@each_unsent
@each_fin
@each_unread
@each_mode
def test_a_connection_that_a_forked_child_holds_ends_as_its_mode_says(
    mode: CloseMode, unread: bool, fin: bool, unsent: bool
) -> None:
    check_close(mode, unread, fin, unsent, held_by_a_forked_child)


def check_close(
    mode: CloseMode,
    unread: bool,
    fin: bool,
    unsent: bool,
    held: Holder,
    timeout: float | None = None,
    family: int = socket.AF_INET,
) -> None:
    with (
        Peer(family, receive_buffer=16384 if unsent else None) as peer,
        connect(peer, mode) as sock,
        held(sock.fileno()),
        ThreadPoolExecutor(1) as pool,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
        end = peer.accept()
        local, remote = sock.getsockname(), sock.getpeername()
        if unread:
            receive_unread(sock, end)
        sent = fill(sock) if unsent else b""
        if fin:
            receive_fin(sock, end)
        sock.settimeout(timeout)

        # The others must not wait for a peer that reads.
        waits = isinstance(mode, (Drain, Linger))
        reading = pool.submit(read_and_close, end) if waits else None
        assert seconds(sock.close) < SLACK
        assert sock.fileno() == -1
        assert kernel.state(local, remote) not in GOING_ON
        received, ending = (reading or pool.submit(read_and_close, end)).result()

        if isinstance(mode, Abort):
            assert ending == RESET
            assert sent.startswith(received)
        else:
            assert ending == EOF
            assert received == sent
        assert_ended(local, remote, mode)


@each_unread
@each_fin
@each_holder
@each_mode
def test_a_collected_socket_ends_as_its_mode_says(
    mode: CloseMode, fin: bool, unread: bool, held: Holder, peer46: Peer
) -> None:
    sock = connect(peer46, mode)
    with held(sock.fileno()), ThreadPoolExecutor(1) as pool:
        end = peer46.accept()
        local, remote = sock.getsockname(), sock.getpeername()
        sock.sendall(b"last words")
        if unread:
            receive_unread(sock, end)
        if fin:
            receive_fin(sock, end)
        reading = pool.submit(read_and_close, end)
        with pytest.warns(ResourceWarning, match="unclosed"):
            del sock
        assert kernel.state(local, remote) not in GOING_ON
        assert reading.result() == (b"last words", RESET if isinstance(mode, Abort) else EOF)
        assert_ended(local, remote, mode)


@each_timeout
@each_holder
@each_unsent
@each_unread
def test_drain_aborts_at_its_timeout(
    unread: bool, unsent: bool, held: Holder, timeout: float | None, peer: Peer
) -> None:
    with connect(peer, Drain(0.05)) as sock, held(sock.fileno()):
        end = peer.accept()
        local, remote = sock.getsockname(), sock.getpeername()
        if unread:
            receive_unread(sock, end)
        sent = fill(sock) if unsent else b"last words"
        if not unsent:
            sock.sendall(sent)
        sock.settimeout(timeout)
        assert 0.05 <= seconds(sock.close) < SLACK
        assert kernel.state(local, remote) is None
        # The FIN came first, so a peer that had everything reads to its end; then the connection
        # is gone under it.
        received, ending = end.read_to_end()
        assert sent.startswith(received)
        assert ending == RESET or received == sent
        with pytest.raises(ConnectionError):
            end.say(b"too late")
        assert_ended(local, remote, Abort())


def test_drain_without_time_aborts_a_peer_that_is_still_there(peer: Peer) -> None:
    with connect(peer, Drain(0)) as sock:
        end = peer.accept()
        local, remote = sock.getsockname(), sock.getpeername()
        sock.close()
        assert kernel.state(local, remote) is None
        with pytest.raises(ConnectionError):
            end.say(b"too late")


def test_drain_without_time_is_kind_to_a_peer_that_has_closed(peer: Peer) -> None:
    with connect(peer, Drain(0)) as sock:
        end = peer.accept()
        sock.sendall(b"last words")
        receive_fin(sock, end)
        sock.close()
        assert end.read_to_end() == (b"last words", EOF)


def test_drain_ends_with_a_reset_by_the_peer(peer: Peer) -> None:
    with connect(peer, Drain(TIMEOUT)) as sock, ThreadPoolExecutor(1) as pool:
        end = peer.accept()
        local, remote = sock.getsockname(), sock.getpeername()
        closing = pool.submit(seconds, sock.close)
        assert end.read_to_end() == (b"", EOF)
        end.rst()
        assert closing.result() < SLACK
        assert kernel.state(local, remote) is None


def test_drain_reads_on_while_the_peer_still_talks(peer: Peer) -> None:
    with connect(peer, Drain(TIMEOUT)) as sock, ThreadPoolExecutor(1) as pool:
        end = peer.accept()
        sock.sendall(b"last words")
        closing = pool.submit(sock.close)
        assert end.read_to_end() == (b"last words", EOF)
        for _ in range(20):  # A byte that comes after close(2) would be answered with RST.
            end.say(b"an answer that is longer than any buffer" * 1000)
        assert not closing.done()
        end.fin()
        closing.result()


def test_interrupted_drain_aborts(peer: Peer) -> None:
    main = threading.get_ident()

    def interrupt(end: PeerEnd) -> str:
        _, ending = end.read_to_end()
        signal.pthread_kill(main, signal.SIGINT)
        return ending

    with connect(peer, Drain(TIMEOUT)) as sock, ThreadPoolExecutor(1) as pool:
        local, remote = sock.getsockname(), sock.getpeername()
        ending = pool.submit(interrupt, peer.accept())
        with pytest.raises(KeyboardInterrupt):
            sock.close()
        assert sock.fileno() == -1
        assert kernel.state(local, remote) is None
        assert ending.result() == EOF


@pytest.mark.parametrize(
    ("unread", "timeout"),
    [
        (False, None),
        (True, 0.0),
        *(
            pytest.param(unread, timeout, marks=pytest.mark.campaign)
            for unread, timeout in ((False, TIMEOUT), (False, 0.0), (True, None), (True, TIMEOUT))
        ),
    ],
)
def test_linger_goes_on_in_the_background_after_its_seconds(
    unread: bool, timeout: float | None
) -> None:
    with Peer(receive_buffer=16384) as peer, connect(peer, Linger(1)) as sock:
        end = peer.accept()
        local, remote = sock.getsockname(), sock.getpeername()
        if unread:
            receive_unread(sock, end)
        sent = fill(sock)
        sock.settimeout(timeout)
        # The kernel counts in ticks, so it may be a little early.
        assert 0.9 < seconds(sock.close) < SLACK
        assert read_and_close(end) == (sent, EOF)
        assert_ended(local, remote, Linger(1))


def test_graceful_delivers_two_megabytes_behind_an_unread_byte(peer46: Peer) -> None:
    data = os.urandom(2_000_000)
    closed = threading.Event()

    def read(end: PeerEnd) -> tuple[bytes, str]:
        # What is left is less than the kernel takes, so that sendall is done before it is read.
        first = end.read(len(data) - 50_000)
        assert closed.wait(TIMEOUT)
        rest, ending = end.read_to_end()
        return first + rest, ending

    with connect(peer46, Graceful()) as sock, ThreadPoolExecutor(1) as pool:
        end = peer46.accept()
        receive_unread(sock, end)
        reading = pool.submit(read, end)
        sock.sendall(data)
        sock.close()
        closed.set()
        received, ending = reading.result()
        assert ending == EOF
        assert received == data


def pour(end: PeerEnd) -> str:
    """Sends for longer than a close may take; how it ended."""
    deadline = time.monotonic() + SLACK + 1
    try:
        while time.monotonic() < deadline:
            end.say(bytes(65536))
    except OSError as error:
        return type(error).__name__
    end.close()
    return "all sent"


@pytest.mark.parametrize("mode", [Graceful(), Drain(0.3), Linger(1), Abort()], ids=repr)
def test_a_peer_that_never_stops_talking_holds_no_close_up(mode: CloseMode, peer46: Peer) -> None:
    with connect(peer46, mode) as sock, ThreadPoolExecutor(1) as pool:
        end = peer46.accept()
        local, remote = sock.getsockname(), sock.getpeername()
        pouring = pool.submit(pour, end)
        assert sock.recv(1)
        assert seconds(sock.close) < SLACK
        assert kernel.state(local, remote) not in GOING_ON
        if isinstance(mode, (Drain, Abort)):
            assert kernel.state(local, remote) is None
        else:  # It may be waiting for room in a receive buffer that is no longer there.
            with suppress(OSError):
                end.sock.shutdown(socket.SHUT_RDWR)
        assert pouring.result() in ("ConnectionResetError", "BrokenPipeError")


LINGER = struct.Struct("ii")


def linger_of(sock: socket.socket) -> tuple[int, ...]:
    return LINGER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER.size))


def connect_ex(peer: Peer, policy: Policy) -> SafeSocket:
    sock = SafeSocket(policy=policy)
    assert sock.connect_ex(peer.address) == 0
    return sock


def connect_in_the_background(peer: Peer, policy: Policy) -> SafeSocket:
    sock = SafeSocket(policy=policy)
    sock.setblocking(False)
    assert sock.connect_ex(peer.address) in (0, errno.EINPROGRESS)
    kernel.wait_until(lambda: kernel.state_of(sock) == "ESTABLISHED", "it is connected")
    return sock


def connect_and_wrap(peer: Peer, policy: Policy) -> SafeSocket:
    return safesock.wrap(socket.create_connection(peer.address, TIMEOUT), policy)


def wrap_and_connect(peer: Peer, policy: Policy) -> SafeSocket:
    sock = safesock.wrap(socket.socket(), policy)
    sock.connect(peer.address)
    return sock


WAYS: list[Callable[[Peer, Policy], SafeSocket]] = [
    lambda peer, policy: safesock.create_connection(peer.address, TIMEOUT, policy=policy),
    connect_ex,
    connect_in_the_background,
    connect_and_wrap,
    wrap_and_connect,
]
each_way = pytest.mark.parametrize(
    "way", WAYS, ids=lambda way: way.__name__.replace("<lambda>", "create_connection")
)


@each_way
@each_mode
def test_only_abort_sets_so_linger_while_the_connection_lives(
    mode: CloseMode, way: Callable[[Peer, Policy], SafeSocket], peer: Peer
) -> None:
    with way(peer, Policy(close=mode)) as sock, ThreadPoolExecutor(1) as pool:
        assert linger_of(sock) == ((1, 0) if isinstance(mode, Abort) else (0, 0))
        pool.submit(read_and_close, peer.accept())
        sock.close()


@pytest.mark.parametrize("mode", MODES, ids=repr)
@pytest.mark.parametrize("option", [(1, 0), (1, 3), (0, 0)], ids=str)
def test_so_linger_set_by_its_owner_is_what_close_does(
    mode: CloseMode, option: tuple[int, int], peer: Peer
) -> None:
    with (
        connect(peer, mode) as sock,
        socket.socket(fileno=os.dup(sock.fileno())) as duplicate,
        ThreadPoolExecutor(1) as pool,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER.pack(*option))
        reading = pool.submit(read_and_close, peer.accept())
        sock.sendall(b"last words")
        sock.close()
        assert linger_of(duplicate) == option
        assert reading.result() == (b"last words", RESET if option == (1, 0) else EOF)


def test_linger_waits_for_as_many_seconds_as_it_says(peer: Peer) -> None:
    with (
        connect(peer, Linger(7)) as sock,
        socket.socket(fileno=os.dup(sock.fileno())) as duplicate,
    ):
        sock.close()
        assert linger_of(duplicate) == (1, 7)


KILLED = """
import ast, sys
import safesock
from safesock import *
address, mode = ast.literal_eval(sys.argv[1]), eval(sys.argv[2])
with safesock.create_connection(address, policy=Policy(close=mode)) as sock:
    sock.sendall(b"last words")
    sys.stdin.read()
"""


@pytest.mark.parametrize(("mode", "ending"), [(Abort(), RESET), (Graceful(), EOF)], ids=repr)
def test_abort_survives_the_death_of_the_process(
    mode: CloseMode, ending: str, peer46: Peer
) -> None:
    command = [sys.executable, "-c", KILLED, repr(peer46.address), repr(mode)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        end = peer46.accept()
        remote, local = end.sock.getsockname(), end.sock.getpeername()
        assert end.read(10) == b"last words"
        process.kill()
    assert end.read_to_end() == (b"", ending)
    end.close()
    assert_ended(local, remote, mode)


def test_drain_in_a_process_that_is_killed_aborts(peer46: Peer) -> None:
    command = [sys.executable, "-c", KILLED, repr(peer46.address), repr(Drain(600))]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        end = peer46.accept()
        remote, local = end.sock.getsockname(), end.sock.getpeername()
        assert process.stdin is not None
        process.stdin.close()
        assert end.read_to_end() == (b"last words", EOF)
        process.kill()
    assert_ended(local, remote, Abort())


OPTIONS: dict[str, tuple[dict[str, Any], dict[tuple[int, int], int]]] = {
    "keepalive": (
        {"keepalive": KeepAlive(idle=11, interval=12, count=13)},
        {
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 11,
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 12,
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 13,
        },
    ),
    "most keepalive": (
        {"keepalive": KeepAlive(32767, 32767, 127)},
        {
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 32767,
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 32767,
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 127,
        },
    ),
    "user_timeout": (
        {"user_timeout": 7.5},
        {(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 7500},
    ),
    "least user_timeout": (
        {"user_timeout": 0.001},
        {(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 1},
    ),
    "most user_timeout": (
        {"user_timeout": (2**31 - 1) / 1000},
        {(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 2**31 - 1},
    ),
    "nodelay": ({"nodelay": True}, {(socket.IPPROTO_TCP, socket.TCP_NODELAY): 1}),
    "no nodelay": ({"nodelay": False}, {(socket.IPPROTO_TCP, socket.TCP_NODELAY): 0}),
    "reuse_address": ({"reuse_address": True}, {(socket.SOL_SOCKET, socket.SO_REUSEADDR): 1}),
    "no reuse_address": ({"reuse_address": False}, {(socket.SOL_SOCKET, socket.SO_REUSEADDR): 0}),
}


@each_way
@pytest.mark.parametrize(("choices", "options"), OPTIONS.values(), ids=OPTIONS)
def test_the_kernel_has_the_options_of_the_policy(
    choices: dict[str, Any],
    options: dict[tuple[int, int], int],
    way: Callable[[Peer, Policy], SafeSocket],
    peer: Peer,
) -> None:
    with way(peer, Policy(**choices)) as sock:
        assert {option: sock.getsockopt(*option) for option in options} == options


ALL_OPTIONS = sorted({option for _, options in OPTIONS.values() for option in options})


@each_way
def test_the_default_policy_leaves_all_options_alone(
    way: Callable[[Peer, Policy], SafeSocket], peer: Peer
) -> None:
    with socket.create_connection(peer.address, TIMEOUT) as plain, way(peer, Policy()) as sock:
        for option in ALL_OPTIONS:
            assert sock.getsockopt(*option) == plain.getsockopt(*option)


@pytest.mark.parametrize("chosen", [None, True, False])
@pytest.mark.parametrize("fixed", [False, True], ids=["any port", "fixed port"])
def test_reuse_address_is_on_when_a_local_port_is_fixed(
    chosen: bool | None, fixed: bool, peer46: Peer
) -> None:
    host, _ = peer46.address
    family = peer46.listener.family
    with socket.create_server((host, 0), family=family) as other:
        port = other.getsockname()[1]
    with SafeSocket(family, policy=Policy(reuse_address=chosen)) as sock:
        sock.bind((host, port if fixed else 0))
        assert reuses_address(sock) == (fixed if chosen is None else chosen)
        sock.connect(peer46.address)
        assert reuses_address(sock) == (fixed if chosen is None else chosen)
        assert not fixed or sock.getsockname()[1] == port


def reuses_address(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
