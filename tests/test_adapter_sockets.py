"""What clients are given that take a socket, and the streams for anyio, against a scripted peer."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import kernel
import pytest
from anyio.abc import SocketAttribute
from kernel import wait_until
from peer import EOF, RESET, TIMEOUT, Peer

import safesock
import safesock.adapters
import safesock.adapters.asyncio
from safesock import Abort, Cause, Drain, Graceful, Linger, Policy, SafeSocket
from safesock._resolve import lookup
from safesock.adapters import SocketModule, create_connection, socket_factory
from safesock.adapters.anyio import _Race, connect_tcp
from safesock.asyncio._connect import connect, give_up
from safesock.events import Closed
from safesock.testing import ScriptedPeer

RELEASE = Policy(on_loss="release")
ABORT = Policy(Abort(), on_loss="release")


@pytest.mark.parametrize("module", [safesock.adapters, safesock.adapters.asyncio])
def test_everything_public_is_there_and_says_what_it_is(module: Any) -> None:
    assert all(getattr(module, name).__doc__ for name in module.__all__)


# Sockets ----------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Any], Any]] = {
    "create_connection": lambda policy: create_connection(("127.0.0.1", 1), policy=policy),
    "socket_factory": socket_factory,
    "SocketModule": SocketModule,
    "asyncio.connect": lambda policy: asyncio.run(
        safesock.adapters.asyncio.connect(("127.0.0.1", 1), policy=policy)
    ),
    "anyio.connect_tcp": lambda policy: anyio.run(
        lambda: connect_tcp("127.0.0.1", 1, policy=policy)
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_client_would_poll_a_closed_descriptor(maker: str) -> None:
    with pytest.raises(ValueError, match=r'Policy\(Abort\(\), on_loss="release"\)'):
        MAKERS[maker](Policy(Abort()))
    with pytest.raises(TypeError, match="Policy"):
        MAKERS[maker]("release")


@pytest.mark.parametrize("mode", [Drain(), Linger()])
@pytest.mark.parametrize("maker", ["socket_factory", "asyncio.connect"])
def test_nothing_waits_on_an_event_loop(maker: str, mode: Any) -> None:
    with pytest.raises(ValueError, match="event loop"):
        MAKERS[maker](Policy(mode, on_loss="release"))


def test_a_connected_socket_is_released_by_default(peer: Peer) -> None:
    with create_connection(peer.address, TIMEOUT) as sock:
        peer.accept().goodbye_then_fin(b"bye")
        wait_until(lambda: sock.loss, "the watcher steps in")
        assert sock.policy == RELEASE
        assert sock.gettimeout() == TIMEOUT
        assert sock.recv(10) == b"bye"
        assert sock.recv(10) == b""
        assert sock.fileno() >= 0


def test_a_factory_makes_sockets_for_a_loop(peer: Peer) -> None:
    make = socket_factory(ABORT)
    answer = socket.getaddrinfo(*peer.address, type=socket.SOCK_STREAM)[0]

    async def run() -> None:
        loop = asyncio.get_running_loop()
        sock = make(answer)
        assert sock.gettimeout() == 0
        await loop.sock_connect(sock, answer[4])
        _, writer = await asyncio.open_connection(sock=sock)
        writer.write(b"hello")
        await writer.drain()
        assert await asyncio.to_thread(peer.accept().read, 5) == b"hello"
        writer.close()
        await writer.wait_closed()

    asyncio.run(run())
    assert peer.ends[0].read_to_end() == (b"", RESET)


def test_a_module_is_the_socket_module_but_for_its_sockets(peer: Peer) -> None:
    module = SocketModule(ABORT)
    assert module.getaddrinfo is socket.getaddrinfo
    assert module.AF_INET is socket.AF_INET
    with module.socket(module.AF_INET, module.SOCK_STREAM) as sock:
        sock.connect(peer.address)
        assert isinstance(sock, SafeSocket)
    assert peer.accept().read_to_end() == (b"", RESET)
    with pytest.raises(AttributeError):
        _ = module.no_such_thing


@pytest.mark.usefixtures("nothing_is_left_open")
def test_a_connect_that_is_cancelled_leaves_nothing(peer: Peer) -> None:
    async def run() -> None:
        with peer.black_hole():
            task = asyncio.create_task(safesock.adapters.asyncio.connect(peer.address))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(task, 0.1)

    asyncio.run(run())


def test_a_coroutine_gives_a_connected_socket_from_a_local_address(peer: Peer) -> None:
    async def run() -> None:
        sock = await safesock.adapters.asyncio.connect(
            peer.address, local_address=("127.0.0.1", 0), policy=ABORT
        )
        with sock:
            assert sock.gettimeout() == 0
            assert sock.getpeername() == peer.address

    asyncio.run(run())
    assert peer.accept().read_to_end() == (b"", RESET)


# anyio ------------------------------------------------------------------------------------------


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest, peer: Peer) -> Iterator[Any]:
    """Runs a coroutine function, after which no descriptor is left but the peer's."""
    gc.collect()
    before = kernel.descriptors()
    yield lambda function: anyio.run(function, backend=request.param)
    gc.collect()
    peer.close()
    assert kernel.left_open(before) == []


