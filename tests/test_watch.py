"""The watcher: a FIN or RST is noticed while nobody reads, and the descriptor stays its owner's."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kernel
import pytest
from kernel import wait_until
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd
from process import Gate, Script, forked, in_child, run_script

from safesock import (
    Abort,
    Cause,
    Drain,
    Graceful,
    Linger,
    Policy,
    SafeSocket,
    _watch,
    create_connection,
)
from safesock._policy import CloseMode

MODES = [Graceful(), Drain(1), Linger(1), Abort()]
NEVER = 3600.0  # A grace that does not pass.
SOON = 0.2

by_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: type(mode).__name__)
by_end = pytest.mark.parametrize("on_loss", ["close", "release"])
by_loss = pytest.mark.parametrize("on_loss", ["close", "release", "keep"])


def seen_by_peer(mode: CloseMode) -> str:
    return RESET if isinstance(mode, Abort) else EOF


class Ends:
    """One connection in the kernel's tables, from our side."""

    def __init__(self, sock: socket.socket) -> None:
        self.local, self.peer = sock.getsockname(), sock.getpeername()

    @property
    def state(self) -> str | None:
        return kernel.state(self.local, self.peer)

    def wait_for(self, *states: str | None) -> None:
        wait_until(lambda: self.state in states, f"{states}, not {self.state}")

    def wait_for_our_end(self) -> None:
        """Until we have closed our side, and the watcher is done with it."""
        wait_until(lambda: self.state not in ("ESTABLISHED", "CLOSE_WAIT"), "we close our side")
        wait_until(lambda: kernel.is_asleep(watcher_thread()), "the watcher is done")


def let_watcher_pass(peer: Peer, grace: float = 0.0) -> None:
    """Until the watcher has dealt with all that came before, and is due by *grace*: it goes by
    the order in which things happen, so it is done when it has ended one more connection."""
    with peer.connected(Policy(grace=grace)) as (sock, end):
        ends = Ends(sock)
        end.half_close()
        ends.wait_for_our_end()


def wait_for_loss(sock: SafeSocket) -> None:
    wait_until(lambda: sock.loss is not None, "the loss is noticed")


def watcher_thread() -> int:
    """The system's number of it, once it runs."""

    def number() -> int | None:
        return None if _watch._watcher is None else _watch._watcher.native_id

    wait_until(number, "the watcher runs")
    return number() or 0


def threads() -> set[int]:
    return {int(number) for number in os.listdir("/proc/self/task")}


def fill(sock: socket.socket, end: PeerEnd, data: bytes) -> None:
    """The peer says *data* and closes its side; nobody reads."""
    end.say(data)
    end.half_close()
    wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT", "the FIN arrives")


def connected_with_room(peer: Peer, policy: Policy, stack: ExitStack) -> tuple[SafeSocket, PeerEnd]:
    """A connection whose receive buffer holds 3 MB, so that the FIN behind them arrives."""
    sock = stack.enter_context(SafeSocket(policy=policy))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
    sock.settimeout(20)
    sock.connect(peer.address)
    return sock, peer.accept()


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while part := sock.recv(3000):
        data += part
    return bytes(data)


# Noticed, and ended ------------------------------------------------------------------------------


@by_mode
@by_end
def test_fin_is_noticed_and_connection_ended(peer46: Peer, mode: CloseMode, on_loss: Any) -> None:
    with peer46.connected(Policy(mode, on_loss, grace=0)) as (sock, end):
        ends, fd = Ends(sock), sock.fileno()
        end.half_close()
        ends.wait_for_our_end()
        assert end.read_to_end() == (b"", seen_by_peer(mode))
        wait_for_loss(sock)
        assert sock.loss is not None
        assert sock.loss.cause is Cause.FIN
        assert (sock.loss.local, sock.loss.peer) == (ends.local, ends.peer)
        assert sock.fileno() == fd
        assert os.fstat(fd)
        assert sock.recv(10) == b""
        if on_loss == "release":
            sock.send(b"as if the peer had just closed")
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")


@by_mode
def test_keep_only_records_the_fin(peer: Peer, mode: CloseMode) -> None:
    with peer.connected(Policy(mode, "keep", grace=0)) as (sock, end):
        ends = Ends(sock)
        end.half_close()
        wait_for_loss(sock)
        assert ends.state == "CLOSE_WAIT"
        assert sock.recv(10) == b""
        sock.sendall(b"more")
        assert end.read(4) == b"more"
    assert end.read_to_end() == (b"", seen_by_peer(mode))
    ends.wait_for(None)


