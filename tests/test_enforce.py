"""`enforce`: other people's plain sockets leave no CLOSE_WAIT, and tell what they told."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc
import kernel
import pytest
import trio
from kernel import wait_until
from peer import EOF, RESET, Peer
from tls_client import (
    fin_only,
    goodbye_and_fin,
    goodbye_notify_and_fin,
    half_a_record_and_fin,
    notify_and_fin,
)
from tls_peer import TlsEnd, TlsPeer, done

from safesock import Abort, Graceful, Policy, Report, SafeSocket, enforce

RELEASE = Policy(on_loss="release", grace=0.05)


def state(sock: socket.socket) -> str | None:
    return kernel.state_of(sock)


def wait_for_the_end(sock: socket.socket) -> None:
    wait_until(lambda: state(sock) not in ("ESTABLISHED", "CLOSE_WAIT"))


def plain() -> dict[str, Any]:
    return dict(socket.socket.__dict__)


def blocking(address: Any) -> socket.socket:
    return socket.create_connection(address)


def by_connect_ex(address: Any) -> socket.socket:
    sock = socket.socket()
    assert sock.connect_ex(address) == 0
    return sock


def by_so_error(address: Any) -> socket.socket:
    """As asyncio and trio connect."""
    sock = socket.socket()
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect(address)
    select.select([], [sock], [], 20)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    return sock


def never_asked(address: Any) -> socket.socket:
    """Nobody asks whether it is connected."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(address)
    select.select([], [sock], [], 20)
    return sock


def derived(address: Any) -> socket.socket:
    class Own(socket.socket):
        pass

    sock = Own()
    sock.connect(address)
    return sock


def moved(address: Any) -> socket.socket:
    """As ssl does it: a second object for the descriptor, and then the first is detached."""
    first = socket.create_connection(address)
    second = socket.socket(fileno=first.fileno())
    first.detach()
    return second


WAYS: list[Callable[[Any], socket.socket]] = [
    blocking,
    by_connect_ex,
    by_so_error,
    never_asked,
    derived,
    moved,
]


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_whose_peer_closes_is_ended_and_tells_what_it_told(
    peer: Peer, way: Callable[[Any], socket.socket]
) -> None:
    with enforce(RELEASE) as enforcement, way(peer.address) as sock:
        end = peer.accept()
        kind, shown = type(sock), repr(sock)
        assert kind.recv is socket.SocketType.recv  # C's own, at its speed.
        end.say(b"bye")
        fd = sock.fileno()
        end.half_close()
        assert end.read_to_end() == (b"", EOF)
        wait_for_the_end(sock)
        assert sock.fileno() == fd
        assert isinstance(sock, kind)
        assert repr(sock) == shown
        assert sock.getpeername() == peer.address
        assert select.select([sock], [], [], 20)[0]
        assert sock.recv(100) == b"bye"
        assert sock.recv(100) == b""
        assert sock.send(b"seems to succeed") == 16
        with pytest.raises(BrokenPipeError):
            sock.send(b"and fails")
        wait_until(lambda: enforcement.report() == Report(1, 1, 0, 0))


def test_an_abort_is_a_reset(peer: Peer) -> None:
    with (
        enforce(Policy(Abort(), on_loss="release", grace=0.05)) as enforcement,
        socket.create_connection(peer.address) as sock,
    ):
        end = peer.accept()
        end.half_close()
        assert end.read_to_end() == (b"", RESET)
        wait_until(lambda: enforcement.report().aborted == 1)
        assert sock.recv(1) == b""


def test_within_the_grace_its_owner_is_left_alone(peer: Peer) -> None:
    with (
        enforce(Policy(on_loss="release", grace=3600)) as enforcement,
        socket.create_connection(peer.address) as sock,
    ):
        end = peer.accept()
        end.half_close()
        wait_until(lambda: state(sock) == "CLOSE_WAIT")
        assert type(sock) is socket.socket
        sock.sendall(b"still")
        assert end.read(5) == b"still"
    assert enforcement.report().released == 0


def test_what_is_not_ours_is_left_alone(peer: Peer) -> None:
    with enforce(RELEASE) as enforcement:
        left, right = socket.socketpair()
        with left, right:
            pass
        with SafeSocket(policy=Policy(Graceful())) as sock:
            sock.connect(peer.address)
            peer.accept().close()
        with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            datagrams.connect(peer.address)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with SafeSocket() as client:
                client.connect(listener.getsockname())
                accepted, _ = listener.accept()
            with accepted:
                wait_until(lambda: state(accepted) == "CLOSE_WAIT")
                assert type(accepted) is socket.socket
        assert enforcement.report().seen == 0


def test_only_some_peers(peer: Peer) -> None:
    with (
        Peer() as other,
        enforce(RELEASE, only=lambda address: address == peer.address) as enforcement,
        socket.create_connection(peer.address) as ours,
        socket.create_connection(other.address) as theirs,
    ):
        for one in (peer, other):
            one.accept().half_close()
        wait_for_the_end(ours)
        assert state(theirs) == "CLOSE_WAIT"
        assert enforcement.report().seen == 1