in_thread = anyio.to_thread.run_sync


def test_a_stream_is_as_anyios_own_and_ends_by_its_policy(peer: Peer, run: Any) -> None:
    async def main() -> None:
        async with await connect_tcp(*peer.address, policy=ABORT) as stream:
            end = peer.accept()
            await stream.send(b"hello")
            assert await in_thread(end.read, 5) == b"hello"
            end.say(b"hello yourself")
            assert await stream.receive(5) == b"hello"
            assert await stream.receive() == b" yourself"
            sock = stream.extra(SocketAttribute.raw_socket)
            assert isinstance(sock, SafeSocket)
            assert stream.extra(SocketAttribute.remote_port) == peer.address[1]
            with pytest.raises(ValueError, match="positive"):
                await stream.receive(0)
        await stream.aclose()
        assert await in_thread(end.read_to_end) == (b"", RESET)
        assert sock.close_report is not None
        assert sock.close_report.reset
        for call in (stream.receive, lambda: stream.send(b"x")):
            with pytest.raises(anyio.ClosedResourceError):
                await call()

    run(main)


def test_a_stream_whose_peer_closes_reads_on_and_then_ends(peer: Peer, run: Any) -> None:
    async def main() -> None:
        async with await connect_tcp(*peer.address) as stream:
            sock: Any = stream.extra(SocketAttribute.raw_socket)
            peer.accept().goodbye_then_fin(b"bye")
            with anyio.fail_after(TIMEOUT):
                while sock.loss is None:  # The watcher's, as nobody reads.
                    await anyio.sleep(0.01)
            assert kernel.state_of(sock) != "CLOSE_WAIT"
            assert await stream.receive() == b"bye"
            await stream.send(b"seems to succeed")
            for _ in range(2):
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
            with pytest.raises(anyio.BrokenResourceError):
                await stream.send(b"does not")
            assert sock.loss.cause is Cause.FIN

    run(main)


def test_a_reset_breaks_the_stream(peer: Peer, run: Any) -> None:
    async def main() -> None:
        async with await connect_tcp(*peer.address) as stream:
            peer.accept().rst()
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await stream.receive()
            assert isinstance(caught.value.__cause__, ConnectionResetError)
            sock: Any = stream.extra(SocketAttribute.raw_socket)
            assert sock.loss.cause is Cause.RST

    run(main)


def test_closing_wakes_who_waits_and_one_reads_at_a_time(peer: Peer, run: Any) -> None:
    async def main() -> None:
        stream = await connect_tcp(*peer.address)
        told = []

        async def read() -> None:
            try:
                await stream.receive()
            except anyio.ClosedResourceError:
                told.append("closed")

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await stream.receive()
            await stream.aclose()
        assert told == ["closed"]

    run(main)


def test_a_cancelled_receive_loses_nothing(peer: Peer, run: Any) -> None:
    async def main() -> None:
        async with await connect_tcp(*peer.address) as stream:
            with anyio.move_on_after(0.01):
                await stream.receive()
            peer.accept().say(b"hello")
            assert await stream.receive() == b"hello"

    run(main)


def test_what_is_sent_waits_for_the_peer_and_arrives(peer: Peer, run: Any) -> None:
    data = bytes(4_000_000)

    async def main() -> None:
        async with await connect_tcp(*peer.address) as stream:
            end = peer.accept()
            async with anyio.create_task_group() as group:
                group.start_soon(stream.send, data)
                assert await in_thread(end.read, len(data)) == data
            await stream.send_eof()
            assert await in_thread(end.read_to_end) == (b"", EOF)
            end.say(b"still there")
            assert await stream.receive() == b"still there"

    run(main)


def test_a_close_that_waits_leaves_the_loop_alone(peer: Peer, run: Any) -> None:
    async def main() -> None:
        stream = await connect_tcp(*peer.address, policy=Policy(Drain(TIMEOUT), on_loss="release"))
        end = peer.accept()
        async with anyio.create_task_group() as group:
            group.start_soon(stream.aclose)
            # It waits for the peer's FIN, which comes from this task.
            assert await in_thread(end.read_to_end) == (b"", EOF)
            end.fin()
        sock: Any = stream.extra(SocketAttribute.raw_socket)
        assert not sock.close_report.reset

    run(main)


def test_a_refused_connect_is_an_os_error(peer: Peer, run: Any) -> None:
    async def main() -> None:
        with peer.refusing(), pytest.raises(OSError, match="attempts failed") as caught:
            await connect_tcp(*peer.address)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)

    run(main)


def test_a_connect_that_is_given_up_leaves_nothing(peer: Peer, run: Any) -> None:
    async def main() -> None:
        with peer.black_hole(), pytest.raises(TimeoutError), anyio.fail_after(0.1):
            await connect_tcp(*peer.address)

    run(main)


