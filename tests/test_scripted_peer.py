"""The public peer, against plain sockets: what it does is what its client's kernel sees."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import kernel
import pytest
from tls_peer import NAME, Certificates

from safesock.testing import End, PeerEnd, ScriptedPeer
from safesock.testing._acts import Acts

pytestmark = [pytest.mark.usefixtures("nothing_is_left_running"), pytest.mark.safesock_leaks]
SHORT = 0.2
LINGER_0 = b"\1\0\0\0\0\0\0\0"


@pytest.fixture
def nothing_is_left_running() -> Iterator[None]:
    yield
    assert "safesock peer" not in [thread.name for thread in threading.enumerate()]


def connect(peer: ScriptedPeer) -> socket.socket:
    return socket.create_connection(peer.address, 20)


def error_of(client: socket.socket) -> int:
    """SO_ERROR: what the kernel has been told, whatever TLS makes of it."""
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def end_of(client: socket.socket) -> End:
    try:
        assert client.recv(1) == b""
    except ConnectionResetError:
        return End.RST
    return End.FIN


@contextlib.contextmanager
def connected(peer: ScriptedPeer) -> Iterator[tuple[socket.socket, PeerEnd]]:
    with connect(peer) as client:
        yield client, peer.accept()


# One end ----------------------------------------------------------------------------------------


def test_both_sides_read_what_the_other_has_said(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (client, end):
        end.say(b"hello")
        assert client.recv(100) == b"hello"
        client.sendall(b"hello yourself")
        assert (end.read(5), end.read(9)) == (b"hello", b" yourself")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_listens_where_it_is_told_to(host: str) -> None:
    with ScriptedPeer(host) as peer, connected(peer) as (client, end):
        assert (client.getpeername()[:2], peer.address[0]) == (peer.address, host)
        assert peer.ends == [end]


def test_after_a_half_close_it_still_reads(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (client, end):
        end.half_close()
        assert client.recv(1) == b""
        assert kernel.state_of(client) == "CLOSE_WAIT"
        client.sendall(b"still here")
        client.close()
        assert end.read_to_end() == (b"still here", End.FIN)


def test_fin_is_a_fin_also_when_something_is_unread(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (client, end):
        client.sendall(b"unread")
        kernel.wait_until(lambda: kernel.unread(end.sock) == 6)
        end.fin()
        assert client.recv(1) == b""
        assert kernel.state_of(client) == "CLOSE_WAIT"


def test_rst_is_a_reset(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (client, end):
        end.rst()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert kernel.state_of(client) == "CLOSE"


def test_the_last_words_come_before_the_fin(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (client, end):
        end.goodbye_then_fin(b"421 bye")
        assert (client.recv(100), client.recv(100)) == (b"421 bye", b"")


@pytest.mark.parametrize("how", [End.FIN, End.RST])
def test_it_tells_how_the_client_ended_and_goes_on_telling_it(
    scripted_peer: ScriptedPeer, how: End
) -> None:
    with connected(scripted_peer) as (client, end):
        client.sendall(b"all")
        assert end.read(1) == b"a"
        if how is End.RST:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        client.close()
        assert end.read_to_end() == (b"ll", how)
        assert end.read_to_end() == (b"", how)


def test_an_end_that_comes_too_early_says_what_was_to_come(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (client, end):
        client.sendall(b"12")
        client.close()
        with pytest.raises(AssertionError, match=r"waited for 3 bytes: FIN came after b'12'"):
            end.read(3)


def test_a_slow_reader_reads_at_its_rate_and_loses_nothing() -> None:
    data = bytes(range(250)) * 80
    with ScriptedPeer(receive_buffer=4096) as peer, connected(peer) as (client, end):
        before = time.monotonic()
        end.slow_reader(10_000)
        client.sendall(data)
        kernel.wait_until(lambda: end.received >= 5_000)
        # A portion, a twentieth of a second's, is read before the first pause.
        assert end.received <= 10_000 * (time.monotonic() - before) + 500
        client.close()
        assert end.read_to_end() == (data, End.FIN)


def test_a_slow_reader_hears_the_end(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (client, end):
        end.slow_reader(1e6)
        client.sendall(b"all")
        kernel.wait_until(lambda: end.received == 3)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        client.close()
        assert end.read_to_end() == (b"all", End.RST)


def test_a_slow_reader_does_not_keep_a_reset_back(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (client, end):
        end.slow_reader(1)
        end.rst()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_black_hole_stays_open_and_its_window_fills() -> None:
    with ScriptedPeer(receive_buffer=4096) as peer, connected(peer) as (client, end):
        end.black_hole()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.settimeout(SHORT)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(1_000_000))
        assert kernel.state_of(client) == "ESTABLISHED"
        assert kernel.unacknowledged(client) > 0
        for act in (lambda: end.say(b"x"), lambda: end.read(1), end.read_to_end):
            with pytest.raises(RuntimeError, match="black hole"):
                act()


def test_an_end_that_was_closed_says_so(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (_, end):
        end.fin()
        for act in (end.fin, end.rst, end.half_close, end.read_to_end, end.black_hole):
            with pytest.raises(RuntimeError, match="has been closed"):
                act()


# The peer ---------------------------------------------------------------------------------------


def test_refusing_is_a_real_refusal_and_ends_on_the_same_port(scripted_peer: ScriptedPeer) -> None:
    for _ in range(3):
        with scripted_peer.refusing():
            for _ in range(3):
                with pytest.raises(ConnectionRefusedError):
                    connect(scripted_peer)
        with connected(scripted_peer) as (client, end):
            end.say(b"here")
            assert client.recv(4) == b"here"


def test_whoever_was_not_accepted_is_reset_by_a_refusal(scripted_peer: ScriptedPeer) -> None:
    with connect(scripted_peer) as client, scripted_peer.refusing():
        assert error_of(client) == errno.ECONNRESET


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_next_attempts_are_refused_and_the_one_after_that_is_not(host: str) -> None:
    with ScriptedPeer(host) as peer:
        for n in (1, 3):
            peer.refuse_next(n)
            for _ in range(n):
                with pytest.raises(ConnectionRefusedError):
                    connect(peer)
            with connected(peer), connected(peer):
                pass


def test_attempts_to_other_addresses_are_not_counted(scripted_peer: ScriptedPeer) -> None:
    scripted_peer.refuse_next(1)
    for host in ("127.0.0.2", "::1"):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, scripted_peer.address[1]))
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.connect(scripted_peer.address)
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(("localhost", scripted_peer.address[1]))  # A name for it.
    with connected(scripted_peer):
        pass


def test_a_client_that_tries_again_gets_through_to_an_accept_that_waits(
    scripted_peer: ScriptedPeer,
) -> None:
    refused: list[OSError] = []

    def persist() -> None:
        while True:
            try:
                connect(scripted_peer).close()
            except ConnectionRefusedError as error:
                refused.append(error)
            else:
                return

    scripted_peer.refuse_next(5)
    client = threading.Thread(target=persist)
    client.start()
    assert scripted_peer.accept().read_to_end() == (b"", End.FIN)
    client.join()
    assert len(refused) == 5


def test_who_waits_to_accept_goes_on_waiting_through_a_refusal(scripted_peer: ScriptedPeer) -> None:
    accepted: list[PeerEnd] = []
    thread = threading.Thread(target=lambda: accepted.append(scripted_peer.accept()))
    thread.start()
    kernel.wait_until_blocked(thread)
    with scripted_peer.refusing():
        thread.join(SHORT)  # It is woken, and must not end.
        assert thread.is_alive()
        with pytest.raises(ConnectionRefusedError):
            connect(scripted_peer)
    with connect(scripted_peer):
        thread.join(20)
    assert len(accepted) == 1


@pytest.mark.parametrize("how", [End.FIN, End.RST])
def test_connections_are_dropped_and_the_next_is_accepted(
    scripted_peer: ScriptedPeer, how: End
) -> None:
    with connect(scripted_peer) as waiting:
        scripted_peer.accept_and_drop(3, how)
        assert end_of(waiting) is how
    for _ in range(2):
        try:
            with connect(scripted_peer) as client:
                assert end_of(client) is how
        except ConnectionResetError:  # It was quicker than connect(2).
            assert how is End.RST
    with connected(scripted_peer) as (client, end):
        assert end.sock.getpeername() == client.getsockname()
    assert scripted_peer.dropped == 3


def test_a_client_that_sees_its_drop_finds_it_counted(
    scripted_peer: ScriptedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    fin = Acts.fin

    def fin_later(acts: Acts) -> None:
        counts.append(scripted_peer.dropped)
        fin(acts)

    monkeypatch.setattr(Acts, "fin", fin_later)
    scripted_peer.accept_and_drop(1)
    with connect(scripted_peer) as client:
        assert end_of(client) is End.FIN
    assert counts == [1]


def test_a_black_hole_does_not_answer_connects_until_it_ends(scripted_peer: ScriptedPeer) -> None:
    with connected(scripted_peer) as (before, end), socket.socket() as client:
        with scripted_peer.black_hole():
            client.settimeout(SHORT)
            with pytest.raises(TimeoutError):
                client.connect(scripted_peer.address)
            assert kernel.state_of(client) == "SYN_SENT"
            end.say(b"I am still here")
            assert before.recv(100) == b"I am still here"
        with connected(scripted_peer):
            pass


def test_waiting_is_bounded_and_says_for_what_it_was() -> None:
    with ScriptedPeer(timeout=SHORT) as peer:
        with pytest.raises(TimeoutError, match=r"not within 0\.2 s: a connection to"):
            peer.accept()
        with peer.refusing(), pytest.raises(TimeoutError):
            peer.accept()
        peer.accept_and_drop(1)
        with pytest.raises(TimeoutError):
            peer.accept()
        connect(peer).close()
        with connected(peer) as (client, end):
            with pytest.raises(TimeoutError, match=r"not within 0\.2 s: 3 bytes from the client"):
                end.read(3)
            client.sendall(b"123")
            assert end.read(3) == b"123"
            with pytest.raises(TimeoutError, match="the client reads"):
                end.say(bytes(30_000_000))


@pytest.mark.usefixtures("nothing_is_left_open")
def test_close_leaves_nothing_open_whatever_goes_on(certificates: Certificates) -> None:
    for context in (None, certificates.server()):
        with ScriptedPeer(tls=context) as peer, connect(peer), connect(peer):
            if context is None:
                peer.accept().slow_reader(1)
                peer.accept_and_drop(7)
            else:
                peer.accept()
            peer.refuse_next(1)
        peer.close()


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda peer: peer.refuse_next(0), ValueError, "1 or more"),
        (lambda peer: peer.refuse_next(1.0), TypeError, "a number of connections"),
        (lambda peer: peer.accept_and_drop(-1), ValueError, "1 or more"),
        (lambda peer: peer.accept_and_drop(True), TypeError, "a number of connections"),
        (lambda peer: peer.accept_and_drop(1, "rst?"), ValueError, r"End\.FIN or End\.RST"),
        (lambda _: ScriptedPeer(timeout=0), ValueError, "seconds, more than 0"),
        (lambda _: ScriptedPeer(tls=True), TypeError, "SSLContext"),  # type: ignore[arg-type]
    ],
)
def test_wrong_use_is_an_error_at_once(
    scripted_peer: ScriptedPeer, wrong: Callable[[Any], Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        wrong(scripted_peer)
    with connected(scripted_peer) as (_, end):  # And nothing has been done.
        with pytest.raises(ValueError, match="bytes per second, more than 0"):
            end.slow_reader(0)
        with pytest.raises(RuntimeError, match="has no TLS"):
            end.close_notify()


# TLS --------------------------------------------------------------------------------------------


@pytest.fixture
def tls_peer(certificates: Certificates) -> Iterator[ScriptedPeer]:
    with ScriptedPeer(tls=certificates.server()) as peer:
        yield peer


@contextlib.contextmanager
def secured(peer: ScriptedPeer, context: ssl.SSLContext) -> Iterator[tuple[ssl.SSLSocket, PeerEnd]]:
    with context.wrap_socket(
        connect(peer), server_hostname=NAME, suppress_ragged_eofs=False
    ) as client:
        yield client, peer.accept()


def test_a_tls_client_in_the_same_thread_can_connect(
    tls_peer: ScriptedPeer, context23: ssl.SSLContext
) -> None:
    with secured(tls_peer, context23) as (client, end), secured(tls_peer, context23) as (_, other):
        end.say(b"hello")
        assert client.recv(100) == b"hello"
        client.sendall(b"hello yourself")
        assert end.read(14) == b"hello yourself"
        assert end is not other


def test_close_notify_is_one_thing_and_fin_another(
    tls_peer: ScriptedPeer, context23: ssl.SSLContext
) -> None:
    with secured(tls_peer, context23) as (client, end):
        end.close_notify()
        assert client.recv(1) == b""
        assert kernel.state_of(client) == "ESTABLISHED"
    with secured(tls_peer, context23) as (client, end):
        end.goodbye_then_fin(b"bye")
        assert client.recv(3) == b"bye"
        with pytest.raises(ssl.SSLEOFError):
            client.recv(1)
    with secured(tls_peer, context23) as (client, end):
        end.handshake()
        end.rst()
        assert error_of(client) == errno.ECONNRESET


def test_what_a_tls_client_says_at_its_end_is_told_apart(
    tls_peer: ScriptedPeer, context23: ssl.SSLContext
) -> None:
    with secured(tls_peer, context23) as (client, end):
        client.sendall(b"all")
        client.settimeout(0)
        with pytest.raises(ssl.SSLWantReadError):
            client.unwrap()
        assert end.read_to_end() == (b"all", End.CLOSE_NOTIFY)
        client.shutdown(socket.SHUT_WR)
        assert end.read_to_end() == (b"", End.FIN)
    with secured(tls_peer, context23) as (client, end):
        client.sendall(b"all")
        client.shutdown(socket.SHUT_WR)
        assert end.read_to_end() == (b"all", End.FIN)


def test_a_handshake_can_be_cut_or_fail(tls_peer: ScriptedPeer, context: ssl.SSLContext) -> None:
    with connect(tls_peer) as client:
        tls_peer.accept().fin()
        assert client.recv(1) == b""
    with connect(tls_peer) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError):
            tls_peer.accept().say(b"never")
    with connect(tls_peer) as client:
        client.close()
        with pytest.raises(EOFError):
            tls_peer.accept().handshake()
    with pytest.raises(ssl.SSLCertVerificationError):
        context.wrap_socket(connect(tls_peer), server_hostname="another.example")


def test_a_slow_reader_reads_tls(tls_peer: ScriptedPeer, context: ssl.SSLContext) -> None:
    with secured(tls_peer, context) as (client, end):
        end.slow_reader(1e6)
        client.sendall(bytes(40_000))
        kernel.wait_until(lambda: end.received == 40_000)
        end.say(b"and it still speaks")
        assert client.recv(100) == b"and it still speaks"
        assert end.read(40_000) == bytes(40_000)


def test_tls_connections_are_dropped_and_refused_too(
    tls_peer: ScriptedPeer, context: ssl.SSLContext
) -> None:
    tls_peer.accept_and_drop(1)
    with connect(tls_peer) as client:
        assert client.recv(1) == b""
    tls_peer.refuse_next(1)
    with pytest.raises(ConnectionRefusedError):
        connect(tls_peer)
    with secured(tls_peer, context) as (client, end):
        end.say(b"x")
        assert client.recv(1) == b"x"


def test_tls_can_start_in_the_middle(
    scripted_peer: ScriptedPeer, certificates: Certificates, context: ssl.SSLContext
) -> None:
    plain = connect(scripted_peer)
    end = scripted_peer.accept()
    end.say(b"go ahead\n")
    assert plain.recv(100) == b"go ahead\n"
    end.start_tls(certificates.server())
    with context.wrap_socket(plain, server_hostname=NAME) as client:
        end.say(b"safe")
        assert client.recv(4) == b"safe"


# The package ------------------------------------------------------------------------------------

LOADED = """
import sys, types
sys.modules["pytest"] = types.SimpleNamespace(fixture=lambda function: function)
import safesock._pytest_plugin
print(*[name for name in sys.modules if name.startswith("safesock.testing") or name == "asyncio"])
import safesock.testing
assert "asyncio" not in sys.modules
assert safesock.testing.AsyncScriptedPeer.__name__ in dir(safesock.testing)
"""


def test_the_plugin_loads_the_peer_only_when_it_is_asked_for() -> None:
    assert subprocess.check_output([sys.executable, "-c", LOADED], text=True).strip() == ""
