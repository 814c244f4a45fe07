"""A KeyboardInterrupt at each step of a call: neither another thread nor the watcher is held up by
what it has left."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import kernel
import pytest
from peer import EOF, RESET, TIMEOUT, Peer
from tls_peer import NAME, Certificates

import safesock
from safesock import Abort, Drain, Graceful, Policy, SafeSocket, _beside, _connection
from safesock._policy import CloseMode

if TYPE_CHECKING:
    from safesock._policy import OnLoss

MOST_STEPS = 2_000
by_loss = pytest.mark.parametrize(
    ("mode", "on_loss"),
    [
        (Graceful(), "close"),
        (Abort(), "release"),
        pytest.param(Graceful(), "release", marks=pytest.mark.campaign),
        pytest.param(Abort(), "close", marks=pytest.mark.campaign),
    ],
)


@pytest.fixture(autouse=True)
def _nobody_is_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that leaves a connection's lock held costs others the time that an owner may take."""
    monkeypatch.setattr(_connection, "_PATIENCE", 0.05)


def is_struck_at(step: int, call: Callable[[], object]) -> bool:
    """Whether that step is reached: where a call begins, or one of C's has come back. There the
    interpreter looks for signals."""
    left = step

    def strike(_frame: FrameType, event: str, _what: object) -> None:
        nonlocal left
        left -= event in ("call", "c_return")
        if left < 0:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(strike)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return left < 0  # Even where nothing was raised, as with what strikes a subscriber.


def in_another_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive(), "held up by a lock that is left held"


def at_each_step(one: Callable[[int], bool]) -> None:
    assert next((step for step in range(MOST_STEPS) if not one(step)), 0) > 10


@pytest.mark.parametrize(
    "mode", [Graceful(), Abort(), pytest.param(Drain(0.01), marks=pytest.mark.campaign)], ids=str
)
def test_an_interrupted_close_holds_up_nobody(
    peer: Peer, mode: CloseMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(step: int) -> bool:
        with peer.connected(Policy(mode)) as (other, _), peer.connected(Policy(mode)) as (sock, _):
            struck = is_struck_at(step, sock.close)
            in_another_thread(other.close)
            sock.close()  # What the first has not done: as ever, `with` does not.
            return struck

    # What strikes while it is told is reported there.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with safesock.subscribe(lambda _: None):
        at_each_step(one)


def test_a_drain_that_was_done_is_not_undone() -> None:
    """By what does all steps again, and nothing that waits."""

    def one(step: int) -> bool:
        policy = Policy(Drain(TIMEOUT))
        with Peer(receive_buffer=4096) as peer, peer.connected(policy) as (sock, end):
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(bytes(100_000))
            end.half_close()
            struck = is_struck_at(step, sock.close)
            sock.close()
            report = sock.close_report
            if report is not None and report.mode == policy.close and not report.reset:
                data, how = end.read_to_end()
                assert (len(data), how) == (report.sent, EOF)
            return struck

    at_each_step(one)


@by_loss
def test_what_an_interrupted_read_has_left_is_ended_by_the_watcher(
    peer: Peer, mode: CloseMode, on_loss: OnLoss
) -> None:
    def one(step: int) -> bool:
        with peer.connected(Policy(mode, on_loss, grace=0.0)) as (sock, end):
            end.fin()
            struck = is_struck_at(step, lambda: read(sock))
            kernel.wait_until(lambda: is_ended(sock), "it is ended")
            return struck

    at_each_step(one)


@by_loss
def test_who_closes_while_the_interrupt_is_handled_has_closed(
    peer: Peer, mode: CloseMode, on_loss: OnLoss
) -> None:
    """Its traceback keeps the local variables of what it has struck."""
    numbers = []

    def read_and_close(sock: SafeSocket) -> None:
        try:
            read(sock)
        except KeyboardInterrupt:
            sock.close()
            numbers.append(sock.fileno())
            raise

    def one(step: int) -> bool:
        with peer.connected(Policy(mode, on_loss)) as (sock, end):
            end.fin()
            return is_struck_at(step, lambda: read_and_close(sock))

    at_each_step(one)
    assert set(numbers) == {-1}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("kind", ["wrap", "wrap_socket"])
def test_what_takes_a_socket_over_and_is_interrupted_leaves_its_descriptor_one_owner(
    peer: Peer, certificates: Certificates, kind: str
) -> None:
    """Without one it stays open; the second of two closes whoever has the number by then."""
    context = safesock.secure(certificates.client())
    wraps: dict[str, Callable[[socket.socket], socket.socket]] = {
        "wrap": safesock.wrap,
        "wrap_socket": lambda sock: context.wrap_socket(
            sock, server_hostname=NAME, do_handshake_on_connect=False
        ),
    }
    kept: list[KeyboardInterrupt] = []
    made: list[socket.socket] = []

    def take(sock: socket.socket) -> None:
        try:
            made.append(wraps[kind](sock))
        except KeyboardInterrupt as interrupt:  # With its frames, and so all that they have made.
            kept.append(interrupt)
            raise

    def one(step: int) -> bool:
        with socket.create_connection(peer.address) as sock, tempfile.TemporaryFile() as file:
            end = peer.accept()
            number = sock.fileno()
            struck = is_struck_at(step, lambda: take(sock))
            for each in (sock, *made):
                each.close()
            is_left = number in kernel.descriptors()
            if not is_left:
                os.dup2(file.fileno(), number)
            made.clear()
            kept.clear()
            gc.collect()
            if is_left:
                assert number not in kernel.descriptors()
            else:
                assert os.path.sameopenfile(number, file.fileno())
                os.close(number)
            end.close()
            return struck

    at_each_step(one)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    ("mode", "end_seen"),
    [(Graceful(), EOF), pytest.param(Abort(), RESET, marks=pytest.mark.campaign)],
    ids=str,
)
def test_what_is_collected_ends_by_its_policy_where_that_is_interrupted(
    peer: Peer, mode: CloseMode, end_seen: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(step: int) -> bool:
        last = [safesock.create_connection(peer.address, policy=Policy(mode))]
        number = last[0].fileno()
        with contextlib.closing(peer.accept()) as end:
            end.say(b"unread")
            kernel.wait_until(lambda: kernel.unread(last[0]), "it has come")
            # Not at the first, where `__del__` has not begun: CPython leaves the object as it is.
            struck = is_struck_at(step + 1, last.clear)
            assert number not in kernel.descriptors()
            assert end.read_to_end() == (b"", end_seen)
            return struck

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    at_each_step(one)


def test_what_was_not_begun_is_not_waited_for_at_the_exit() -> None:
    def one(step: int) -> bool:
        apart = _beside._Apart()
        struck = is_struck_at(step, lambda: apart(lambda: None))
        in_another_thread(apart._end)
        return struck

    at_each_step(one)


def is_ended(sock: SafeSocket) -> bool:
    with contextlib.suppress(OSError):  # It is closed.
        return kernel.state_of(sock) not in ("ESTABLISHED", "CLOSE_WAIT")
    return True


def read(sock: SafeSocket) -> None:
    assert sock.recv(1) == b""
