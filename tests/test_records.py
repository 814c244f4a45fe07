"""`sock.loss` and `sock.close_report`, compared with what the peer's kernel really got."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import kernel
import pytest
from calls import fill
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd

import safesock
from safesock import (
    Abort,
    Cause,
    CloseReport,
    Drain,
    Graceful,
    Linger,
    Loss,
    Policy,
    SafeSocket,
    _kernel,
)

FIELDS = (
    "cause",
    "connection",
    "error",
    "lifetime",
    "local",
    "peer",
    "sent",
    "unacknowledged",
    "unread",
)
MODES = [Graceful(), Drain(), Linger(5), Abort()]

each_on_loss = pytest.mark.parametrize("on_loss", ["close", "release", "keep"])
each_mode = pytest.mark.parametrize("mode", MODES, ids=repr)


def policy_of(on_loss: Any = "close", **choices: Any) -> Policy:
    # Without the watcher: these tests are about what the calls do.
    return Policy(on_loss=on_loss, watch=False, **choices)


@contextlib.contextmanager
def connected(peer: Peer, policy: Policy | None = None) -> Iterator[tuple[SafeSocket, PeerEnd]]:
    chosen = policy or policy_of()
    with safesock.create_connection(peer.address, TIMEOUT, policy=chosen) as sock:
        yield sock, peer.accept()


@pytest.fixture
def narrow() -> Iterator[Peer]:
    """A peer that takes little, and the rest waits on our side."""
    with Peer(receive_buffer=4096) as one:
        yield one


def loss_of(sock: SafeSocket) -> Loss:
    assert sock.loss is not None
    return sock.loss


def report_of(sock: SafeSocket) -> CloseReport:
    assert sock.close_report is not None
    return sock.close_report


def counted(record: Loss | CloseReport) -> tuple[int | None, int | None, int | None]:
    return record.sent, record.unacknowledged, record.unread


def arrived(sock: socket.socket, state: str) -> None:
    kernel.wait_until(lambda: kernel.state_of(sock) == state, f"the socket is in {state}")


def reset(sock: SafeSocket, end: PeerEnd) -> None:
    """The peer's RST has arrived, and a call has told of it."""
    end.rst()
    arrived(sock, "CLOSE")
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        sock.send(b"one too many")


# A loss ------------------------------------------------------------


def test_there_is_no_record_before_the_end(peer: Peer) -> None:
    unconnected = SafeSocket()
    assert unconnected.loss is None
    assert unconnected.close_report is None
    unconnected.close()
    assert unconnected.loss is None
    assert unconnected.close_report is None  # It had no connection.
    with connected(peer) as (sock, end):
        end.say(b"x")
        assert sock.recv(1) == b"x"
        assert sock.loss is None
        assert sock.close_report is None


@each_on_loss
def test_a_fin_after_everything_was_delivered(peer: Peer, on_loss: str) -> None:
    with connected(peer, policy_of(on_loss)) as (sock, end):
        local = sock.getsockname()
        sock.sendall(b"question")
        assert end.read(8) == b"question"
        end.say(b"answer")
        end.fin()
        assert sock.recv(99) == b"answer"
        assert sock.recv(99) == b""
        loss = loss_of(sock)
    assert (loss.cause, loss.error) == (Cause.FIN, None)
    assert (loss.local, loss.peer) == (local, peer.address)
    assert counted(loss) == (8, 0, 0)


@each_on_loss
def test_a_reset_with_bytes_that_never_left(narrow: Peer, on_loss: str) -> None:
    with connected(narrow, policy_of(on_loss)) as (sock, end):
        sent = fill(sock, end)
        got = kernel.unread(end.sock)
        assert 0 < got < sent
        reset(sock, end)
        loss = loss_of(sock)
        assert loss.cause is Cause.RST
        assert isinstance(loss.error, ConnectionResetError)
        assert counted(loss) == (sent, sent - got, 0)
    assert counted(report_of(sock)) == (sent, sent - got, 0)