@by_mode
@by_loss
def test_rst_is_noticed(peer46: Peer, mode: CloseMode, on_loss: Any) -> None:
    with peer46.connected(Policy(mode, on_loss, grace=0)) as (sock, end):
        fd = sock.fileno()
        end.rst()
        wait_for_loss(sock)
        assert sock.loss is not None
        assert sock.loss.cause is Cause.RST
        assert isinstance(sock.loss.error, ConnectionResetError)
        assert sock.fileno() == fd
        assert kernel.state_of(sock) == "CLOSE"
        with pytest.raises(ConnectionResetError):
            sock.recv(10)


def test_our_own_half_close_before_the_fin_leaves_nothing(peer: Peer) -> None:
    with peer.connected(Policy(grace=0)) as (sock, end):
        ends = Ends(sock)
        sock.shutdown(socket.SHUT_WR)
        end.say(b"the answer")
        end.half_close()
        wait_for_loss(sock)
        assert ends.state in (None, "TIME_WAIT")
        assert read_all(sock) == b"the answer"


def test_own_shutdown_of_reading_is_no_loss_and_the_fin_after_it_is(peer: Peer) -> None:
    with peer.connected(Policy(grace=0)) as (sock, end):
        ends = Ends(sock)
        sock.shutdown(socket.SHUT_RD)
        let_watcher_pass(peer)
        assert sock.loss is None
        assert ends.state == "ESTABLISHED"
        sock.sendall(b"still here")
        assert end.read(10) == b"still here"
        end.half_close()
        ends.wait_for_our_end()
        assert end.read_to_end() == (b"", EOF)


# Grace -------------------------------------------------------------------------------------------


@by_mode
@by_end
def test_connection_ends_only_after_grace(peer: Peer, mode: CloseMode, on_loss: Any) -> None:
    with peer.connected(Policy(mode, on_loss, grace=SOON)) as (sock, end):
        ends = Ends(sock)
        before = time.monotonic()
        end.half_close()
        ends.wait_for_our_end()
        assert time.monotonic() - before >= SOON


@by_mode
@by_loss
def test_owner_that_reacts_within_grace_is_undisturbed(
    peer: Peer, mode: CloseMode, on_loss: Any
) -> None:
    with peer.connected(Policy(mode, on_loss, grace=NEVER)) as (sock, end):
        ends = Ends(sock)
        fill(sock, end, b"last words")
        let_watcher_pass(peer)
        assert ends.state == "CLOSE_WAIT"
        assert sock.loss is None
        assert sock.getpeername() == ends.peer
        sock.sendall(b"goodbye")
        assert end.read(7) == b"goodbye"
        assert read_all(sock) == b"last words"
        assert (ends.state == "CLOSE_WAIT") == (on_loss == "keep")


def test_owner_that_reads_the_fin_within_grace_is_not_stepped_on(peer: Peer) -> None:
    with peer.connected(Policy(on_loss="release", grace=SOON)) as (sock, end):
        end.half_close()
        assert sock.recv(10) == b""
        loss = sock.loss
        let_watcher_pass(peer, SOON)
        assert loss is not None
        assert sock.loss is loss


def test_owner_gets_the_reset_itself_within_grace(peer: Peer) -> None:
    with peer.connected(Policy(grace=NEVER)) as (sock, end):
        end.rst()
        let_watcher_pass(peer)
        assert sock.loss is None
        with pytest.raises(ConnectionResetError):
            sock.recv(10)
        assert sock.recv(10) == b""


# What the owner still has ------------------------------------------------------------------------


@by_mode
@by_end
def test_unread_bytes_stay_readable(peer: Peer, mode: CloseMode, on_loss: Any) -> None:
    policy = Policy(mode, on_loss, grace=0)
    with ExitStack() as stack:
        connections = [connected_with_room(peer, policy, stack) for _ in range(3)]
        contents = [os.urandom(size) for size in (1, 31, 100_000)]
        numbers = [sock.fileno() for sock, _ in connections]
        all_ends = [Ends(sock) for sock, _ in connections]
        for (_, end), data in zip(connections, contents, strict=True):
            end.say(data)
            end.half_close()
        for ends in all_ends:
            ends.wait_for_our_end()
        assert [sock.fileno() for sock, _ in connections] == numbers
        for (sock, end), data in zip(connections, contents, strict=True):
            assert end.read_to_end() == (b"", seen_by_peer(mode))
            wait_for_loss(sock)
            assert sock.loss is not None
            assert sock.loss.cause is Cause.FIN
            assert sock.loss.unread == len(data)
            assert read_all(sock) == data
            assert sock.recv(10) == b""
            if on_loss == "release":
                sock.send(b"as if the peer had just closed")
            with pytest.raises(BrokenPipeError):
                sock.sendall(b"x")


