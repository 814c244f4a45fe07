"""Many threads share sockets, use them and close them: no descriptor number is used once it may be
somebody else's, nobody is stuck, and nothing is left."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import socket
import ssl
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import kernel
import pytest
import storm
from canary import Canary
from peer import TIMEOUT, Peer, PeerEnd
from storm import Shared
from tls_peer import NAME, Certificates, TlsPeer, done

import safesock
from safesock import Abort, Drain, Graceful, Linger, Policy, SafeSocket, _abortive, _kernel, _watch
from safesock._connection import Connection
from safesock.events import Event

MODES = [
    Graceful(),
    Abort(),
    pytest.param(Drain(0.2), marks=pytest.mark.campaign),
    pytest.param(Linger(1), marks=pytest.mark.campaign),
]


@pytest.fixture
def seed() -> int:
    """Another one each time, unless the environment says which."""
    number = int(os.environ.get("SAFESOCK_SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"again: SAFESOCK_SEED={number}")
    return number


def in_thread(act: Callable[[], object]) -> tuple[threading.Thread, list[Any]]:
    """What it gives, or raises, comes to the list."""
    seen: list[Any] = []

    def run() -> None:
        try:
            seen.append(act())
        except BaseException as error:
            seen.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, seen


def join(thread: threading.Thread) -> None:
    thread.join(3 * TIMEOUT)
    assert not thread.is_alive(), "it is stuck"


# The storm --------------------------------------------------------------------------------------


def assert_each_is_told_once(seen: Counter[tuple[str, int | None]], detached: set[int]) -> None:
    twice = {one for one, times in seen.items() if times > 1}
    assert {one for one in twice if one[0] not in ("Retrying", "BudgetExhausted")} == set()
    told = {kind: {n for name, n in seen if name == kind} for kind in ("Connected", "Closed")}
    assert told["Connected"]
    left = told["Connected"] - told["Closed"] - detached
    assert not left, [sorted(kind for kind, n in seen if n == one) for one in left][:10]


def blow(seed: int, certificates: Certificates | None, threads: int, acts: int) -> None:
    before = kernel.descriptors()
    marked, bare = storm.PlainServer(seed, True), storm.PlainServer(seed + 1, False)
    places = [Shared(storm.safe(marked.address), is_tls=False, gives=None) for _ in range(6)]
    places += [Shared(storm.safe(bare.address), is_tls=False, gives=b"\0") for _ in range(6)]
    places += [Shared(storm.plain(marked.address), is_tls=False, gives=None) for _ in range(4)]
    places += [Shared(storm.for_life(bare.address), is_tls=False, gives=b"\0") for _ in range(4)]
    servers: list[Any] = [marked, bare]
    if certificates is not None:
        servers.append(storm.TlsServer(seed + 2, certificates.server()))
        make = storm.tls(servers[-1].address, certificates.client())
        places += [Shared(make, is_tls=True, gives=b"x") for _ in range(8)]
    one = storm.Storm(seed, places, threads, acts)
    seen: Counter[tuple[str, int | None]] = Counter()

    def listen(event: Event) -> None:
        seen[type(event).__name__, event.connection] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # References are dropped: that is it.
        with (
            Canary(1 if certificates is None else 2),
            safesock.subscribe(listen),
            safesock.enforce(Policy(on_loss="release", grace=0.01)),
            storm.switching(1e-4),
        ):
            one.blow()
            gc.collect()  # While it is told.
            kernel.wait_until(
                lambda: not [t for t in threading.enumerate() if "safesock" in t.name]
            )
        for server in servers:
            server.close()
    assert one.faults + [fault for server in servers for fault in server.faults] == []
    storm.nothing_is_left([server.address[1] for server in servers])
    kernel.wait_until(lambda: kernel.left_open(before) == [], "all descriptors are closed")
    assert_each_is_told_once(seen, one.detached)
    print(f"{sum(one.done.values())} acts, {dict(one.done)}")


def test_storm_of_64_threads(seed: int) -> None:
    blow(seed, None, 64, 2)


@pytest.mark.campaign
def test_long_storm_of_64_threads(seed: int, certificates: Certificates) -> None:
    blow(seed, certificates, 64, 10)


# A close while another thread waits in a call ----------------------------------------------------


def fill(sock: SafeSocket) -> None:
    """Until the peer's window is full."""
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(100_000))
    except BlockingIOError:
        sock.settimeout(None)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: type(mode).__name__)