def test_a_half_sent_sendall_says_how_much_was_taken(narrow: Peer) -> None:
    """The peer reads a part and resets; what it has got is what was acknowledged, and no more."""
    whole = 8_000_000
    with connected(narrow) as (sock, end):
        sock.settimeout(None)
        raised: list[BaseException] = []

        def send() -> None:
            try:
                sock.sendall(bytes(whole))
            except OSError as error:
                raised.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        read = len(end.read(100_000))
        kernel.wait_until_blocked(thread)
        got = read + kernel.unread(end.sock)
        end.rst()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        assert isinstance(raised[0], ConnectionResetError)
        loss = loss_of(sock)
    assert loss.sent is not None
    assert loss.unacknowledged is not None
    assert got <= loss.sent < whole
    assert read <= loss.sent - loss.unacknowledged < whole


@pytest.mark.parametrize("said", [b"", b"421 closing"])
@each_on_loss
def test_unread_bytes_at_a_reset(peer: Peer, said: bytes, on_loss: str) -> None:
    with connected(peer, policy_of(on_loss)) as (sock, end):
        sock.sendall(b"12345")
        assert end.read(5)
        end.say(said)
        kernel.wait_until(lambda: kernel.unread(sock) == len(said))
        reset(sock, end)
        assert counted(loss_of(sock)) == (5, 0, len(said))
    assert counted(report_of(sock)) == (5, 0, len(said))


@pytest.mark.parametrize("full", [False, True])
def test_our_own_fin_is_not_counted_as_a_byte(narrow: Peer, full: bool) -> None:
    """It takes a sequence number: acknowledged, or waiting behind the unsent bytes."""
    with connected(narrow, policy_of("keep")) as (sock, end):
        if full:
            sent = fill(sock, end)
            got = kernel.unread(end.sock)
        else:
            sock.sendall(b"12345")
            kernel.wait_until(lambda: kernel.unread(end.sock) == 5)
            sent = got = 5
        sock.shutdown(socket.SHUT_WR)
        arrived(sock, "FIN_WAIT1" if full else "FIN_WAIT2")
        end.rst()
        arrived(sock, "CLOSE")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert counted(loss_of(sock)) == (sent, sent - got, 0)
    assert counted(report_of(sock)) == (sent, sent - got, 0)


