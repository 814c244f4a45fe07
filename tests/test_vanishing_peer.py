"""Peers that vanish, in network namespaces: nothing answers, or the network says why."""

from __future__ import annotations

import contextlib
import errno
import itertools
import select
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import kernel
import netns
import pytest
from calls import CALLS, DATA, answer
from netns import SERVICE, Network
from peer import TIMEOUT, Peer, PeerEnd

import safesock
from safesock import (
    Abort,
    Cause,
    CloseReport,
    Drain,
    Graceful,
    KeepAlive,
    Loss,
    Policy,
    SafeSocket,
)

IP_RECVERR = 11  # Not in the socket module before 3.14.
QUICK = 0.25


@pytest.fixture
def remote(network: Network) -> Iterator[Peer]:
    """The peer on the other host."""
    with network.service.entered():
        peer = Peer(host=SERVICE, receive_buffer=65536)
    with peer:
        yield peer


class Connected(NamedTuple):
    sock: SafeSocket
    end: PeerEnd


@pytest.fixture
def connect(network: Network, remote: Peer) -> Iterator[Callable[[Policy], Connected]]:
    with contextlib.ExitStack() as stack:

        def make(policy: Policy) -> Connected:
            with network.client.entered():
                sock = safesock.create_connection(remote.address, TIMEOUT, policy=policy)
            stack.enter_context(sock)
            return Connected(sock, remote.accept())

        yield make


Connect = Callable[[Policy], Connected]


def unguarded(network: Network, remote: Peer, policy: Policy) -> socket.socket:
    """A plain socket with the same options."""
    with network.client.entered():
        sock = socket.create_connection(remote.address, TIMEOUT)
    if policy.user_timeout:
        milliseconds = int(policy.user_timeout * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    if policy.keepalive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, policy.keepalive.idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, policy.keepalive.interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, policy.keepalive.count)
    return sock


def over(sock: socket.socket) -> None:
    kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE", "the kernel gives up")


def loss_of(sock: SafeSocket) -> Loss:
    assert sock.loss is not None
    return sock.loss


def report_of(sock: SafeSocket) -> CloseReport:
    assert sock.close_report is not None
    return sock.close_report


class Disaster(NamedTuple):
    happens: Callable[[Network], None]
    options: dict[str, Any]
    sends: bytes
    number: int
    cause: Cause
    calls: Iterable[str] = CALLS


DISASTERS = {
    "silence, user_timeout": Disaster(
        Network.vanish, {"user_timeout": QUICK}, DATA, errno.ETIMEDOUT, Cause.TIMEOUT
    ),
    "silence, keepalive": Disaster(
        Network.vanish, {"keepalive": KeepAlive(1, 1, 1)}, b"", errno.ETIMEDOUT, Cause.TIMEOUT
    ),
    "cable pulled, user_timeout": Disaster(
        Network.pull_the_cable, {"user_timeout": QUICK}, DATA, errno.ETIMEDOUT, Cause.TIMEOUT
    ),
    # Several packets: one that meets the ARP entry as it is given up is dropped without a word.
    "no ARP, user_timeout": Disaster(
        Network.lose_the_router,
        {"user_timeout": 4 * QUICK},
        DATA,
        errno.EHOSTUNREACH,
        Cause.UNREACHABLE,
    ),
    "ICMP host unreachable": Disaster(
        Network.become_unreachable,
        {"user_timeout": QUICK},
        DATA,
        errno.EHOSTUNREACH,
        Cause.UNREACHABLE,
    ),
    # Two connections only, as the router limits the rate of these.
    "ICMP net unreachable": Disaster(
        Network.lose_the_network,
        {"user_timeout": QUICK},
        DATA,
        errno.ENETUNREACH,
        Cause.UNREACHABLE,
        ["recv"],
    ),
}