def test_they_nest_and_all_is_restored(peer: Peer) -> None:
    before = plain()
    outer = enforce(RELEASE)
    inner = enforce(Policy(Abort(), on_loss="release", grace=0.05))
    assert plain() != before
    with socket.create_connection(peer.address):
        assert peer.accept() is not None
    assert (outer.report().seen, inner.report().seen) == (0, 1)
    inner.remove()
    inner.remove()
    with socket.create_connection(peer.address):
        peer.accept().close()
    assert outer.report().seen == 1
    outer.remove()
    assert plain() == before


def test_a_connection_that_was_made_before_its_removal_is_left_alone(peer: Peer) -> None:
    with enforce(RELEASE):
        sock = socket.create_connection(peer.address)
    with sock, enforce(RELEASE), socket.create_connection(peer.address) as later:
        peer.accept().half_close()
        peer.accept().half_close()
        wait_for_the_end(later)
        assert state(sock) == "CLOSE_WAIT"


def test_a_forked_child_has_the_connection_when_its_parent_closes(peer: Peer) -> None:
    with enforce(RELEASE):
        sock = socket.create_connection(peer.address)
        end = peer.accept()
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(write)
            os.read(read, 1)
            sock.sendall(b"from the child")
            os._exit(0)
        os.close(read)
        sock.close()
        os.close(write)
        assert end.read_to_end() == (b"from the child", EOF)
        os.waitpid(child, 0)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_coroutines_read_what_is_left_and_their_first_send_seems_to_succeed(
    peer: Peer, backend: str
) -> None:
    async def main() -> None:
        async with await anyio.connect_tcp(*peer.address) as stream:
            end = peer.accept()
            sock: Any = stream.extra(anyio.abc.SocketAttribute.raw_socket)
            end.say(b"bye")
            end.half_close()
            # The loop stands still meanwhile, as with a program that computes.
            assert end.read_to_end() == (b"", EOF)
            wait_for_the_end(getattr(sock, "_sock", sock))
            assert await stream.receive() == b"bye"
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            await stream.send(b"seems to succeed")

    with enforce(RELEASE):
        anyio.run(main, backend=backend)


def test_trio_is_as_it_was_afterwards(peer: Peer) -> None:
    def helper() -> Any:
        return trio._socket._SocketType.__dict__["_nonblocking_helper"]

    before = helper()
    with enforce(RELEASE), socket.create_connection(peer.address) as sock:
        peer.accept().half_close()
        wait_for_the_end(sock)
        wait_until(lambda: helper() is not before)
    assert helper() is before


@pytest.mark.parametrize("order", [("read", "write"), ("write", "read")], ids="-".join)
@pytest.mark.parametrize(
    "act",
    [notify_and_fin, fin_only, goodbye_and_fin, goodbye_notify_and_fin, half_a_record_and_fin],
)
def test_tls_tells_what_it_tells_without(
    tls: TlsPeer,
    context23: ssl.SSLContext,
    act: Callable[[TlsEnd], None],
    order: tuple[str, ...],
) -> None:
    def told(wait: Callable[[socket.socket], object]) -> list[object]:
        future = tls.begin(tls.accept_and_shake)
        plain_socket = socket.create_connection(tls.address)
        with context23.wrap_socket(plain_socket, server_hostname="localhost") as sock:
            act(done(future))
            wait(sock)
            return [_told(sock, use) for use in order for _ in range(3 if use == "read" else 1)]

    without = told(lambda sock: wait_until(lambda: state(sock) == "CLOSE_WAIT"))
    with enforce(RELEASE) as enforcement:
        assert told(wait_for_the_end) == without
        wait_until(lambda: enforcement.report().released == 1)


def _told(sock: socket.socket, use: str) -> object:
    try:
        return sock.recv(100) if use == "read" else sock.send(b"x")
    except OSError as error:
        return type(error)


def test_a_function_that_raises_leaves_the_connection_alone(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", complaints.append)

    def only(address: Any) -> bool:
        raise LookupError(address)

    with enforce(RELEASE, only=only) as enforcement:
        with socket.create_connection(peer.address) as sock:
            assert type(sock) is socket.socket
        assert enforcement.report().seen == 0
    assert [type(one.exc_value) for one in complaints] == [LookupError]
    assert "only" in repr(complaints[0].object)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"policy": "abort"}, TypeError),
        ({"only": "127.0.0.1"}, TypeError),
        ({"sweep": 0}, ValueError),
        ({"sweep": "often"}, TypeError),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_and_nothing_is_replaced(
    options: dict[str, Any], kind: type[Exception]
) -> None:
    before = plain()
    with pytest.raises(kind):
        enforce(**options)
    assert plain() == before
