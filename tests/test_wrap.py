"""`wrap`: what becomes of a socket that safesock takes over, and what it refuses to take."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kernel
import pytest
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd

from safesock import (
    Abort,
    Cause,
    Drain,
    Graceful,
    KeepAlive,
    Linger,
    Loss,
    Policy,
    SafeSocket,
    _kernel,
    wrap,
)

QUIET = Policy(watch=False)


@pytest.fixture
def plain(peer: Peer) -> Iterator[tuple[socket.socket, PeerEnd]]:
    """A connected socket of the standard library, and the peer's end."""
    with socket.create_connection(peer.address, TIMEOUT) as sock:
        yield sock, peer.accept()


Plain = tuple[socket.socket, PeerEnd]


def linger(sock: socket.socket) -> tuple[int, int]:
    on, seconds = struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    return on, seconds


def loss_of(sock: SafeSocket) -> Loss | None:
    """A call, as mypy would take an attribute to stay what it was."""
    return sock.loss


def is_detached(sock: socket.socket) -> bool:
    with pytest.raises(OSError, match="descriptor") as caught:
        sock.recv(1)
    return sock.fileno() == -1 and caught.value.errno == errno.EBADF


def unanswered() -> tuple[contextlib.ExitStack, socket.socket, socket.socket]:
    """A listener whose queue is full, and a socket whose connect to it is under way."""
    stack = contextlib.ExitStack()
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    listener.settimeout(TIMEOUT)
    for _ in range(8):
        sock = stack.enter_context(socket.socket())
        sock.setblocking(False)
        assert sock.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        if not select.select([], [sock], [], 0.3)[1]:
            assert kernel.state_of(sock) == "SYN_SENT"
            return stack, listener, sock
    raise AssertionError("the queue does not fill")


# What is taken over -----------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 2.5, 0.0])
def test_descriptor_and_timeout_move(plain: Plain, timeout: float | None) -> None:
    sock, end = plain
    sock.settimeout(timeout)
    fd, blocks, peer_name = sock.fileno(), os.get_blocking(sock.fileno()), sock.getpeername()
    with wrap(sock) as safe:
        assert type(safe) is SafeSocket
        assert safe.fileno() == fd
        assert safe.gettimeout() == timeout
        assert os.get_blocking(fd) == blocks
        assert (safe.family, safe.type, safe.proto) == (sock.family, sock.type, sock.proto)
        assert safe.getpeername() == peer_name
        assert is_detached(sock)
        safe.sendall(b"ping")
        assert end.read(4) == b"ping"


def test_default_timeout_is_not_given_to_what_is_taken_over(plain: Plain) -> None:
    sock, _ = plain
    sock.settimeout(None)
    socket.setdefaulttimeout(0.5)
    try:
        with wrap(sock) as safe:
            assert safe.gettimeout() is None
            assert os.get_blocking(safe.fileno())
    finally:
        socket.setdefaulttimeout(None)


def test_timeouts_work(plain: Plain) -> None:
    sock, end = plain
    with wrap(sock) as safe:
        safe.settimeout(0.05)
        with pytest.raises(TimeoutError):
            safe.recv(1)
        safe.setblocking(False)
        with pytest.raises(BlockingIOError):
            safe.recv(1)
        assert loss_of(safe) is None
        safe.settimeout(TIMEOUT)
        end.say(b"x")
        assert safe.recv(1) == b"x"


def test_unread_bytes_are_still_there(plain: Plain) -> None:
    sock, end = plain
    end.say(b"hello" * 1000)
    end.fin()
    kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT")
    with wrap(sock, QUIET) as safe, safe.makefile("rb") as file:
        assert file.read() == b"hello" * 1000
        assert safe.loss is not None
        assert (safe.loss.cause, safe.loss.unread) == (Cause.FIN, 0)
        assert safe.fileno() == -1


@pytest.mark.parametrize(
    ("close", "seen"),
    [(Graceful(), EOF), (Drain(0.0), EOF), (Linger(1), EOF), (Abort(), RESET)],
    ids=repr,
)
def test_it_ends_by_the_policy(plain: Plain, close: Any, seen: str) -> None:
    """Also with unread input, for which the standard library's close sends RST, and a duplicate."""
    sock, end = plain
    end.say(b"unread")
    kernel.wait_until(lambda: select.select([sock], [], [], 0)[0])
    with sock.dup():
        safe = wrap(sock, Policy(close=close))
        assert (linger(safe) == (1, 0)) == isinstance(close, Abort)
        if seen == EOF:
            safe.sendall(b"goodbye")
        safe.close()
        assert end.read_to_end() == (b"goodbye" if seen == EOF else b"", seen)
    assert safe.close_report is not None
    assert safe.close_report.mode == close
    assert safe.close_report.unread == 6