@pytest.mark.parametrize(
    ("name", "on_loss"),
    [
        *itertools.product(DISASTERS, ["close"]),
        pytest.param("silence, user_timeout", "release", marks=pytest.mark.campaign),
        pytest.param("ICMP host unreachable", "keep", marks=pytest.mark.campaign),
    ],
)
def test_every_call_tells_of_it_as_on_a_plain_socket(
    network: Network, remote: Peer, connect: Connect, name: str, on_loss: Any
) -> None:
    """Two connections for each call, plain and safe, all lost at once."""
    disaster = DISASTERS[name]
    calls = {name: CALLS[name] for name in disaster.calls}
    policy = Policy(on_loss=on_loss, watch=False, **disaster.options)
    with contextlib.ExitStack() as stack:
        plain = {name: stack.enter_context(unguarded(network, remote, policy)) for name in calls}
        safe = {name: connect(policy).sock for name in calls}
        names = {name: (sock.getsockname(), sock.getpeername()) for name, sock in safe.items()}
        disaster.happens(network)
        for sock in (*plain.values(), *safe.values()):
            sock.sendall(disaster.sends)
        for sock in (*plain.values(), *safe.values()):
            over(sock)
        expected = {name: answer(call, plain[name]) for name, call in calls.items()}
    assert {name: answer(call, safe[name]) for name, call in calls.items()} == expected
    assert expected["recv"][1] == disaster.number
    causes = {name: loss_of(sock).cause for name, sock in safe.items()}
    assert causes == dict.fromkeys(calls, disaster.cause)
    for name, guarded in safe.items():
        loss = loss_of(guarded)
        assert (loss.local, loss.peer) == names[name]
        assert (guarded.getsockname(), guarded.getpeername()) == names[name]
        assert (loss.sent, loss.unacknowledged, loss.unread) == (*[len(disaster.sends)] * 2, 0)
        assert loss.lifetime >= QUICK
        assert (guarded.fileno() == -1) is (on_loss == "close")
        # Told once: from now on reads are empty and writes a broken pipe.
        assert answer(guarded.recv, 1) == b""
        assert answer(guarded.send, DATA)[0] is BrokenPipeError
    with network.client.entered():
        assert not kernel.connections()


def test_a_call_that_waits_hears_of_it(network: Network, connect: Connect) -> None:
    disaster = DISASTERS["silence, user_timeout"]
    sock, _ = connect(Policy(watch=False, **disaster.options))
    network.vanish()
    sock.sendall(disaster.sends)
    sock.settimeout(None)
    with pytest.raises(TimeoutError) as caught:
        sock.recv(1)
    assert caught.value.errno == errno.ETIMEDOUT
    assert loss_of(sock).cause is Cause.TIMEOUT
    assert repr(loss_of(sock).error) == repr(caught.value)
    assert sock.fileno() == -1


def test_the_watcher_hears_of_it_where_nobody_calls(network: Network, connect: Connect) -> None:
    disaster = DISASTERS["silence, user_timeout"]
    sock, _ = connect(Policy(watch=True, grace=0.0, **disaster.options))
    network.vanish()
    sock.sendall(disaster.sends)
    kernel.wait_until(lambda: sock.loss is not None, "the watcher notices")
    assert loss_of(sock).cause is Cause.TIMEOUT
    assert loss_of(sock).unacknowledged == len(disaster.sends)
    assert sock.fileno() >= 0
    with pytest.raises(TimeoutError) as caught:
        sock.recv(1)
    assert caught.value.errno == errno.ETIMEDOUT
    assert sock.fileno() == -1
    assert sock.recv(1) == b""


@pytest.mark.parametrize("call", ["recv", "send"])
def test_a_peer_that_was_restarted_answers_with_rst(
    network: Network, connect: Connect, call: str
) -> None:
    sock, end = connect(Policy(watch=False))
    sock.sendall(b"before")
    assert end.read(6) == b"before"
    network.deafen_the_client()
    end.rst()  # It does not get here.
    network.undeafen_the_client()
    assert kernel.state_of(sock) == "ESTABLISHED"
    sock.sendall(b"after")
    over(sock)
    with pytest.raises(ConnectionResetError):
        CALLS[call](sock)
    loss = loss_of(sock)
    assert loss.cause is Cause.RST
    assert (loss.sent, loss.unacknowledged) == (11, 5)