def test_a_fin_that_a_reset_has_prevented_is_not_counted(
    narrow: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer's comes right before our shutdown(2), as it answers what crosses its FIN."""
    shutdown = _kernel.shutdown

    def shutdown_late(raw: Any, how: int) -> bool:
        monkeypatch.setattr(_kernel, "shutdown", shutdown)
        end.rst()
        kernel.wait_until(lambda: kernel.state_of(raw) == "CLOSE", "the RST has come")
        return shutdown(raw, how)

    with connected(narrow, policy_of("release")) as (sock, end):
        sent = fill(sock, end)
        end.half_close()
        arrived(sock, "CLOSE_WAIT")
        monkeypatch.setattr(_kernel, "shutdown", shutdown_late)
        assert sock.recv(1) == b""
        assert counted(loss_of(sock))[0] == sent
    assert counted(report_of(sock))[0] == sent


@pytest.mark.parametrize("how", [99, "SHUT_WR"])
def test_a_shutdown_that_fails_changes_no_record(peer: Peer, how: Any) -> None:
    with connected(peer) as (sock, end):
        with pytest.raises((OSError, TypeError)):
            sock.shutdown(how)
        sock.sendall(b"12345")
        assert end.read(5) == b"12345"
        end.fin()
        sock.sendall(b"6")
        arrived(sock, "CLOSE")
        with pytest.raises(BrokenPipeError):
            sock.sendall(b"7")
        assert loss_of(sock).sent == 6


@pytest.mark.parametrize("on_loss", ["close", "keep"])
def test_the_peers_fin_after_our_own(peer: Peer, on_loss: str) -> None:
    with connected(peer, policy_of(on_loss)) as (sock, end):
        sock.sendall(b"12345")
        sock.shutdown(socket.SHUT_WR)
        assert end.read_to_end() == (b"12345", EOF)
        end.say(b"answer")
        end.fin()
        assert sock.recv(6) == b"answer"
        assert sock.recv(6) == b""
        loss = loss_of(sock)
        assert loss.cause is Cause.FIN
        assert counted(loss) == (5, 0, 0)
    assert counted(report_of(sock)) == (5, 0, 0)


def test_a_fin_while_bytes_wait_to_leave(narrow: Peer) -> None:
    """A peer that half-closes and does not read: they are not acknowledged, and not lost yet."""
    with connected(narrow) as (sock, end):
        sent = fill(sock, end)
        got = kernel.unread(end.sock)
        end.half_close()
        assert sock.recv(1) == b""
        assert counted(loss_of(sock)) == (sent, sent - got, 0)
        # Graceful: all that send took arrives after all.
        assert len(end.read_to_end()[0]) == sent


def test_the_bytes_that_a_released_socket_seems_to_send(peer: Peer) -> None:
    with connected(peer, policy_of("release")) as (sock, end):
        sock.sendall(b"12345")
        assert end.read(5)
        end.fin()
        assert sock.recv(1) == b""
        first = loss_of(sock)
        assert counted(first) == (5, 0, 0)
        assert sock.send(b"into the void") == 13
        assert counted(loss_of(sock)) == (18, 13, 0)
        assert counted(first) == (5, 0, 0)
        with pytest.raises(BrokenPipeError):
            sock.send(b"again")
        assert counted(loss_of(sock)) == (18, 13, 0)
    assert counted(report_of(sock)) == (18, 13, 0)


def test_a_loss_is_recorded_once(peer: Peer) -> None:
    with connected(peer, policy_of("keep")) as (sock, end):
        end.half_close()
        assert sock.recv(1) == b""
        first = loss_of(sock)
        sock.sendall(b"more")
        assert end.read(4)
        reset(sock, end)
        assert sock.loss is first
    assert sock.loss is first
    report = report_of(sock)
    assert report.cause is Cause.FIN
    assert report.sent == 4
    sock.close()
    assert sock.close_report is report


def test_the_error_of_a_loss_is_the_one_that_was_raised(peer: Peer) -> None:
    with connected(peer) as (sock, end):
        end.rst()
        with pytest.raises(ConnectionResetError) as caught:
            sock.recv(1)
        error = loss_of(sock).error
        assert isinstance(error, ConnectionResetError)
        assert (error.errno, str(error)) == (caught.value.errno, str(caught.value))


def test_a_record_keeps_nothing_alive(peer: Peer) -> None:
    """No traceback, whose frames would hold the socket and all that its callers held."""

    class Payload(bytearray):
        pass

    def lose(payload: Payload) -> Loss:
        with connected(peer) as (sock, end):
            end.rst()
            arrived(sock, "CLOSE")
            with contextlib.suppress(ConnectionResetError):
                sock.sendall(payload)
            return loss_of(sock)

    loss = lose(Payload(b"much"))
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Payload)]
    assert loss.error is not None
    assert loss.error.__traceback__ is None


# The close report ------------------------------------------------------------


@each_mode
def test_closing_after_everything_was_delivered(peer: Peer, mode: Any) -> None:
    with connected(peer, policy_of(close=mode)) as (sock, end):
        local = sock.getsockname()
        sock.sendall(b"question")
        assert end.read(8)
        kernel.wait_until(lambda: kernel.unacknowledged(sock) == 0)
        closer = threading.Thread(target=sock.close)
        closer.start()
        assert end.read_to_end() == (b"", RESET if mode == Abort() else EOF)
        end.fin()
        closer.join(TIMEOUT)
    assert sock.loss is None
    report = report_of(sock)
    assert (report.cause, report.error) == (Cause.CLOSED, None)
    assert (report.local, report.peer) == (local, peer.address)
    assert (report.mode, report.reset) == (mode, mode == Abort())
    assert counted(report) == (8, 0, 0)


