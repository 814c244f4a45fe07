"""The counts of a connection that one thread ends while others are at work with it."""

from __future__ import annotations

import itertools
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kernel
import pytest
from peer import RESET, TIMEOUT, Peer, PeerEnd

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
    _watch,
)
from safesock._connection import Connection

MODES = [Graceful(), Drain(1), Linger(1), Abort()]


def send_until_the_end(sock: SafeSocket, size: int) -> int:
    """The bytes that `send` accepted until it failed."""
    chunk, accepted = bytes(size), 0
    for _ in itertools.repeat(None, 10_000_000):
        try:
            accepted += sock.send(chunk)
        except BrokenPipeError:
            return accepted
    raise AssertionError("it never fails")


def reading(end: PeerEnd, seen: list[tuple[bytes, str]]) -> threading.Thread:
    """The peer reads to the end, beside."""
    reader = threading.Thread(target=lambda: seen.append(end.read_to_end()))
    reader.start()
    return reader


def check(record: Loss | CloseReport | None, accepted: int, got: bytes) -> None:
    assert record is not None
    assert record.cause is Cause.FIN
    assert record.sent == accepted
    assert record.unacknowledged is not None
    assert accepted - record.unacknowledged <= len(got) <= accepted


@pytest.mark.parametrize("mode", MODES, ids=repr)
def test_what_send_accepts_until_the_watcher_ends_it_is_counted(peer: Peer, mode: Any) -> None:
    for size in (1, 100, 5000) * 3:
        with peer.connected(Policy(mode, grace=0)) as (sock, end):
            seen: list[tuple[bytes, str]] = []
            reader = reading(end, seen)
            closer = threading.Timer(0.01, end.half_close)
            closer.start()
            try:
                accepted = send_until_the_end(sock, size)
            finally:
                closer.join(TIMEOUT)
                reader.join(TIMEOUT)
            check(sock.loss, accepted, seen[0][0])
            check(sock.close_report, accepted, seen[0][0])


@pytest.mark.parametrize(
    ("peer_is", "size"),
    [
        ("reading", 10_000),
        ("gone", 10_000),
        pytest.param("reading", 1, marks=pytest.mark.campaign),
        pytest.param("gone", 1, marks=pytest.mark.campaign),
    ],
)
def test_abort_with_unread_input_is_told_to_an_owner_that_sends(
    peer: Peer, size: int, peer_is: str
) -> None:
    """The kernel takes two seconds for that RST, but not for a peer whose answers it is shown."""
    with peer.connected(Policy(Abort(), grace=0)) as (sock, end):
        end.say(b"unread")
        seen: list[tuple[bytes, str]] = []
        if peer_is == "gone":
            end.close()
        else:
            end.half_close()
            reader = reading(end, seen)
        kernel.wait_until(lambda: sock.loss is not None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
        if peer_is == "gone":
            accepted = send_until_the_end(sock, size)
            check(sock.loss, accepted, b"")
        else:
            accepted = sock.send(bytes(size)) + sock.send(bytes(size))
            reader.join(TIMEOUT)
            assert seen[0][1] == RESET
            kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE")
            with pytest.raises(BrokenPipeError):
                sock.send(b"too late")
            check(sock.loss, accepted, seen[0][0])
            check(sock.close_report, accepted, seen[0][0])
        assert sock.loss is not None
        assert sock.loss.unread == len(b"unread")


@pytest.mark.parametrize("mode", [*MODES[:1], Drain(0.05), *MODES[2:]], ids=repr)
@pytest.mark.parametrize("call", ["close", "recv"])
def test_threads_that_end_it_at_once_count_and_tell_it_once(
    peer: Peer, mode: Any, call: str
) -> None:
    with ThreadPoolExecutor(3) as pool:
        for _ in range(20):
            with peer.connected(Policy(mode, watch=False)) as (sock, end):
                sock.sendall(bytes(100))
                assert end.read(100) == bytes(100)
                begin = threading.Barrier(3)

                def act(sock: SafeSocket = sock, begin: threading.Barrier = begin) -> None:
                    begin.wait(TIMEOUT)
                    if call == "close":
                        sock.close()
                    else:
                        assert sock.recv(9) == b""

                acting = [pool.submit(act) for _ in range(3)]
                if call == "recv":
                    end.half_close()
                for one in acting:
                    one.result(TIMEOUT)
            for record in (sock.close_report, sock.loss):
                if record is not None:
                    assert (record.sent, record.unacknowledged) == (100, 0)


@pytest.mark.parametrize("mode", MODES, ids=repr)
def test_sender_that_another_thread_ends_it_under_is_told_as_after_a_loss(
    peer: Peer, mode: Any
) -> None:
    """With Abort the kernel says ECONNRESET to it, as if there were a second loss."""
    with peer.connected(Policy(mode, watch=False)) as (sock, end):
        errors: list[OSError] = []

        def send() -> None:
            try:
                sock.sendall(bytes(50_000_000))
            except OSError as error:
                errors.append(error)

        sock.settimeout(None)
        sender = threading.Thread(target=send)
        sender.start()
        kernel.wait_until_blocked(sender)
        end.half_close()
        assert sock.recv(1) == b""
        sender.join(TIMEOUT)
        assert [type(error) for error in errors] == [BrokenPipeError]


def test_owner_that_comes_while_the_watcher_leaves_closes(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher counts as being at work with the descriptor, which nobody may close then."""
    leaving, done = threading.Event(), threading.Event()
    end_or_wait = Connection._end_or_wait

    def leave_late(connection: Connection, sock: Any, decrypted: int) -> bool:
        is_done = end_or_wait(connection, sock, decrypted)
        leaving.set()
        kernel.wait_until(lambda: done.is_set() or waits_for_a_lock(owner), "the owner comes")
        return is_done

    owner = threading.current_thread()
    with peer.connected(Policy(grace=0)) as (sock, end):
        monkeypatch.setattr(Connection, "_end_or_wait", leave_late)
        end.half_close()
        assert leaving.wait(TIMEOUT)
        assert sock.recv(1) == b""
        open_still = sock.fileno() >= 0
        done.set()
    assert not open_still


def waits_for_a_lock(thread: threading.Thread) -> bool:
    with open(f"/proc/self/task/{thread.native_id}/wchan", encoding="ascii") as place:
        return place.read().startswith("futex")


def test_owner_that_is_told_while_the_watcher_aborts_counts_what_was_sent(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each abort adds to the count of the kernel: it is taken off where there is one at a time."""
    aborting, done = threading.Event(), threading.Event()
    counts = _kernel.counts

    def counts_late(sock: Any, *, syn: int, fin_sent: bool) -> tuple[int | None, int | None]:
        found = counts(sock, syn=syn, fin_sent=fin_sent)
        if _watch.is_watching_thread() and sock_is_released():
            aborting.set()
            kernel.wait_until(lambda: done.is_set() or waits_for_a_lock(owner), "the owner comes")
        return found

    def sock_is_released() -> bool:
        connection = sock._connection
        return connection is not None and connection.released

    owner = threading.current_thread()
    with peer.connected(Policy(Abort(), on_loss="release", grace=0)) as (sock, end):
        sock.sendall(b"1234")
        assert end.sock.recv(4) == b"1234"
        monkeypatch.setattr(_kernel, "counts", counts_late)
        end.half_close()
        assert aborting.wait(TIMEOUT)
        connection = sock._connection
        assert connection is not None
        connection.released = False  # As where both have looked at it before.
        connection.release(sock)
        done.set()
        kernel.wait_until(lambda: sock.loss is not None, "it is recorded")
        assert sock.loss is not None
        assert sock.loss.sent == 4