def test_a_collected_one_ends_by_the_policy(plain: Plain) -> None:
    sock, end = plain
    with sock.dup():
        safe = wrap(sock, Policy(close=Abort()))
        with pytest.warns(ResourceWarning):
            del safe
        assert end.read_to_end() == (b"", RESET)


def test_options_are_set(plain: Plain) -> None:
    sock, _ = plain
    policy = Policy(
        keepalive=KeepAlive(7, 3, 2), user_timeout=4.5, nodelay=True, reuse_address=True
    )
    with wrap(sock, policy) as safe:
        tcp = socket.IPPROTO_TCP
        assert safe.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert safe.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert safe.getsockopt(tcp, socket.TCP_NODELAY)
        assert safe.getsockopt(tcp, socket.TCP_KEEPIDLE) == 7
        assert safe.getsockopt(tcp, socket.TCP_KEEPINTVL) == 3
        assert safe.getsockopt(tcp, socket.TCP_KEEPCNT) == 2
        assert safe.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 4500


def test_a_fin_is_noticed_though_nobody_reads(plain: Plain) -> None:
    sock, end = plain
    with wrap(sock, Policy(grace=0.01)) as safe:
        end.say(b"last words")
        end.fin()
        kernel.wait_until(lambda: safe.loss is not None, "the watcher has stepped in")
        assert kernel.state_of(safe) != "CLOSE_WAIT"
        assert safe.recv(100) == b"last words"
        assert safe.recv(100) == b""


def test_unconnected_socket_is_governed_once_it_has_connected(peer46: Peer) -> None:
    sock = socket.socket(peer46.listener.family)
    with wrap(sock, QUIET) as safe:
        assert sock.fileno() == -1
        assert loss_of(safe) is None
        safe.settimeout(TIMEOUT)
        safe.connect(peer46.address)
        peer46.accept().fin()
        assert safe.recv(1) == b""
        assert safe.fileno() == -1
        assert safe.loss is not None
        assert safe.loss.peer[:2] == peer46.address


def test_bound_socket_keeps_its_port(peer: Peer) -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    with wrap(sock) as safe:
        safe.connect(peer.address)
        assert safe.getsockname() == ("127.0.0.1", port)
        assert peer.accept().sock.getpeername()[1] == port


def test_a_socket_made_non_blocking_by_its_type_is_taken(peer: Peer) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with wrap(sock) as safe:
        assert safe.gettimeout() == 0.0
        assert safe.connect_ex(peer.address) == errno.EINPROGRESS


@pytest.mark.parametrize("watch", [pytest.param(False, marks=pytest.mark.campaign), True])
def test_a_connect_under_way_is_governed_once_it_is_made(watch: bool) -> None:
    stack, listener, sock = unanswered()
    with stack, wrap(sock, Policy(watch=watch, grace=0.01)) as safe:
        assert safe.gettimeout() == 0.0
        with listener.accept()[0]:  # Makes room; the kernel tries again after a second.
            assert select.select([], [safe], [], TIMEOUT)[1]
        assert safe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert loss_of(safe) is None
        assert kernel.state_of(safe) == "ESTABLISHED"
        # The accepted connections come in order: ours is the last one.
        ours = safe.getsockname()
        for _ in range(8):
            end, address = listener.accept()
            end.close()
            if address == ours:
                break
        if watch:
            kernel.wait_until(lambda: safe.loss is not None, "the watcher has stepped in")
        else:
            assert select.select([safe], [], [], TIMEOUT)[0]
        assert safe.recv(1) == b""
        assert safe.loss is not None
        assert safe.loss.cause is Cause.FIN
        assert safe.fileno() == -1


def test_a_connect_under_way_that_is_refused_is_no_loss() -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        sock = socket.socket()
        sock.setblocking(False)
        assert sock.connect_ex(port.getsockname()) == errno.EINPROGRESS
        with wrap(sock) as safe:
            assert select.select([], [safe], [], TIMEOUT)[1]
            assert safe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
            assert loss_of(safe) is None
            assert safe.fileno() >= 0