@pytest.mark.parametrize("mode", [Graceful(), Abort(), Drain(0.1)], ids=repr)
@pytest.mark.parametrize("ours", ["open", "SHUT_WR"])
def test_closing_with_bytes_that_have_not_left(narrow: Peer, mode: Any, ours: str) -> None:
    with connected(narrow, policy_of(close=mode)) as (sock, end):
        sent = fill(sock, end)
        got = kernel.unread(end.sock)
        if ours == "SHUT_WR":
            sock.shutdown(socket.SHUT_WR)
        sock.close()
        report = report_of(sock)
        assert counted(report) == (sent, sent - got, 0)
        data, how = end.read_to_end()
    if report.reset:
        # The peer reads what its kernel had: that was acknowledged, and nothing else comes.
        assert (len(data), how) == (got, RESET)
    else:
        assert (len(data), how) == (sent, EOF)
    assert report.reset is isinstance(mode, (Abort, Drain))


@pytest.mark.parametrize("way", ["nothing", "FIN"])
@pytest.mark.parametrize("mode", [Graceful(), Linger(5), Abort(), Drain(0.1)], ids=repr)
def test_closing_with_unread_bytes(peer: Peer, mode: Any, way: str) -> None:
    said = b"x" * 100_000
    with connected(peer, policy_of(close=mode)) as (sock, end):
        end.say(said)
        if way == "FIN":
            end.half_close()
            arrived(sock, "CLOSE_WAIT")
        kernel.wait_until(lambda: kernel.unread(sock) == len(said))
        assert len(sock.recv(1000)) == 1000
        sock.close()
    report = report_of(sock)
    assert report.unread == len(said) - 1000
    assert report.sent == 0
    assert report.cause is Cause.CLOSED  # The FIN was there, but nobody had been told of it.
    assert sock.loss is None


def test_a_report_counts_what_was_sent_while_a_reset_was_under_way(peer: Peer) -> None:
    """Unread input delays the RST of the watcher, and until then the kernel goes on sending."""
    with connected(peer, Policy(close=Abort(), grace=0)) as (sock, end):
        end.say(b"unread")
        end.half_close()
        keepalive = socket.SOL_SOCKET, socket.SO_KEEPALIVE  # It is what sends the RST.
        kernel.wait_until(lambda: sock.getsockopt(*keepalive), "the watcher has stepped in")
        sent = sock.send(b"data") if kernel.state_of(sock) != "CLOSE" else 0
    assert report_of(sock).sent == sent
    assert end.read_to_end()[1] == RESET


@each_on_loss
@each_mode
@pytest.mark.parametrize("way", ["FIN", "RST"])
def test_a_report_after_a_loss_agrees_with_the_loss(
    peer: Peer, way: str, mode: Any, on_loss: str
) -> None:
    with connected(peer, policy_of(on_loss, close=mode)) as (sock, end):
        sock.sendall(b"12345")
        assert end.read(5)
        kernel.wait_until(lambda: kernel.unacknowledged(sock) == 0)
        if way == "FIN":
            end.fin()
            assert sock.recv(1) == b""
        else:
            reset(sock, end)
        loss = loss_of(sock)
        assert (sock.close_report is not None) is (on_loss == "close")
    report = report_of(sock)
    for field in FIELDS:
        if field not in ("lifetime", "error"):
            assert getattr(report, field) == getattr(loss, field), field
    assert repr(report.error) == repr(loss.error)
    assert report.lifetime >= loss.lifetime
    assert report.mode == mode
    # The peer knows already: an abort resets what the peer's FIN has left half open.
    assert report.reset is (mode == Abort() and way == "FIN")


def test_a_makefile_file_delays_the_report(peer: Peer) -> None:
    with connected(peer) as (sock, _):
        file = sock.makefile("rb")
        sock.close()
        assert sock.close_report is None
        file.close()
        assert counted(report_of(sock)) == (0, 0, 0)


def test_a_detached_socket_has_no_report(peer: Peer) -> None:
    with connected(peer) as (sock, _):
        plain = socket.socket(fileno=sock.detach())
        sock.close()
        plain.close()
        assert sock.close_report is None
        assert sock.loss is None


# Which connection, and for how long ------------------------------------------------------------