@pytest.mark.campaign
def test_abort_with_megabytes_unread_drops_none_of_them(peer: Peer) -> None:
    policy = Policy(Abort(), "release", grace=0)
    with ExitStack() as stack:
        sock, end = connected_with_room(peer, policy, stack)
        ends, data = Ends(sock), os.urandom(3_000_000)
        fill(sock, end, data)
        let_watcher_pass(peer)
        read = bytearray()
        while len(read) < len(data):
            read += sock.recv(len(data) - len(read))
        assert bytes(read) == data
        ends.wait_for_our_end()
        assert end.read_to_end() == (b"", RESET)
        assert sock.recv(10) == b""


@by_mode
@pytest.mark.parametrize("unread", [b"", b"421"])
def test_descriptor_can_be_waited_on(peer: Peer, mode: CloseMode, unread: bytes) -> None:
    with (
        peer.connected(Policy(mode, grace=0)) as (sock, end),
        select.epoll() as before,
        select.epoll() as after,
    ):
        fd, ends = sock.fileno(), Ends(sock)
        before.register(fd, select.EPOLLIN)
        if unread:
            end.say(unread)
        end.half_close()
        ends.wait_for_our_end()
        assert select.select([sock], [], [], 20)[0] == [sock]
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        ((number, events),) = poll.poll(20_000)
        assert number == fd
        assert events & select.POLLIN
        assert not events & select.POLLNVAL
        after.register(fd, select.EPOLLIN)
        for epoll in (after, before):
            ((number, events),) = epoll.poll(20)
            assert number == fd
            assert events & select.EPOLLIN
        before.modify(fd, select.EPOLLOUT)  # As an event loop does with what it has registered.
        before.unregister(fd)
        assert read_all(sock) == unread


@by_mode
def test_timeout_stays_as_it_was(peer: Peer, mode: CloseMode) -> None:
    with ExitStack() as stack:
        all_ends = {}
        for timeout in (None, 20.0, 0.0):
            sock, end = stack.enter_context(peer.connected(Policy(mode, grace=0)))
            all_ends[sock] = Ends(sock), timeout
            sock.settimeout(timeout)
            end.say(b"rest")
            end.half_close()
        for sock, (ends, timeout) in all_ends.items():
            ends.wait_for_our_end()
            assert sock.gettimeout() == timeout
            assert os.get_blocking(sock.fileno()) == (timeout is None)
            assert not os.get_inheritable(sock.fileno())
            assert read_all(sock) == b"rest"


def tell_by_recv(sock: SafeSocket) -> int:
    with pytest.raises(ConnectionResetError) as caught:
        sock.recv(10)
    return caught.value.errno or 0


def tell_by_send(sock: SafeSocket) -> int:
    with pytest.raises(ConnectionResetError) as caught:
        sock.send(b"x")
    return caught.value.errno or 0


def tell_by_option(sock: SafeSocket) -> int:
    return int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


@by_loss
@pytest.mark.parametrize("mode", [Graceful(), Abort()], ids=["Graceful", "Abort"])
@pytest.mark.parametrize("tell", [tell_by_recv, tell_by_send, tell_by_option])
def test_reset_noted_by_the_watcher_is_told_once(
    peer: Peer, on_loss: Any, mode: CloseMode, tell: Callable[[SafeSocket], int]
) -> None:
    with peer.connected(Policy(mode, on_loss, grace=0)) as (sock, end):
        end.rst()
        wait_for_loss(sock)
        assert tell(sock) == errno.ECONNRESET
        assert (sock.fileno() == -1) == (on_loss == "close")
        assert sock.recv(10) == b""
        for _ in range(2):
            with pytest.raises(BrokenPipeError):
                sock.send(b"x")
        assert sock.recv(10) == b""
        if on_loss != "close":
            assert tell_by_option(sock) == 0


# The thread --------------------------------------------------------------------------------------


def test_one_thread_for_many_sockets(peer: Peer) -> None:
    socks = []
    running: set[int] = set()
    try:
        for _ in range(100):
            sock = SafeSocket(policy=Policy(grace=0))
            socks.append(sock)
            sock.connect(peer.address)
            peer.accept()
            running = running or threads() | {watcher_thread()}
        all_ends = [Ends(sock) for sock in socks]
        for end in peer.ends:
            end.half_close()
        for ends in all_ends:
            ends.wait_for_our_end()
        assert threads() <= running  # Those of other tests may end.
    finally:
        for sock in socks:
            sock.close()