def test_an_already_reset_socket_tells_of_it_once(plain: Plain) -> None:
    sock, end = plain
    end.rst()
    kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE")
    with wrap(sock, QUIET) as safe:
        with pytest.raises(ConnectionResetError):
            safe.recv(1)
        assert safe.loss is not None
        assert safe.loss.cause is Cause.RST
        assert safe.fileno() == -1
        assert safe.recv(1) == b""


def test_what_its_owner_has_half_closed_can_still_be_read(plain: Plain) -> None:
    sock, end = plain
    sock.sendall(b"question")
    sock.shutdown(socket.SHUT_WR)
    with wrap(sock, QUIET) as safe:
        with pytest.raises(BrokenPipeError):
            safe.send(b"more")
        assert loss_of(safe) is None
        assert end.read_to_end() == (b"question", EOF)
        end.say(b"answer")
        end.fin()
        assert safe.recv(6) == b"answer"
        assert safe.recv(6) == b""
        assert safe.loss is not None
        assert safe.loss.cause is Cause.FIN
        assert (safe.loss.sent, safe.loss.unacknowledged) == (8, 0)


def test_an_accepted_socket_can_be_handed_over(peer: Peer) -> None:
    with socket.create_connection(peer.address) as client:
        accepted, _ = peer.listener.accept()
        with wrap(accepted, Policy(close=Abort())):
            pass
        with pytest.raises(ConnectionResetError):
            client.recv(1)


# A SafeSocket again -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [socket.socket, SafeSocket])
def test_an_so_linger_from_before_gives_way_to_the_policy(peer: Peer, kind: Any) -> None:
    """A process that is killed would send RST by it."""
    with kind() as sock:
        sock.connect(peer.address)
        end = peer.accept()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with wrap(sock, Policy(close=Graceful(), watch=False)) as safe, safe.dup() as duplicate:
            assert linger(duplicate)[0] == 0
            safe.sendall(b"goodbye")
        assert end.read_to_end() == (b"goodbye", EOF)


@pytest.mark.parametrize("policy", [None, Policy(close=Graceful())])
def test_a_safe_socket_again(plain: Plain, policy: Policy | None) -> None:
    sock, end = plain
    aborting = Policy(close=Abort())
    first = wrap(sock, aborting)
    second = wrap(first, policy)
    assert second.policy is (policy or aborting)
    assert is_detached(first)
    assert first.loss is None
    first.close()
    del first
    gc.collect()
    second.sendall(b"still here")
    assert end.read(10) == b"still here"
    second.close()
    assert end.read_to_end() == (b"", EOF if policy else RESET)


def test_a_safe_socket_that_has_lost_its_connection_is_refused(plain: Plain) -> None:
    sock, end = plain
    with wrap(sock, QUIET) as safe:
        end.fin()
        assert safe.recv(1) == b""
        with pytest.raises(ValueError, match="closed"):
            wrap(safe)
        assert safe.recv(1) == b""


# What is refused --------------------------------------------------------------------------------


def closed_socket() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


def listening(family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family)
    sock.listen()
    return sock


REFUSED: dict[str, tuple[Callable[[], socket.socket], str]] = {
    "UDP": (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "TCP"),
    "UDP over IPv6": (lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM), "TCP"),
    "AF_UNIX": (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), "TCP"),
    "listening": (listening, "listens"),
    "listening over IPv6": (lambda: listening(socket.AF_INET6), "listens"),
    "closed": (closed_socket, "closed"),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses_what_is_no_tcp_client(make: Callable[[], socket.socket], words: str) -> None:
    with make() as sock:
        fd, timeout, before = sock.fileno(), sock.gettimeout(), kernel.descriptors()
        with pytest.raises(ValueError, match=f"wrap takes .*{words}"):
            wrap(sock, Policy(close=Abort()))
        assert (sock.fileno(), sock.gettimeout()) == (fd, timeout)
        assert fd < 0 or linger(sock) == (0, 0)
        assert kernel.left_open(before) == []


def test_a_refused_socket_pair_goes_on_working() -> None:
    one, other = socket.socketpair()
    with one, other:
        with pytest.raises(ValueError, match="TCP"):
            wrap(one)
        one.sendall(b"x")
        assert other.recv(1) == b"x"


def test_a_refused_listener_goes_on_listening(peer: Peer) -> None:
    with pytest.raises(ValueError, match="listens"):
        wrap(peer.listener)
    with socket.create_connection(peer.address) as client:
        client.sendall(b"x")
        assert peer.accept().read(1) == b"x"