def test_a_write_that_waits_for_room_says_what_the_peer_has_got(
    network: Network, connect: Connect
) -> None:
    """A sendall that is cut off: what the peer's kernel has acknowledged is there, and no more."""
    sock, end = connect(Policy(watch=False, user_timeout=QUICK))
    sock.sendall(b"x" * 1000)
    kernel.wait_until(lambda: kernel.unread(end.sock) == 1000)
    kernel.wait_until(lambda: kernel.unacknowledged(sock) == 0)
    network.vanish()
    sock.settimeout(None)
    with pytest.raises(TimeoutError) as caught:
        sock.sendall(b"x" * 32_000_000)
    assert caught.value.errno == errno.ETIMEDOUT
    loss = loss_of(sock)
    assert loss.sent is not None
    assert loss.unacknowledged is not None
    assert 1000 < loss.sent < 32_001_000
    assert loss.sent - loss.unacknowledged == kernel.unread(end.sock) == 1000


def test_a_peer_that_comes_back_in_time_is_no_loss(network: Network, connect: Connect) -> None:
    sock, end = connect(Policy(watch=True, grace=0.0, user_timeout=TIMEOUT))
    network.vanish()
    sock.sendall(b"into the dark")
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError) as caught:
        sock.recv(1)
    assert caught.value.errno is None
    assert sock.loss is None
    assert kernel.unacknowledged(sock) == 13
    network.come_back()
    assert end.read(13) == b"into the dark"
    end.say(b"here")
    sock.settimeout(TIMEOUT)
    assert sock.recv(4) == b"here"
    assert sock.loss is None
    sock.close()
    report = report_of(sock)
    assert (report.sent, report.unacknowledged) == (13, 0)  # What was sent again counts once.


def test_a_soft_error_on_a_living_connection_is_no_loss(network: Network, connect: Connect) -> None:
    """With IP_RECVERR the kernel tells of ICMP errors at once, and goes on trying."""
    sock, end = connect(Policy(watch=True, grace=0.0))
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    network.become_unreachable()
    sock.sendall(DATA)
    with pytest.raises(OSError, match="No route to host") as caught:
        sock.recv(1)
    assert caught.value.errno == errno.EHOSTUNREACH
    assert sock.loss is None
    assert kernel.state_of(sock) == "ESTABLISHED"
    network.become_reachable()
    assert end.read(len(DATA)) == DATA
    end.say(b"here")
    # Further ICMP errors may have come meanwhile.
    for _ in range(100):
        with contextlib.suppress(OSError):
            assert sock.recv(4) == b"here"
            break
    assert sock.loss is None


@pytest.mark.parametrize(
    ("mode", "reset"),
    [(Graceful(), False), (Abort(), True), (Drain(timeout=0.1), True)],
    ids=repr,
)
def test_closing_on_a_peer_that_vanished_reports_what_it_never_got(
    network: Network, connect: Connect, mode: Any, reset: bool
) -> None:
    sock, end = connect(Policy(close=mode, watch=False))
    sock.sendall(b"x" * 1000)
    assert end.read(1000)
    kernel.wait_until(lambda: kernel.unacknowledged(sock) == 0)
    network.vanish()
    sock.sendall(b"y" * 300)
    sock.close()
    report = report_of(sock)
    assert sock.loss is None
    assert report.cause is Cause.CLOSED
    assert report.error is None
    assert report.mode == mode
    assert report.reset is reset
    assert (report.sent, report.unacknowledged, report.unread) == (1300, 300, 0)
    assert select.select([end.sock], [], [], 0)[0] == []  # Nothing has got through.


def test_closing_after_a_loss_reports_the_loss(network: Network, connect: Connect) -> None:
    sock, _ = connect(Policy(watch=False, on_loss="keep", user_timeout=QUICK))
    network.vanish()
    sock.sendall(DATA)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    assert sock.close_report is None
    sock.close()
    report, loss = report_of(sock), loss_of(sock)
    assert (report.cause, repr(report.error)) == (Cause.TIMEOUT, repr(loss.error))
    assert (report.sent, report.unacknowledged) == (len(DATA), len(DATA))


def interrupted(names: list[str]) -> None:
    with netns.network() as made, made.client.entered():
        names += [made.client.name, made.service.name]
        assert netns.existing(names) == names
        raise KeyboardInterrupt


@pytest.mark.usefixtures("network")
def test_no_namespace_is_left() -> None:
    names: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(names)
    assert not netns.existing(names)