def test_thread_starts_when_first_needed() -> None:
    script = """
import os, socket
def threads():
    return len(os.listdir("/proc/self/task"))
import safesock
assert threads() == 1, "import"
udp = safesock.SafeSocket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
udp.connect(udp.getsockname())
local = safesock.SafeSocket(socket.AF_UNIX)
tcp = safesock.SafeSocket()
listener = safesock.SafeSocket()
listener.bind(("127.0.0.1", 0))
listener.listen()
assert threads() == 1, "nothing to watch"
address = listener.getsockname()
unwatched = safesock.create_connection(address, policy=safesock.Policy(watch=False))
accepted, _ = listener.accept()
assert threads() == 1, "watch=False"
tcp.connect(address)
assert threads() == 2, "watched"
also_accepted, _ = listener.accept()
assert threads() == 2, "accepted sockets are the server's affair"
for sock in (udp, local, unwatched, accepted, tcp, also_accepted, listener):
    sock.close()
"""
    run_script(script)


def watcher_switches() -> str:
    """How often the watcher has been given the processor, and for how long."""
    return Path(f"/proc/self/task/{watcher_thread()}/schedstat").read_text(encoding="ascii")


def keep_busy(sock: SafeSocket, end: PeerEnd) -> None:
    """Traffic on a watched connection, which is nothing to the watcher."""
    for _ in range(300):
        sock.sendall(b"ping")
        end.read(4)
        end.say(b"pong")
        sock.recv(4)


@by_loss
@pytest.mark.parametrize("how", ["idle", "fin", "rst", "own shutdown"])
def test_waiting_costs_nothing(peer: Peer, on_loss: Any, how: str) -> None:
    with peer.connected(Policy(on_loss=on_loss, grace=0)) as (sock, end):
        ends = Ends(sock)
        if how == "fin":
            end.say(b"unread")
            end.half_close()
        elif how == "rst":
            end.rst()
        elif how == "own shutdown":
            sock.shutdown(socket.SHUT_RD)
        if how in ("fin", "rst"):
            wait_for_loss(sock)
        assert ends.local
        with peer.connected(Policy(grace=NEVER)) as (busy, its_end):
            let_watcher_pass(peer)
            keep_busy(busy, its_end)
            wait_until(lambda: kernel.is_asleep(watcher_thread()), "it is back in the kernel")

            def is_woken() -> bool:
                before = watcher_switches()
                keep_busy(busy, its_end)
                return watcher_switches() != before

            # By each of them, if traffic did; what else is due now and then is not that.
            assert not all(is_woken() for _ in range(20))


def test_watcher_with_nothing_to_do_sleeps() -> None:
    """In a process of its own, where nothing is due, not even in an hour."""
    script = """
import os, socket, threading, time, safesock
listener = socket.create_server(("127.0.0.1", 0))
sock = safesock.create_connection(listener.getsockname())
end, _ = listener.accept()
(watcher,) = {int(one) for one in os.listdir("/proc/self/task")} - {threading.get_native_id()}
def about_it(name):
    with open(f"/proc/self/task/{watcher}/{name}") as file:
        return file.read()
def keep_busy():
    for _ in range(2000):
        sock.sendall(b"ping")
        end.recv(4)
        end.sendall(b"pong")
        sock.recv(4)
deadline = time.monotonic() + 20
witness = safesock.create_connection(listener.getsockname(), policy=safesock.Policy(grace=0))
listener.accept()[0].close()
while witness.loss is None:  # When it has been noticed, the other is being watched.
    assert time.monotonic() < deadline
while about_it("wchan") not in ("ep_poll", "do_epoll_wait"):
    assert time.monotonic() < deadline
before = about_it("schedstat")
keep_busy()
assert about_it("schedstat") == before
for one in (sock, end, listener, witness):
    one.close()
"""
    run_script(script)


def test_sockets_that_are_closed_in_the_middle_of_it_do_not_stop_it(peer: Peer) -> None:
    for number in range(100):
        with peer.connected(Policy(Abort() if number % 2 else Graceful(), grace=0)) as (_, end):
            end.say(b"unread")
            end.half_close()
    let_watcher_pass(peer)


class Unruly(SafeSocket):
    """A subclass that fails when it is asked by another thread."""

    asked = 0

    def _peer_has_closed(self) -> float | None:
        self.asked += 1
        raise RuntimeError("not now")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_in_one_socket_does_not_stop_it(peer: Peer) -> None:
    with Unruly(policy=Policy(grace=0)) as sock:
        sock.connect(peer.address)
        peer.accept().half_close()
        wait_until(lambda: sock.asked)
        let_watcher_pass(peer)