def test_the_lifetime_is_that_of_the_connection(peer: Peer) -> None:
    before = time.monotonic()
    with connected(peer, policy_of("keep")) as (sock, end):
        made = time.monotonic()
        time.sleep(0.05)  # Time itself is what is measured.
        end.fin()
        before_loss = time.monotonic()
        assert sock.recv(1) == b""
        lost = time.monotonic()
        assert before_loss - made <= loss_of(sock).lifetime <= lost - before
        time.sleep(0.05)
        before_close = time.monotonic()
    assert before_close - made <= report_of(sock).lifetime <= time.monotonic() - before
    kept = report_of(sock).lifetime
    assert report_of(sock).lifetime == kept


def test_the_lifetime_does_not_count_connects_that_failed(peer: Peer) -> None:
    with socket.socket() as port, SafeSocket(policy=policy_of()) as sock:
        port.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            sock.connect(port.getsockname())
        time.sleep(0.05)  # Time itself is what is measured.
        before = time.monotonic()
        sock.connect(peer.address)
        peer.accept().fin()
        assert sock.recv(1) == b""
        assert loss_of(sock).lifetime <= time.monotonic() - before


NUMBERS = """
import socket, safesock
with socket.create_server(("127.0.0.1", 0)) as server:
    numbers = []
    idle = [safesock.SafeSocket() for _ in range(3)]
    for how in ("create", "connect", "wrap", "connect_ex"):
        if how == "create":
            sock = safesock.create_connection(server.getsockname())
        elif how == "wrap":
            sock = safesock.wrap(socket.create_connection(server.getsockname()))
        else:
            sock = safesock.SafeSocket()
            getattr(sock, how)(server.getsockname())
        end, _ = server.accept()
        end.close()
        sock.recv(1)
        sock.close()
        numbers.append((sock.loss.connection, sock.close_report.connection))
    for sock in idle:
        sock.close()
print(numbers)
"""


def test_connections_are_numbered_from_one_in_each_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NUMBERS], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[(1, 1), (2, 2), (3, 3), (4, 4)]"


# Records as values ------------------------------------------------------------


@pytest.fixture
def records(peer: Peer) -> tuple[Loss, CloseReport]:
    with connected(peer, policy_of(close=Linger(3))) as (sock, end):
        sock.sendall(b"12345")
        assert end.read(5)
        end.fin()
        assert sock.recv(1) == b""
    return loss_of(sock), report_of(sock)


def test_equal_records_are_equal(records: tuple[Loss, CloseReport]) -> None:
    for record in records:
        for same in (copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
            assert type(same) is type(record)
            assert same == record
            assert hash(same) == hash(record)
            assert repr(same) == repr(record)
    assert records[0] != records[1]


def test_records_of_different_connections_differ(peer: Peer) -> None:
    made = []
    for _ in range(2):
        with connected(peer) as (sock, end):
            end.fin()
            assert sock.recv(1) == b""
        made.append(loss_of(sock))
    assert made[0] != made[1]
    assert made[0].connection + 1 == made[1].connection


def test_a_record_with_an_error_survives_pickling(peer: Peer) -> None:
    with connected(peer) as (sock, end):
        reset(sock, end)
    for record in (loss_of(sock), report_of(sock)):
        again = pickle.loads(pickle.dumps(record))
        assert repr(again) == repr(record)
        assert type(again.error) is ConnectionResetError
        assert again.error.errno == record.error.errno  # type: ignore[union-attr]


def test_the_repr_of_a_record_shows_every_field(records: tuple[Loss, CloseReport]) -> None:
    for record, more in zip(records, [(), ("mode", "reset")], strict=True):
        for field in FIELDS + more:
            assert f"{field}={getattr(record, field)!r}" in repr(record)
        assert repr(record).startswith(f"{type(record).__name__}(")
    assert "mode=Linger(seconds=3)" in repr(records[1])


def test_a_record_never_changes(records: tuple[Loss, CloseReport]) -> None:
    for record in records:
        for field in FIELDS:
            with pytest.raises(AttributeError):
                setattr(record, field, None)
            with pytest.raises(AttributeError):
                delattr(record, field)
        with pytest.raises(AttributeError):
            record.new = 1


def test_loss_and_report_of_a_socket_cannot_be_set(peer: Peer) -> None:
    with connected(peer) as (sock, _):
        for name in ("loss", "close_report", "policy"):
            with pytest.raises(AttributeError):
                setattr(sock, name, None)
