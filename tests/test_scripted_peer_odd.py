"""The public peer where tests go wrong, or are odd: threads, forks, names, and what is over."""

from __future__ import annotations

import array
import errno
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import kernel
import pytest
from process import Gate, fork, forked, join
from test_scripted_peer import connect, connected
from tls_peer import Certificates

import safesock
from safesock import _kernel
from safesock.testing import End, PeerEnd, ScriptedPeer

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("safesock peer")]


class Attempt(threading.Thread):
    """A call that waits in a thread of its own; what it raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._error: BaseException | None = None
        self.start()
        kernel.wait_until_blocked(self)

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error

    def error(self) -> BaseException | None:
        self.join(10)
        assert not self.is_alive()
        return self._error


def refused(address: tuple[str, int], family: int = socket.AF_INET) -> bool:
    with socket.socket(family) as client:
        client.settimeout(20)
        return client.connect_ex(address) == errno.ECONNREFUSED


# Threads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True])
def test_who_waits_to_accept_is_told_that_the_peer_is_closed(
    certificates: Certificates, secure: bool
) -> None:
    with ScriptedPeer(tls=certificates.server() if secure else None) as peer:
        attempts = [Attempt(peer.accept) for _ in range(3)]
        peer.close()
        for attempt in attempts:
            assert isinstance(attempt.error(), ConnectionAbortedError)


@pytest.mark.parametrize("how", ["fin", "rst", "close", "black_hole"])
def test_who_reads_in_another_thread_is_told_and_does_not_keep_the_end_back(
    scripted_peer: ScriptedPeer, how: str
) -> None:
    with connected(scripted_peer) as (client, end):
        attempt = Attempt(lambda: end.read(1))
        getattr(end, how)()
        assert isinstance(attempt.error(), ConnectionAbortedError)
        if how == "rst":
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        elif how == "black_hole":
            assert kernel.state_of(client) == "ESTABLISHED"
        else:
            assert client.recv(1) == b""


def test_several_threads_accept_one_connection_each(scripted_peer: ScriptedPeer) -> None:
    attempts = [Attempt(scripted_peer.accept) for _ in range(4)]
    clients = [connect(scripted_peer) for _ in range(4)]
    assert [attempt.error() for attempt in attempts] == [None] * 4
    peers = {end.sock.getpeername() for end in scripted_peer.ends}
    assert peers == {client.getsockname() for client in clients}
    for client in clients:
        client.close()


@pytest.mark.parametrize("secure", [False, True])
def test_an_accept_in_the_background_that_fails_is_told(
    certificates: Certificates, secure: bool
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    peer = ScriptedPeer(tls=certificates.server() if secure else None)
    with peer, socket.socket() as client:
        peer.accept_and_drop(1)
        (acceptor,) = [one for one in threading.enumerate() if one.name == "safesock peer"]
        kernel.wait_until_blocked(acceptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            client.connect(peer.address)
            acceptor.join(20)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for _ in range(2):
            with pytest.raises(OSError, match="Too many open files"):
                peer.accept()


# Forks ------------------------------------------------------------------------------------------


def test_a_reset_does_not_wait_for_a_forked_child(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (client, end), Gate() as gate, forked(gate.wait):
        end.rst()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        scripted_peer.close()
        assert refused(scripted_peer.address)
        gate.open()


@pytest.mark.parametrize("secure", [False, True])
def test_a_forked_child_that_closes_it_leaves_its_parents_peer_alone(
    certificates: Certificates, secure: bool
) -> None:
    with ScriptedPeer(tls=certificates.server() if secure else None) as peer:
        peer.accept_and_drop(2)
        waiting = Attempt(peer.accept)
        refusing = peer.refusing()

        def leave() -> None:
            refusing.close()
            peer.close()

        join(fork(leave))
        assert refused(peer.address)
        refusing.close()
        for _ in range(2):
            with connect(peer) as client:
                assert client.recv(1) == b""
        with connect(peer):
            assert waiting.error() is None


def test_what_a_forked_client_tries_is_not_counted(scripted_peer: ScriptedPeer) -> None:
    scripted_peer.refuse_next(1)

    def try_twice() -> None:
        assert [refused(scripted_peer.address) for _ in range(3)] == [True] * 3

    join(fork(try_twice))
    assert refused(scripted_peer.address)
    with connected(scripted_peer):
        pass


# Refusals ---------------------------------------------------------------------------------------


def test_refusals_leave_nothing_open(scripted_peer: ScriptedPeer) -> None:
    with scripted_peer.refusing():
        before = kernel.descriptors()
    for _ in range(3):
        with scripted_peer.refusing():
            assert refused(scripted_peer.address)
    waiting = Attempt(scripted_peer.accept)
    scripted_peer.refuse_next(1)
    assert refused(scripted_peer.address)
    with connect(scripted_peer):
        assert waiting.error() is None
    scripted_peer.ends[0].close()
    assert kernel.left_open(before) == []


def test_it_is_refused_until_the_last_refusal_ends(scripted_peer: ScriptedPeer) -> None:
    with scripted_peer.refusing():
        with scripted_peer.refusing():
            pass
        assert refused(scripted_peer.address)
    scripted_peer.refuse_next(3)
    with scripted_peer.refusing():
        assert refused(scripted_peer.address)
    assert refused(scripted_peer.address)
    scripted_peer.refuse_next(1)  # It counts anew.
    assert refused(scripted_peer.address)
    with connected(scripted_peer):
        pass


@pytest.mark.parametrize(
    ("listens", "connects", "family"),
    [
        ("127.0.0.1", "", socket.AF_INET),
        ("127.0.0.1", "0.0.0.0", socket.AF_INET),
        ("127.0.0.1", "::ffff:127.0.0.1", socket.AF_INET6),
        ("0.0.0.0", "127.0.0.1", socket.AF_INET),
        ("::1", "0:0:0:0:0:0:0:1", socket.AF_INET6),
        ("::", "::1", socket.AF_INET6),
        ("", "localhost", socket.AF_INET),
    ],
)
def test_attempts_are_counted_by_whatever_name(listens: str, connects: str, family: int) -> None:
    with ScriptedPeer(listens) as peer:
        peer.refuse_next(2)
        tries = [refused((connects, peer.address[1]), family) for _ in range(3)]
        assert tries == [True, True, False]


def test_a_connect_that_goes_on_in_the_background_counts_once(scripted_peer: ScriptedPeer) -> None:
    scripted_peer.refuse_next(2)
    for expected in (errno.ECONNREFUSED, errno.ECONNREFUSED, 0):
        with socket.socket() as client:
            client.setblocking(False)
            if (number := client.connect_ex(scripted_peer.address)) == errno.EINPROGRESS:
                assert _kernel.ready(client, 20, write=True)
                number = client.connect_ex(scripted_peer.address)
            assert number == expected


def test_each_dial_of_a_connector_counts_once(scripted_peer: ScriptedPeer) -> None:
    scripted_peer.refuse_next(2)
    reconnect = safesock.Reconnect(attempts=3, wait=lambda _: 0)
    with safesock.Connector(scripted_peer.address, reconnect=reconnect).connect():
        scripted_peer.accept()


def test_dropped_first_and_refused_then(scripted_peer: ScriptedPeer) -> None:
    scripted_peer.accept_and_drop(2)
    scripted_peer.refuse_next(1)
    assert refused(scripted_peer.address)
    for _ in range(2):
        with connect(scripted_peer) as client:
            assert client.recv(1) == b""
    with connected(scripted_peer):
        pass


def test_who_waits_to_be_accepted_is_not_lost_in_a_black_hole(scripted_peer: ScriptedPeer) -> None:
    with connect(scripted_peer) as client:
        with scripted_peer.black_hole():
            end = scripted_peer.accept()
        end.say(b"here")
        assert client.recv(4) == b"here"


# What is over, and what is wrong -----------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_left_open")
@pytest.mark.parametrize("secure", [False, True])
def test_a_closed_peer_does_nothing_and_says_so(certificates: Certificates, secure: bool) -> None:
    peer = ScriptedPeer(tls=certificates.server() if secure else None)
    refusing, hole = peer.refusing(), peer.black_hole()
    peer.close()
    acts: list[Callable[[], object]] = [
        peer.accept,
        peer.refusing,
        peer.black_hole,
        lambda: peer.refuse_next(1),
        lambda: peer.accept_and_drop(1),
    ]
    for act in acts:
        with pytest.raises(RuntimeError, match="this peer has been closed"):
            act()
    refusing.close()
    hole.close()
    assert refused(peer.address)


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_black_hole_can_end(scripted_peer: ScriptedPeer, how: str) -> None:
    with connected(scripted_peer) as (client, end):
        end.black_hole()
        client.sendall(b"hello?")
        with pytest.raises(RuntimeError, match="only fin, rst, close end it"):
            end.half_close()
        getattr(end, how)()
        if how == "rst":
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        else:
            assert client.recv(1) == b""


@pytest.mark.parametrize("how", End)
def test_an_end_may_be_named(scripted_peer: ScriptedPeer, how: End) -> None:
    if how is End.CLOSE_NOTIFY:
        with pytest.raises(ValueError, match=r"End\.FIN or End\.RST"):
            scripted_peer.accept_and_drop(1, how)
        return
    with connect(scripted_peer) as client:
        scripted_peer.accept_and_drop(1, str(how))  # type: ignore[arg-type]
        if how is End.RST:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        else:
            assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"timeout": None}, TypeError, "timeout is a number of seconds"),
        ({"timeout": True}, TypeError, "timeout is a number of seconds"),
        ({"timeout": float("inf")}, ValueError, "at most 1,000,000,000"),
        ({"timeout": float("nan")}, ValueError, "seconds, more than 0"),
        ({"receive_buffer": -1}, ValueError, "1 byte or more"),
        ({"receive_buffer": "4k"}, TypeError, "a number of bytes"),
        ({"host": None}, TypeError, "a name or an address"),
        ({"port": 70000}, ValueError, "from 0 .* to 65535"),
        ({"port": "80"}, TypeError, "port is a number"),
        ({"tls": ssl.create_default_context()}, ValueError, "the context is a client's"),
    ],
)
@pytest.mark.usefixtures("nothing_is_left_open")
def test_a_peer_of_wrong_values_is_an_error(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ScriptedPeer(**options)


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda end: end.read(-1), ValueError, "0 or more"),
        (lambda end: end.read("1"), TypeError, "a number of bytes"),
        (lambda end: end.read_until(b""), ValueError, "one byte or more"),
        (lambda end: end.read_until("\n"), TypeError, "separator is bytes: not str"),
        (lambda end: end.say("text"), TypeError, "data is bytes: not str"),
        (lambda end: end.say(None), TypeError, "data is bytes: not NoneType"),
        (lambda end: end.slow_reader(float("inf")), ValueError, "bytes per second"),
        (lambda end: end.slow_reader(None), TypeError, "bytes per second"),
        (lambda end: end.start_tls(None), TypeError, "SSLContext"),
        (lambda end: end.start_tls(ssl.create_default_context()), ValueError, "a client's"),
    ],
)
def test_wrong_use_of_an_end_changes_nothing(
    scripted_peer: ScriptedPeer,
    act: Callable[[PeerEnd], object],
    error: type[Exception],
    words: str,
) -> None:
    with connected(scripted_peer) as (client, end):
        client.sendall(b"123")
        with pytest.raises(error, match=words):
            act(end)
        assert end.read(3) == b"123"


def test_whatever_has_bytes_is_said_whole(scripted_peer: ScriptedPeer) -> None:
    data = array.array("I", range(1_000_000))  # More than fits: it is sent in parts.
    with connected(scripted_peer) as (client, end):
        attempt = Attempt(lambda: end.say(data))  # type: ignore[arg-type]
        with client.makefile("rb") as stream:
            assert stream.read(4_000_000) == data.tobytes()
        assert attempt.error() is None


def test_tls_starts_once(certificates: Certificates) -> None:
    with ScriptedPeer(tls=certificates.server()) as peer, connected(peer) as (_, end):
        with pytest.raises(RuntimeError, match="speaks TLS already"):
            end.start_tls(certificates.server())
        end.fin()
        with pytest.raises(RuntimeError, match="has been closed"):
            end.handshake()


def test_where_nothing_can_be_refused_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernel, "LINUX", False)
    with ScriptedPeer() as peer:
        for refuse in (peer.refusing, lambda: peer.refuse_next(1)):
            with pytest.raises(OSError, match="refusals need Linux"):
                refuse()
        with connected(peer) as (client, end):
            end.rst()
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_where_the_sockets_are_gevents_it_says_so() -> None:
    script = (
        "from gevent import monkey; monkey.patch_socket()\n"
        "from safesock.testing import ScriptedPeer; ScriptedPeer()"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "RuntimeError: socket.socket is no kernel's socket here" in answer.stderr


def test_it_works_under_enforce(scripted_peer: ScriptedPeer) -> None:
    with safesock.enforce(), ScriptedPeer() as inside:
        for peer in (scripted_peer, inside):
            peer.refuse_next(1)
            assert refused(peer.address)
            peer.accept_and_drop(1)
            with connect(peer) as client:
                assert client.recv(1) == b""
            with connected(peer) as (client, end):
                client.sendall(b"hello\n")
                assert end.read_until(b"\n") == b"hello\n"
                end.goodbye_then_fin(b"bye")
                assert (client.recv(100), client.recv(100)) == (b"bye", b"")


def test_an_interrupt_ends_an_accept(scripted_peer: ScriptedPeer) -> None:
    main = threading.main_thread()
    assert threading.current_thread() is main

    def interrupt() -> None:
        kernel.wait_until_blocked(main)
        os.kill(os.getpid(), 2)

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # Whenever it comes.
        thread.start()
        scripted_peer.accept()
    thread.join()
    with connected(scripted_peer):
        pass


# read_until, run_client --------------------------------------------------------------------------


def test_it_reads_up_to_a_separator_and_keeps_the_rest(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (client, end):
        client.sendall(b"one\r")
        kernel.wait_until(lambda: kernel.unread(end.sock) == 4)
        client.sendall(b"\ntwo\r\nthree")
        assert end.read_until(b"\r\n") == b"one\r\n"
        assert end.read_until(b"\r\n") == b"two\r\n"
        client.close()
        with pytest.raises(AssertionError, match=r"waited for b'\\r\\n': FIN came after b'three"):
            end.read_until(b"\r\n")
        assert end.read_to_end() == (b"three", End.FIN)


def test_a_client_that_blocks_has_a_thread_of_its_own(scripted_peer: ScriptedPeer) -> None:
    def ask(question: bytes, *, size: int) -> bytes:
        with connect(scripted_peer) as client:
            client.sendall(question)
            if not (answer := client.recv(size)):
                raise EOFError(question)
            return answer

    for answer in (b"yes", b""):
        call = scripted_peer.run_client(ask, b"well?", size=100)
        end = scripted_peer.accept()
        assert end.read(5) == b"well?"
        end.goodbye_then_fin(answer)
        if answer:
            assert (call.result(), call.result()) == (b"yes", b"yes")
        else:
            with pytest.raises(EOFError, match="well"):
                call.result()


def test_a_client_that_never_ends_holds_nobody_up() -> None:
    with ScriptedPeer(timeout=0.2) as peer:
        client = connect(peer)
        call = peer.run_client(client.recv, 1)
        end = peer.accept()
        with pytest.raises(TimeoutError, match=r"not within 0\.2 s: the end of the client's call"):
            call.result()
        peer.close()
        assert call.result() == b""
        assert end.sock.fileno() < 0
        client.close()