@pytest.mark.parametrize("call", ["recv", "sendall", "sendfile"])
def test_close_wakes_who_waits_and_nobody_uses_the_number(peer: Peer, mode: Any, call: str) -> None:
    with (
        tempfile.TemporaryFile() as file,
        peer.connected(Policy(mode, watch=False), None) as (sock, _),
        Canary(1),
    ):
        file.write(b"!")
        file.truncate(50_000_000)
        acts = {
            "recv": lambda: sock.recv(1),
            "sendall": lambda: sock.sendall(bytes(50_000_000)),
            "sendfile": lambda: sock.sendfile(file),
        }
        thread, seen = in_thread(acts[call])
        kernel.wait_until_blocked(thread)
        sock.close()
        join(thread)
        assert seen == [b""] or isinstance(seen[0], OSError)


@pytest.mark.parametrize("call", ["connect", "connect_ex"])
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_close_wakes_who_connects(peer: Peer, timeout: float | None, call: str) -> None:
    with peer.black_hole(), SafeSocket(socket.AF_INET, socket.SOCK_STREAM) as sock, Canary(1):
        sock.settimeout(timeout)
        thread, seen = in_thread(lambda: getattr(sock, call)(peer.address))
        kernel.wait_until_blocked(thread)
        sock.close()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        assert (seen[0] if call == "connect_ex" else seen[0].errno) == errno.EBADF


def test_a_socket_that_a_file_keeps_connects_as_ever() -> None:
    """Its owner has closed it, and no other thread has."""
    with socket.socket() as nobody, SafeSocket() as sock, sock.makefile("rb"):
        nobody.bind(("127.0.0.1", 0))
        sock.close()
        with pytest.raises(ConnectionRefusedError):
            sock.connect(nobody.getsockname())


def test_close_wakes_who_shakes_hands(peer: Peer, certificates: Certificates) -> None:
    context = safesock.secure(certificates.client())
    with peer.connected() as (sock, _), Canary(1):
        tls = context.wrap_socket(sock, server_hostname="localhost", do_handshake_on_connect=False)
        thread, seen = in_thread(tls.do_handshake)
        kernel.wait_until_blocked(thread)
        tls.close()
        join(thread)
        assert isinstance(seen[0], OSError)