def test_no_descriptor_left_does_not_stop_it(peer: Peer) -> None:
    """An Abort that keeps unread bytes needs descriptors: it is done when there are some."""
    script = """
import resource, select, sys, time, safesock
address = sys.argv[1], int(sys.argv[2])
make = safesock.create_connection
keeper = make(address, 20, policy=safesock.Policy(safesock.Abort(), grace=0))
witness = make(address, 20, policy=safesock.Policy(grace=0))
poll = select.poll()
poll.register(witness, select.POLLHUP)
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (keeper.fileno() + 1, hard))
print("ready", flush=True)
assert poll.poll(20_000), "the witness has not been ended"
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
deadline = time.monotonic() + 20
while keeper.loss is None and time.monotonic() < deadline:
    time.sleep(0.01)
assert keeper.recv(10) == b"kept"
assert keeper.recv(10) == b""
witness.close()
keeper.close()
"""
    with Script(script, *peer.address) as process:
        keeper, witness = peer.accept(), peer.accept()
        assert process.read_line() == "ready"
        keeper.say(b"kept")
        keeper.half_close()
        witness.half_close()
        assert witness.read_to_end() == (b"", EOF)
        assert keeper.read_to_end() == (b"", RESET)
        process.join()


def test_watcher_that_cannot_start_is_done_without_until_it_can(peer: Peer) -> None:
    script = """
import os, resource, sys, safesock
address = sys.argv[1], int(sys.argv[2])
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
free = os.open("/", os.O_RDONLY)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
with safesock.SafeSocket(policy=safesock.Policy(grace=0)) as sock:
    sock.connect(address)
    assert safesock._watch._watcher is None
    assert sock.recv(10) == b""
    assert sock.fileno() == -1
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
with safesock.SafeSocket(policy=safesock.Policy(grace=0)) as sock:
    sock.connect(address)
    assert safesock._watch._watcher is not None
"""
    with Script(script, *peer.address) as process:
        peer.accept().half_close()
        peer.accept()
        process.join()


def test_without_epoll_the_next_call_notices(peer: Peer) -> None:
    script = """
import os, select, sys
del select.epoll
import safesock
address = sys.argv[1], int(sys.argv[2])
with safesock.create_connection(address, 20, policy=safesock.Policy(grace=0)) as sock:
    assert len(os.listdir('/proc/self/task')) == 1
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    assert poll.poll(20_000)
    print("lost", flush=True)
    input()
    assert sock.loss is None
    assert sock.recv(10) == b""
    assert sock.loss.cause is safesock.Cause.FIN
    assert sock.fileno() == -1
with safesock.SafeSocket() as sock:
    sock.settimeout(0)
    sock.connect_ex(address)
"""
    with Script(script, *peer.address) as process:
        end = peer.accept()
        end.half_close()
        assert process.read_line() == "lost"
        assert kernel.state(end.sock.getpeername(), peer.address) == "CLOSE_WAIT"
        process.go_on()
        assert end.read_to_end() == (b"", EOF)
        process.join()


# References and descriptors ----------------------------------------------------------------------


@by_mode
@pytest.mark.parametrize("fin", [False, True], ids=["open", "FIN is waiting for grace"])
def test_watched_socket_is_collected_at_once(peer: Peer, mode: CloseMode, fin: bool) -> None:
    sock = SafeSocket(policy=Policy(mode, grace=NEVER))
    sock.settimeout(20)
    sock.connect(peer.address)
    end, ends = peer.accept(), Ends(sock)
    if fin:
        end.half_close()
        ends.wait_for("CLOSE_WAIT")
    let_watcher_pass(peer)
    dead = weakref.ref(sock)
    if isinstance(mode, Drain):
        end.half_close()  # Or it would wait.
    gc.disable()
    try:
        with pytest.warns(ResourceWarning, match="unclosed <safesock"):
            del sock
        assert dead() is None
    finally:
        gc.enable()
    assert end.read_to_end() == (b"", seen_by_peer(mode))
    let_watcher_pass(peer)