THIS_HOST: Any = None  # It resolves to ::1 and 127.0.0.1.


def test_a_name_is_tried_by_all_its_addresses(peer: Peer, run: Any) -> None:
    async def main() -> None:
        async with await connect_tcp(THIS_HOST, peer.address[1]) as stream:
            assert stream.extra(SocketAttribute.remote_address) == peer.address

    run(main)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_addresses_need_not_be_strings_and_a_local_port_can_be_fixed(peer: Peer, run: Any) -> None:
    (host, port), local_port = peer.address, free_port()

    async def main() -> None:
        for where in (ipaddress.ip_address(host), THIS_HOST):
            stream = await connect_tcp(
                where, port, local_host=ipaddress.ip_address(host), local_port=local_port
            )
            async with stream:
                assert stream.extra(SocketAttribute.local_address) == (host, local_port)
                peer.accept().fin()
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
        async with await connect_tcp(host, port, local_host=host) as stream:
            assert stream.extra(SocketAttribute.remote_address) == peer.address

    run(main)


def test_over_one_local_port_there_is_no_race(run: Any, peer: Peer) -> None:
    (host, port), local_port = peer.address, free_port()

    async def main() -> None:
        (made, sockaddr), *_ = lookup(host, port)
        with Peer() as silent, silent.black_hole(), anyio.move_on_after(0.2) as scope:
            found = [(made, silent.address), (made, sockaddr)]
            race = _Race(found, (host, local_port), RELEASE)
            (await race.run(0.01)).close()
        assert scope.cancelled_caught  # It still waits for the first.

    run(main)


def test_a_port_is_not_taken_modulo(peer: Peer, run: Any) -> None:
    async def main() -> None:
        with pytest.raises(OverflowError, match="65535"):
            await connect_tcp(peer.address[0], peer.address[1] + 0x10000)

    run(main)


def test_an_address_that_does_not_answer_is_not_waited_for(peer: Peer, run: Any) -> None:
    async def main() -> None:
        with Peer(socket.AF_INET6, port=peer.address[1]) as silent, silent.black_hole():
            stream = await connect_tcp(THIS_HOST, peer.address[1], happy_eyeballs_delay=0.01)
            async with stream:
                assert stream.extra(SocketAttribute.remote_address) == peer.address

    run(main)


def test_of_two_that_are_made_at_once_one_is_closed(peer: Peer, run: Any) -> None:
    async def main() -> None:
        race = _Race([], None, RELEASE)
        (made, sockaddr), *_ = lookup(*peer.address)
        for _ in range(2):  # The one that is made first cannot always stop the other in time.
            await race._try(made, sockaddr, anyio.Event(), anyio.CancelScope())
        first, second = peer.accept(), peer.accept()
        assert await in_thread(second.read_to_end) == (b"", EOF)
        sock = await race.run(0)
        assert sock.getsockname() == first.sock.getpeername()
        sock.close()

    run(main)


def test_what_is_given_up_as_it_is_made_does_not_hold_up_the_loop(peer: Peer, run: Any) -> None:
    policy = Policy(Drain(1.0), on_loss="release")
    (made, sockaddr), *_ = lookup(*peer.address)
    told: list[Any] = []

    async def given_up(_: Any) -> None:
        peer.accept()
        raise TimeoutError

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await connect(made, sockaddr, None, policy, writable=given_up)
        race = _Race([], None, policy)
        for _ in range(2):
            await race._try(made, sockaddr, anyio.Event(), anyio.CancelScope())
        give_up(await race.run(0))

    with safesock.subscribe(told.append):
        run(main)
        wait_until(lambda: len(ended(told)) == 3, "all are told of")
    # A Drain would have waited for the peer, on the loop.
    assert [one.report.mode for one in ended(told)] == [Graceful()] * 3


def ended(told: list[Any]) -> list[Any]:
    return [one for one in told if isinstance(one, Closed)]


def test_tls_is_anyios_own_above_the_stream(certificates: Any, run: Any) -> None:
    async def main() -> None:
        with ScriptedPeer(tls=certificates.server(), timeout=TIMEOUT) as peer:
            stream = await connect_tcp(
                *peer.address, ssl_context=certificates.client(), policy=ABORT
            )
            end = await in_thread(peer.accept)
            await stream.send(b"hello")
            assert await in_thread(end.read, 5) == b"hello"
            sock = stream.extra(SocketAttribute.raw_socket)
            await anyio.aclose_forcefully(stream)
            assert sock.close_report.reset

    run(main)


def test_a_certificate_that_does_not_verify_leaves_nothing(certificates: Any, run: Any) -> None:
    async def main() -> None:
        with (
            ScriptedPeer(tls=certificates.server(), timeout=TIMEOUT) as peer,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            await connect_tcp(*peer.address, tls=True)

    run(main)