@pytest.mark.parametrize("mode", [Graceful(), Drain(TIMEOUT)], ids=str)
@pytest.mark.parametrize(
    "call",
    [
        lambda sock: sock.recv(100),
        lambda sock: sock.recv_into(bytearray(100)),
        lambda sock: sock.recvfrom(100)[0],
        lambda sock: sock.recvfrom_into(bytearray(100))[0],
        lambda sock: sock.recvmsg(100)[0],
        lambda sock: sock.recvmsg_into([bytearray(100)])[0],
    ],
    ids=["recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"],
)
def test_who_reads_while_another_thread_closes_gets_nothing_after_a_gap(
    peer: Peer, mode: Any, call: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who closes throws unread input away, as its close would be a RST otherwise."""
    read_now, answers = _kernel.read_now, []

    def read_and_let_others_read(sock: Any, buffer: bytearray) -> int | None:
        count = read_now(sock, buffer[:10])
        if count:
            thread, answer = in_thread(lambda: call(sock))
            join(thread)
            answers.append(answer[0])
        return count

    with peer.connected(Policy(mode, watch=False)) as (sock, end):
        end.say(bytes(100))
        end.half_close()
        kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT", "all is there")
        monkeypatch.setattr(_kernel, "read_now", read_and_let_others_read)
        sock.close()
        assert answers in ([b""], [0])


def test_who_reads_tls_while_another_thread_closes_meets_the_end(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL cannot decrypt what follows input that was thrown away."""

    class Session:
        """In the middle of a record, as only OpenSSL itself can be."""

        def read(self, *_: object) -> bytes:
            end.say_in_clear(b"rest of a record")
            kernel.wait_until(lambda: kernel.unread(tls), "it has come")
            thread, answer = in_thread(tls.close)
            join(thread)
            assert answer == [None]
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, "[SSL: BAD_RECORD_MAC] bad record mac")

    context = safesock.secure(certificates.client(), Policy(watch=False))
    with TlsPeer(certificates.server()) as peer:
        shaken = peer.begin(peer.accept_and_shake)
        tls = context.wrap_socket(socket.create_connection(peer.address), server_hostname=NAME)
        end = done(shaken)
        monkeypatch.setattr(tls, "_sslobj", Session())
        assert tls.recv(1) == b""