class Still:
    """Something to be watched."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def _peer_has_closed(self) -> float | None:
        return None

    def _step_in(self) -> float | None:
        return None


class Between:
    """The watcher's epoll, with something that happens while a descriptor is registered."""

    def __init__(self, epoll: select.epoll, act: Callable[[], None]) -> None:
        self._epoll, self._act = epoll, act

    def register(self, fd: int, events: int) -> None:
        self._act()
        self._epoll.register(fd, events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


def test_socket_that_is_dropped_while_it_is_registered_is_collected_at_once(peer: Peer) -> None:
    """Nor does the watcher collect it, and put off the end and the ResourceWarning."""
    with peer.connected() as (sock, _):
        held = [Still(sock.fileno())]
        dead, seen = weakref.ref(held[0]), Gate()
        watcher = _watch._start()

        def drop() -> None:
            held.clear()
            if dead() is None:
                seen.open()

        with seen, pytest.MonkeyPatch.context() as patch:
            patch.setattr(watcher, "_epoll", Between(watcher._epoll, drop))
            watcher.add_soon(held[0])
            seen.wait()


@pytest.mark.campaign
def test_closed_sockets_do_not_pile_up_for_as_long_as_grace(peer: Peer) -> None:
    """The watcher's references to sockets whose FIN it has seen."""

    def dead_references() -> int:
        gc.collect()
        return sum(isinstance(one, weakref.ref) and one() is None for one in gc.get_objects())

    before = dead_references()
    for _ in range(60):
        with ExitStack() as stack:
            pairs = [stack.enter_context(peer.connected(Policy(grace=NEVER))) for _ in range(10)]
            for sock, end in pairs:
                fill(sock, end, b"")
            let_watcher_pass(peer)
        while peer.ends:
            peer.ends.pop().close()
        del pairs, sock, end
    assert dead_references() - before < 300


class Collecting(SafeSocket):
    """A subclass that makes the watcher collect garbage."""

    def _peer_has_closed(self) -> float | None:
        gc.collect()
        return super()._peer_has_closed()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_watcher_does_not_wait_for_what_it_collects(peer: Peer) -> None:
    """A Drain waits for its peer, in whichever thread the garbage is collected."""
    threads = threading.enumerate()
    gc.disable()
    try:
        left = create_connection(peer.address, 20, policy=Policy(Drain(600)))
        silent = peer.accept()
        cycle: list[object] = [left]
        cycle.append(cycle)
        del left, cycle
        with Collecting(policy=Policy(grace=0)) as sock:
            sock.connect(peer.address)
            peer.accept().half_close()
            assert silent.read_to_end() == (b"", EOF)  # It is being drained.
            let_watcher_pass(peer)
    finally:
        gc.enable()
    # It is waited for at the exit, and made no thread known that was not.
    assert [one.daemon for one in threading.enumerate() if one not in threads] == [False]
    silent.fin()
    wait_until(lambda: threads_named("safesock-closer") == [], "it is drained")


def threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@by_loss
def test_watcher_keeps_no_reference_while_it_waits(peer: Peer, on_loss: Any) -> None:
    """Nor to the last socket that it has looked at. (A warning that is caught refers to it.)"""
    sock = SafeSocket(policy=Policy(on_loss=on_loss, grace=0))
    sock.connect(peer.address)
    peer.accept().half_close()
    wait_for_loss(sock)
    dead = weakref.ref(sock)
    gc.disable()
    try:
        del sock
        wait_until(lambda: dead() is None, "it is collected")
    finally:
        gc.enable()


@by_loss
def test_ended_socket_is_collected_at_once(peer: Peer, on_loss: Any) -> None:
    sock = SafeSocket(policy=Policy(on_loss=on_loss, grace=0))
    sock.connect(peer.address)
    ends = Ends(sock)
    peer.accept().half_close()
    wait_for_loss(sock)
    let_watcher_pass(peer)
    dead = weakref.ref(sock)
    with pytest.warns(ResourceWarning):
        del sock
    assert dead() is None
    ends.wait_for(None)


def test_unwatched_socket_is_left_to_the_next_call(peer: Peer) -> None:
    with peer.connected(Policy(watch=False, grace=0)) as (sock, end):
        ends = Ends(sock)
        fill(sock, end, b"")
        let_watcher_pass(peer)
        assert ends.state == "CLOSE_WAIT"
        assert sock.loss is None
        assert sock.recv(10) == b""
        ends.wait_for(None)


@pytest.mark.parametrize("noticed", [False, True], ids=["before the FIN", "after the FIN"])
def test_detach_ends_the_watch(peer: Peer, noticed: bool) -> None:
    with peer.connected(Policy(grace=SOON)) as (sock, end):
        ends = Ends(sock)
        if noticed:
            fill(sock, end, b"")
        with socket.socket(fileno=sock.detach()) as plain:
            if not noticed:
                fill(plain, end, b"")
            let_watcher_pass(peer, SOON)
            assert ends.state == "CLOSE_WAIT"
            plain.sendall(b"mine")
            assert end.read(4) == b"mine"


@pytest.mark.parametrize(
    "make", [socket.socket, lambda: SafeSocket(policy=Policy(grace=NEVER))], ids=["plain", "safe"]
)
@pytest.mark.parametrize("how", [SafeSocket.close, SafeSocket.detach])
def test_next_owner_of_the_number_is_not_confused(
    peer: Peer, make: Callable[[], socket.socket], how: Callable[[SafeSocket], int | None]
) -> None:
    """The first socket's FIN waits for its grace when the number goes to another connection."""
    with peer.connected(Policy(grace=SOON)) as (first, end):
        fd = first.fileno()
        fill(first, end, b"")
        if (given_away := how(first)) is not None:
            os.close(given_away)
        with make() as second:
            assert second.fileno() == fd
            second.connect(peer.address)
            end, ends = peer.accept(), Ends(second)
            fill(second, end, b"mine")
            let_watcher_pass(peer, SOON)
            assert ends.state == "CLOSE_WAIT"
            assert second.recv(10) == b"mine"


def test_closing_while_a_duplicate_exists_ends_the_watch(peer: Peer) -> None:
    with peer.connected(Policy(grace=SOON)) as (sock, end):
        fd = sock.fileno()
        with sock.dup():
            end.half_close()
            sock.close()
            with peer.connected(Policy(grace=NEVER)) as (second, second_end):
                assert second.fileno() == fd
                let_watcher_pass(peer, SOON)
                second.sendall(b"undisturbed")
                assert second_end.read(11) == b"undisturbed"


# A connect that is under way ---------------------------------------------------------------------


def test_one_closed_at_once_while_a_duplicate_exists_is_left_to_nobody(peer: Peer) -> None:
    with SafeSocket(policy=Policy(grace=NEVER)) as sock:
        sock.setblocking(False)
        assert sock.connect_ex(peer.address) == errno.EINPROGRESS
        wait_until(lambda: kernel.state_of(sock) == "ESTABLISHED")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        fd = sock.fileno()
        assert fd in in_epoll()
        with sock.dup():
            sock.close()
            assert fd not in in_epoll()


def in_epoll() -> set[int]:
    """What the watcher's epoll has."""
    watcher = _watch._watcher
    assert watcher is not None
    told = Path(f"/proc/self/fdinfo/{watcher._epoll.fileno()}").read_text(encoding="ascii")
    return {int(line.split()[1]) for line in told.splitlines() if line.startswith("tfd:")}


def test_nonblocking_connect_that_nobody_asks_about_is_watched(peer46: Peer) -> None:
    with SafeSocket(peer46.listener.family, policy=Policy(grace=0)) as sock:
        sock.setblocking(False)
        assert sock.connect_ex(peer46.address) == errno.EINPROGRESS
        end = peer46.accept()
        ends = Ends(sock)
        end.half_close()
        ends.wait_for_our_end()
        assert end.read_to_end() == (b"", EOF)
        assert sock.recv(10) == b""


def without_waiting(sock: SafeSocket, address: Any) -> None:
    sock.setblocking(False)
    assert sock.connect_ex(address) == errno.EINPROGRESS


def until_a_timeout(sock: SafeSocket, address: Any) -> None:
    sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        sock.connect(address)


def until_interrupted(sock: SafeSocket, address: Any) -> None:
    main = threading.main_thread()

    def interrupt() -> None:
        wait_until(lambda: kernel.state_of(sock) == "SYN_SENT", "the connect is under way")
        kernel.wait_until_blocked(main)
        assert main.ident is not None
        signal.pthread_kill(main.ident, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        sock.connect(address)
    interrupter.join()


@pytest.mark.parametrize(
    "connect",
    [
        without_waiting,
        pytest.param(until_a_timeout, marks=pytest.mark.campaign),
        pytest.param(until_interrupted, marks=pytest.mark.campaign),
    ],
)
def test_connect_that_takes_its_time_is_watched_when_it_is_made(
    connect: Callable[[SafeSocket, Any], None],
) -> None:
    """A full backlog drops the SYN, which is sent again after a second."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        socket.create_connection(listener.getsockname(), 20),
        SafeSocket(policy=Policy(grace=0)) as sock,
    ):
        listener.settimeout(20)
        connect(sock, listener.getsockname())
        assert kernel.state_of(sock) == "SYN_SENT"
        listener.accept()[0].close()
        accepted, local = listener.accept()
        with accepted:
            accepted.settimeout(20)
            accepted.shutdown(socket.SHUT_WR)
            assert accepted.recv(10) == b""
        assert kernel.state(local, listener.getsockname()) is None


def test_refused_connect_is_told_to_its_owner(peer: Peer) -> None:
    address = peer.address
    peer.listener.close()
    with SafeSocket(policy=Policy(grace=0)) as sock, Peer() as other:
        sock.setblocking(False)
        assert sock.connect_ex(address) == errno.EINPROGRESS
        let_watcher_pass(other)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        assert sock.loss is None
        assert sock.connect_ex(other.address) == errno.ECONNABORTED  # Linux: of the first one.
        assert sock.connect_ex(other.address) == errno.EINPROGRESS
        other.accept().half_close()
        wait_for_loss(sock)


# Forked children ---------------------------------------------------------------------------------


def test_child_watches_its_own_sockets_and_not_its_parents(peer: Peer) -> None:
    def child() -> None:
        assert _watch._watcher is None
        let_watcher_pass(peer)
        assert watcher_thread() in threads()
        lost.open()
        over.wait()
        let_watcher_pass(peer)
        assert sock.loss is None

    with Gate() as lost, Gate() as over, peer.connected(Policy(grace=0)) as (sock, end):
        ends = Ends(sock)
        with forked(child):
            lost.wait()
            end.half_close()
            ends.wait_for_our_end()
            assert end.read_to_end() == (b"", EOF)
            over.open()
        wait_for_loss(sock)


def test_child_holds_no_descriptor_of_its_parents_watcher(peer: Peer) -> None:
    def eventpolls() -> int:
        links = [f"/proc/self/fd/{number}" for number in kernel.descriptors()]
        return sum("eventpoll" in os.readlink(link) for link in links if os.path.islink(link))

    def child() -> None:
        assert eventpolls() == 0

    with peer.connected():
        assert eventpolls() == 1
        in_child(child)


@pytest.mark.parametrize("act", ["close", "del", "use", "shutdown of another"])
def test_parents_watch_goes_on_whatever_the_child_does(peer: Peer, act: str) -> None:
    with peer.connected(Policy(grace=0)) as (sock, end):
        ends = Ends(sock)
        held = [sock]

        def child() -> None:
            if act == "close":
                held[0].close()
            elif act == "use":
                held[0].sendall(b"from the child")
            elif act == "shutdown of another":
                let_watcher_pass(peer)
            held.clear()

        in_child(child)
        assert ends.state == "ESTABLISHED"
        end.half_close()
        ends.wait_for_our_end()
        wait_for_loss(sock)


def test_a_number_that_is_used_again_while_it_is_looked_after_stays_watched(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(on_loss="release", grace=0.05)
    first = SafeSocket(policy=policy)
    number, has = first.fileno(), _watch._has
    second: list[SafeSocket] = []
    # In between nobody else opens anything: that would get the number.
    accepted, used_again = threading.Event(), threading.Event()

    def and_then_it_is_closed(ref: Any, fd: int) -> bool:
        answer = has(ref, fd)
        if fd == number and not second:
            assert accepted.wait(TIMEOUT)
            first.close()
            second.append(create_connection(peer.address, policy=policy))
            used_again.set()
        return answer

    monkeypatch.setattr(_watch, "_has", and_then_it_is_closed)
    first.connect(peer.address)
    first_end = peer.accept()
    accepted.set()
    assert used_again.wait(TIMEOUT)
    assert second[0].fileno() == number
    assert first_end.read_to_end() == (b"", EOF)
    end = peer.accept()
    end.half_close()
    assert end.read_to_end() == (b"", EOF)
    second[0].close()


# A program that is not to notice the thread ------------------------------------------------------

_WATCHED = """\
import signal, socket, sys, threading, safesock
sock = safesock.create_connection(("127.0.0.1", int(sys.argv[1])))
"""
_WAITS_FOR_A_SIGNAL = """\
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("blocked", flush=True)
input()
print(signal.sigwait({signal.SIGTERM}).name)
"""
_JOINS_ALL = """\
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join()
print("joined")
"""


def test_a_signal_that_the_program_waits_for_is_left_to_it(peer: Peer) -> None:
    with Script(_WATCHED + _WAITS_FOR_A_SIGNAL, peer.address[1]) as script:
        assert script.read_line() == "blocked"
        os.kill(script.pid, signal.SIGTERM)
        script.go_on()
        assert script.join() == "SIGTERM\n"


def test_a_program_that_joins_all_its_threads_ends(peer: Peer) -> None:
    assert run_script(_WATCHED + _JOINS_ALL, peer.address[1]) == "joined\n"


_CLOSES_ALL = """\
import os, select, socket, sys, tempfile, safesock
address = "127.0.0.1", int(sys.argv[1])
safesock.create_connection(address).close()
os.closerange(3, 100)
files = [tempfile.TemporaryFile() for _ in range(4)]
events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(16)]
sock = safesock.create_connection(address, policy=safesock.Policy(grace=0))
input()
for file in files:
    assert file.seek(0, os.SEEK_END) == 0
assert not select.select(events, [], [], 0)[0]
print(sock.recv(1))
"""


def test_a_program_that_closes_all_descriptors_keeps_its_files(peer: Peer) -> None:
    with Script(_CLOSES_ALL, peer.address[1]) as script:
        peer.accept()
        end = peer.accept()
        end.half_close()
        assert end.read_to_end() == (b"", EOF)
        script.go_on()
        assert script.join() == "b''\n"