def test_refuses_a_detached_socket(plain: Plain) -> None:
    sock, _ = plain
    fd = sock.detach()
    try:
        with pytest.raises(ValueError, match="detached"):
            wrap(sock)
        os.fstat(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("what", [None, 3, "socket", b"", object(), socket.socket, sys.stdin])
def test_refuses_what_is_no_socket(what: Any) -> None:
    with pytest.raises(TypeError, match=r"wrap takes a socket\.socket"):
        wrap(what)


def test_refuses_the_socket_of_an_asyncio_transport(peer: Peer) -> None:
    """It is no socket.socket, and its transport would not know."""

    async def main() -> None:
        _, writer = await asyncio.open_connection(*peer.address)
        with pytest.raises(TypeError, match=r"socket\.socket"):
            wrap(writer.get_extra_info("socket"))
        writer.write(b"ping")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    asyncio.run(main())
    assert peer.accept().read_to_end() == (b"ping", EOF)


@pytest.mark.parametrize("policy", ["abort", Abort(), Policy, 0, False, object()])
def test_refuses_a_wrong_policy(plain: Plain, policy: Any) -> None:
    sock, end = plain
    with pytest.raises(TypeError, match=r"safesock\.Policy"):
        wrap(sock, policy)
    sock.sendall(b"ping")
    assert end.read(4) == b"ping"


@pytest.mark.parametrize("again", [False, True], ids=["plain", "SafeSocket"])
def test_refuses_while_a_makefile_file_is_open(plain: Plain, again: bool) -> None:
    sock, end = plain
    if again:
        sock = wrap(sock)
    with sock:
        with sock.makefile("rb") as file:
            with pytest.raises(ValueError, match="makefile"):
                wrap(sock, Policy(close=Abort()))
            assert linger(sock) == (0, 0)
            end.say(b"line\n")
            assert file.readline() == b"line\n"
        with wrap(sock, Policy(close=Abort())) as safe:
            end.say(b"more")
            assert safe.recv(4) == b"more"
    assert end.read_to_end() == (b"", RESET)


def test_refuses_a_closed_socket_whose_file_is_open(plain: Plain) -> None:
    sock, end = plain
    with sock.makefile("rb") as file:
        sock.close()
        with pytest.raises(ValueError, match="makefile"):
            wrap(sock)
        end.say(b"line\n")
        assert file.readline() == b"line\n"


# After fork -------------------------------------------------------------------------------------

FORKS = """
import os, socket, sys
from safesock import Abort, Policy, create_connection, wrap

sock = create_connection(("127.0.0.1", int(sys.argv[1])), policy=Policy(watch=False))
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    if sys.argv[2] == "wrap":
        wrap(sock, Policy(close=Abort(), watch=False)).close()
    else:
        sock.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
if sys.argv[2] == "wrap":
    sys.stdin.readline()
else:
    sock.sendall(b"the parent's")
    sys.stdin.readline()
    sock.close()
os._exit(0)
"""


@pytest.mark.parametrize("act", ["wrap", "close"])
def test_wrap_makes_a_forked_child_the_owner(peer: Peer, act: str) -> None:
    """In a process of its own: this one has threads. The parent keeps its descriptor until told."""
    command = [sys.executable, "-c", FORKS, str(peer.address[1]), act]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            end = peer.accept()
            if act == "wrap":
                assert end.read_to_end() == (b"", RESET)
            else:
                assert end.read(12) == b"the parent's"
            process.communicate(b"go on\n", TIMEOUT)
            if act == "close":
                assert end.read_to_end() == (b"", EOF)
            assert process.returncode == 0
        finally:
            process.kill()


# What has been sent already ----------------------------------------------------------------------


def test_our_syn_is_told_from_what_another_thread_sends_meanwhile(plain: Plain) -> None:
    """Where it is not, the bytes of every later record are one too many."""
    sock, end = plain
    is_over = threading.Event()

    def send() -> None:
        while not is_over.is_set():
            sock.send(b"x" * 100_000)

    with ThreadPoolExecutor(2) as threads:
        reading, sending = threads.submit(end.read_to_end), threads.submit(send)
        try:
            found = {_kernel.control_bytes(sock) for _ in range(3_000)}
        finally:
            is_over.set()
            sending.result(TIMEOUT)
            sock.shutdown(socket.SHUT_WR)
            reading.result(TIMEOUT)
    assert found == {1}