@pytest.mark.parametrize(
    ("call", "moment"),
    [
        (lambda sock: sock.close(), "let_the_watcher_pass"),
        (lambda sock: sock.recv(1), "is_over"),
    ],
    ids=["close", "recv"],
)
def test_another_thread_may_detach_meanwhile(
    peer: Peer,
    call: Callable[[SafeSocket], object],
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gets the descriptor, with the connection as it was."""
    then, numbers = getattr(Connection, moment), []

    def then_it_is_detached(*arguments: Any) -> object:
        answer = then(*arguments)
        monkeypatch.setattr(Connection, moment, then)
        numbers.append(sock.detach())
        return answer

    with peer.connected(Policy(watch=False)) as (sock, end):
        end.half_close()
        kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT", "it has come")
        monkeypatch.setattr(Connection, moment, then_it_is_detached)
        assert not call(sock)
        with socket.socket(fileno=numbers[0]) as taken:
            assert kernel.state_of(taken) == "CLOSE_WAIT"


# Between the look at a number and its use --------------------------------------------------------


class Stranger:
    """A connection of somebody else that gets the number *fd*, which is free."""

    def __init__(self, peer: Peer, fd: int) -> None:
        self.sock = socket.create_connection(peer.address, TIMEOUT)
        if self.sock.fileno() != fd:
            with self.sock as made:
                os.dup2(made.fileno(), fd)
            self.sock = socket.socket(fileno=fd)
        self.end = peer.accept()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def test_sendfile_does_not_go_on_with_the_number_of_a_stranger(peer: Peer) -> None:
    """The standard library asks for it once, and then sends portion after portion."""

    class Slow:
        """A file that somebody closes the socket under."""

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def fileno(self) -> int:
            sock.close()
            freed.append(sock.fileno() < 0)
            if freed[0]:
                strangers.append(Stranger(peer, number))
            return file.fileno()

    freed: list[bool] = []
    strangers: list[Stranger] = []
    with tempfile.TemporaryFile() as file, peer.connected() as (sock, _):
        file.write(b"secret")
        file.seek(0)
        number = sock.fileno()
        with pytest.raises(OSError, match=r"."):
            sock.sendfile(Slow())
        assert sock.fileno() < 0
    for stranger in strangers:
        with stranger:
            stranger.sock.shutdown(socket.SHUT_WR)
            assert stranger.end.read_to_end()[0] == b""
    assert freed == [False], "the number was free while it was in use"


@pytest.mark.parametrize("by", ["owner", "watcher"])
def test_release_by_abort_does_not_reset_a_stranger(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Its connect(2) has the number of the descriptor, and lets other threads run, which close."""
    connect = _abortive.load_connect()
    assert connect is not None
    strangers: list[Stranger] = []
    calls: list[int] = []

    def connect_late(fd: int) -> int:
        calls.append(fd)
        if len(calls) == 1:
            sock.close()
            if sock.fileno() < 0:
                strangers.append(Stranger(peer, fd))
        return connect(fd)

    with peer.connected(Policy(Abort(), "release", watch=False)) as (sock, end):
        connection = sock._connection
        assert connection is not None
        end.half_close()
        kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT", "its FIN is here")
        monkeypatch.setattr(_abortive, "_connect", connect_late)
        assert sock.recv(1) == b"" if by == "owner" else connection.step_in(sock)
        assert calls
        assert sock.fileno() < 0
    for stranger in strangers:
        with stranger:
            assert kernel.state_of(stranger.sock) == "ESTABLISHED"
    assert strangers == [], "the number was free while it was in use"


def number_of_nobody() -> int:
    """A new TCP socket's, far above the lowest free ones, which other threads get meanwhile."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        return fcntl.fcntl(made.fileno(), fcntl.F_DUPFD_CLOEXEC, 500)


class Hesitant(SafeSocket):
    """Lets others run when the watcher has asked for its number."""

    __slots__ = ("before_use",)
    before_use: Callable[[], object] | None

    def fileno(self) -> int:
        number = super().fileno()
        act = getattr(self, "before_use", None)
        if act is not None and sys._getframe(1).f_code.co_filename == _watch.__file__:
            self.before_use = None
            act()
        return number


@pytest.mark.parametrize("call", ["watch", "unwatch"])
def test_watcher_does_not_strike_off_who_got_the_number_meanwhile(peer: Peer, call: str) -> None:
    """Two threads close a socket, or one closes it while another one has connected it, and a third
    one gets its number."""
    news: list[SafeSocket] = []
    ends: list[PeerEnd] = []

    def close_and_make() -> None:
        sock.close()
        stranger = Stranger(peer, number)
        ends.append(stranger.end)
        news.append(safesock.wrap(stranger.sock, Policy(grace=0)))

    def while_another_one_closes() -> None:
        thread, _ = in_thread(close_and_make)
        join(thread)

    with Hesitant(fileno=number_of_nobody()) as sock:
        sock.connect(peer.address)
        peer.accept()
        number = sock.fileno()
        sock.before_use = while_another_one_closes
        getattr(_watch, call)(sock)
        with news[0] as other:
            assert other.fileno() == number
            ends[0].half_close()
            kernel.wait_until(lambda: other.loss is not None, "the watcher sees the FIN")


def is_ended(sock: socket.socket) -> bool:
    return sock.fileno() < 0 or kernel.state_of(sock) not in ("ESTABLISHED", "CLOSE_WAIT")


@pytest.mark.parametrize("is_enforced", [False, True])
def test_who_has_a_number_last_is_watched_whoever_still_claims_it(
    peer: Peer, is_enforced: bool
) -> None:
    """What closes a descriptor by its number leaves an object that goes on naming it."""
    number = number_of_nobody()
    policy = Policy(grace=0, on_loss="release")

    def connected() -> tuple[socket.socket, PeerEnd]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as fresh:
            os.dup2(fresh.fileno(), number)
        if is_enforced:
            sock = socket.socket(fileno=number)
        else:
            sock = SafeSocket(fileno=number, policy=policy)
        sock.connect(peer.address)
        return sock, peer.accept()

    with safesock.enforce(policy, only=lambda _: is_enforced):
        claims, other_end = connected()
        kernel.wait_until(lambda: not _watch._watcher._young, "epoll has it")  # type: ignore[union-attr]
        sock, end = connected()  # dup2 closes what was there.
        with sock:
            end.half_close()
            kernel.wait_until(lambda: is_ended(sock), "its FIN is answered")
        claims.detach()
        other_end.close()
