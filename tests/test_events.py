"""What is told of a connection: the same test for every driver."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import kernel
import pytest
from drivers import DRIVERS, FOR_LIFE, ON_LOOPS, SYNCHRONOUS, Driver, Line, OnLoop
from kernel import wait_until
from listening import Listener, listening
from loops import LOOPS
from peer import EOF, TIMEOUT, Peer
from tls_peer import NAME, TlsPeer, done

import safesock
import safesock.asyncio
from safesock import Abort, Cause, Drain, Graceful, Linger, Policy, SafeSocket, events
from safesock._kernel import Raw
from safesock.events import Closed, Connected, Connecting, Lost, Released

LONG = 30.0  # A grace within which the watcher does nothing.


def parametrize(drivers: dict[str, Callable[[], Driver]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", list(drivers.values()), ids=list(drivers))


@pytest.fixture
def driver(make: Callable[[], Driver]) -> Iterator[Driver]:
    with make() as one:
        yield one


@pytest.fixture
def told(peer: Peer) -> Iterator[Listener]:
    with listening(peer.address) as listener:
        yield listener


def beginning(driver: Driver) -> list[str]:
    return ["Connecting", "Connected"] if driver.tells_connecting else ["Connected"]


def check(told: Listener, driver: Driver, began: float, records: Any) -> None:
    """What holds for the events of one connection, whatever has become of it."""
    assert len({event.connection for event in told.events}) == 1
    times = [began, *(event.time for event in told.events), time.time()]
    assert times == sorted(times)
    (connected,) = (event for event in told.events if isinstance(event, Connected))
    for event in told.events:
        if not isinstance(event, Connecting):
            assert (event.local, event.peer) == (connected.local, connected.peer)
        if isinstance(event, Lost):
            assert event.loss.connection == event.connection
        if isinstance(event, Closed):
            assert event.report.connection == event.connection
    if driver.has_records:
        loss, report = records
        assert [event.loss for event in told.events if isinstance(event, Lost)] == (
            [] if loss is None else [loss]
        )
        assert [event.report for event in told.events if isinstance(event, Closed)] == [report]


# Its life, by every driver ------------------------------------------------------------------------


@parametrize({**DRIVERS, **FOR_LIFE})
def test_a_connection_that_its_owner_closes(driver: Driver, peer: Peer, told: Listener) -> None:
    began = time.time()
    line = driver.connect(peer.address, Policy(grace=LONG))
    end = peer.accept()
    told.wait_for(Connected)
    assert told.kinds() == beginning(driver)
    assert told.events[-1].local == tuple(end.sock.getpeername())
    line.close()
    told.wait_for(Closed)
    assert told.kinds() == [*beginning(driver), "Closed"]
    closed = told.events[-1]
    assert (closed.report.cause, closed.report.mode) == (Cause.CLOSED, Graceful())
    assert closed.close_wait is None
    check(told, driver, began, driver.has_records and line.records())


@parametrize(DRIVERS)
@pytest.mark.parametrize("on_loss", ["close", "release", "keep"])
def test_a_peer_that_closes(driver: Driver, peer: Peer, told: Listener, on_loss: Any) -> None:
    began = time.time()
    line = driver.connect(peer.address, Policy(on_loss=on_loss, grace=LONG))
    end = peer.accept()
    told.wait_for(Connected)
    end.fin()
    line.read()
    line.close()
    told.wait_for(Closed)
    released = ["Released"] if on_loss == "release" and driver.reads_are_seen else []
    assert told.kinds() == [*beginning(driver), "Lost", *released, "Closed"]
    assert told.wait_for(Lost).loss.cause is Cause.FIN
    closed = told.wait_for(Closed)
    assert closed.report.cause is Cause.FIN
    waited = told.wait_for(Released).close_wait if released else closed.close_wait
    assert waited is not None
    assert 0 <= waited < closed.time - began + 0.01
    assert closed.close_wait is None or not released
    check(told, driver, began, driver.has_records and line.records())


@parametrize(SYNCHRONOUS)
@pytest.mark.parametrize("on_loss", ["close", "release", "keep"])
def test_nobody_reads_and_the_watcher_steps_in(
    driver: Driver, peer: Peer, told: Listener, on_loss: Any
) -> None:
    began = time.time()
    line = driver.connect(peer.address, Policy(on_loss=on_loss, grace=0.05))
    peer.accept().fin()
    keeps = on_loss == "keep"
    if keeps and not driver.reads_are_seen:
        line.read()  # Under enforce it is not looked at.
    else:
        told.wait_for(Lost if keeps else Released)
        assert told.kinds() == [*beginning(driver), "Lost", *([] if keeps else ["Released"])]
        assert told.threads[-1].name == "safesock-events"
    line.read()
    line.close()
    told.wait_for(Closed)
    assert told.kinds() == [*beginning(driver), "Lost", *([] if keeps else ["Released"]), "Closed"]
    if not keeps:
        assert 0.04 <= (told.wait_for(Released).close_wait or 0) < time.time() - began + 0.01
        assert told.wait_for(Closed).close_wait is None
        assert told.wait_for(Released).loss == told.wait_for(Lost).loss
    check(told, driver, began, driver.has_records and line.records())


@parametrize({**DRIVERS, **FOR_LIFE})
def test_a_peer_that_resets(driver: Driver, peer: Peer, told: Listener) -> None:
    line = driver.connect(peer.address, Policy(grace=LONG))
    end = peer.accept()
    told.wait_for(Connected)
    end.rst()
    line.read()
    line.close()
    told.wait_for(Closed)
    # A plain socket's reset is between the kernel and its owner.
    lost = ["Lost"] if driver.reads_are_seen else []
    assert told.kinds() == [*beginning(driver), *lost, "Closed"]
    if lost:
        assert told.wait_for(Lost).loss.cause is Cause.RST
    assert told.wait_for(Closed).close_wait is None


@parametrize(DRIVERS)
@pytest.mark.parametrize("mode", [Drain(0.5), Linger(1), Abort()], ids=repr)
def test_every_close_mode(driver: Driver, peer: Peer, told: Listener, mode: Any) -> None:
    line = driver.connect(peer.address, Policy(mode, grace=LONG))
    end = peer.accept()
    told.wait_for(Connected)
    end.half_close()
    line.read()
    line.close()
    closed = told.wait_for(Closed)
    assert told.kinds() == [*beginning(driver), "Lost", "Closed"]
    assert (closed.report.mode, closed.report.reset) == (mode, mode == Abort())


@parametrize(ON_LOOPS)
def test_what_the_loop_does_is_told_on_the_loop(driver: OnLoop, peer: Peer, told: Listener) -> None:
    line = driver.connect(peer.address, Policy(grace=LONG))
    peer.accept().fin()
    line.read()
    line.close()
    told.wait_for(Closed)
    by_kind = dict(zip(told.kinds(), told.threads, strict=True))
    # The watcher may be the first to see that a connect is done.
    others = {kind for kind, thread in by_kind.items() if thread is not driver.thread}
    assert others <= {"Connected"}


@pytest.mark.parametrize("loop_name", list(LOOPS))
def test_a_transport_that_is_paused_is_released_by_the_watcher(
    loop_name: str, peer: Peer, told: Listener
) -> None:
    async def opened(address: Any, policy: Policy) -> Any:
        reader, writer = await safesock.asyncio.open_connection(*address, policy=policy)
        writer.transport.pause_reading()

        async def end() -> None:
            writer.transport.resume_reading()
            await reader.read()

        return writer.transport, end

    with OnLoop(loop_name, opened) as driver:
        line = driver.connect(peer.address, Policy(grace=0.05))
        peer.accept().fin()
        told.wait_for(Released)
        line.read()
        line.close()
        told.wait_for(Closed)
    assert told.kinds() == ["Connecting", "Connected", "Lost", "Released", "Closed"]


# TLS ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_loss", ["close", "release"])
def test_a_close_notify_is_a_loss(tls: TlsPeer, context: ssl.SSLContext, on_loss: Any) -> None:
    with listening(tls.address) as told:
        end = tls.begin(tls.accept_and_shake)
        policy = Policy(on_loss=on_loss, grace=0.05)
        plain = socket.create_connection(tls.address, TIMEOUT)
        sock = safesock.secure(context, policy).wrap_socket(plain, server_hostname=NAME)
        done(end).close_notify()
        assert sock.recv(1) == b""
        assert told.wait_for(Lost).loss.cause is Cause.FIN
        done(end).fin()
        if on_loss == "release":
            told.wait_for(Released)
        sock.close()
        told.wait_for(Closed)
    released = ["Released"] if on_loss == "release" else []
    assert told.kinds() == ["Connected", "Lost", *released, "Closed"]


@pytest.mark.parametrize("on_loss", ["close", "keep"])
@pytest.mark.parametrize("loop_name", list(LOOPS))
def test_tls_on_a_loop(tls: TlsPeer, context: ssl.SSLContext, loop_name: str, on_loss: Any) -> None:
    async def opened(address: Any, policy: Policy) -> Any:
        connector = safesock.asyncio.Connector(
            address, policy=policy, ssl_context=context, server_hostname=NAME
        )
        reader, writer = await connector.connect()

        async def end() -> None:
            await reader.read()
            assert writer is not None

        return writer.transport, end

    with listening(tls.address) as told, OnLoop(loop_name, opened) as driver:
        end = tls.begin(tls.accept_and_shake)
        line = driver.connect(tls.address, Policy(on_loss=on_loss, grace=LONG))
        done(end).close_notify()
        line.read()
        told.wait_for(Lost)
        line.close()
        told.wait_for(Closed)
    assert told.kinds() == ["Connecting", "Connected", "Lost", "Closed"]
    assert [event.loss.cause for event in told.events if isinstance(event, Lost)] == [Cause.FIN]


# Connects -----------------------------------------------------------------------------------------


def test_a_connect_that_fails_is_told_as_begun(peer: Peer, told: Listener) -> None:
    with peer.refusing(), pytest.raises(ConnectionRefusedError):
        safesock.create_connection(peer.address)
    assert told.kinds() == ["Connecting"]
    assert told.events[0].peer == peer.address
    assert told.events[0].local is None


def test_another_connect_of_the_same_socket_is_another_connection(
    peer: Peer, told: Listener
) -> None:
    with SafeSocket() as sock:
        with peer.refusing(), pytest.raises(ConnectionRefusedError):
            sock.connect(peer.address)
        sock.connect(peer.address)
    assert told.kinds() == ["Connecting", "Connecting", "Connected", "Closed"]
    failed, *made = (event.connection for event in told.events)
    assert failed not in made
    assert len(set(made)) == 1


def test_a_connect_that_is_asked_for_again_is_the_same(peer: Peer, told: Listener) -> None:
    with SafeSocket() as sock, peer.black_hole():
        sock.setblocking(False)
        for _ in range(3):
            assert sock.connect_ex(peer.address) != 0
    assert told.kinds() == ["Connecting"]


def test_a_connect_that_nobody_asks_about_is_told_all_the_same(peer: Peer, told: Listener) -> None:
    with SafeSocket() as sock:
        sock.setblocking(False)
        sock.connect_ex(peer.address)
        assert told.wait_for(Connected).local == sock.getsockname()
        assert told.threads[-1].name == "safesock-events"


def test_a_local_port_is_told(peer: Peer, told: Listener) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local = probe.getsockname()
    safesock.create_connection(peer.address, source_address=local).close()
    assert [event.local for event in told.events] == 3 * [local]


# enforce ------------------------------------------------------------------------------------------


def test_a_connect_that_fails_under_enforce_is_told_as_begun(peer: Peer, told: Listener) -> None:
    with safesock.enforce(), peer.refusing(), pytest.raises(ConnectionRefusedError):
        socket.create_connection(peer.address)
    assert told.kinds() == ["Connecting"]


def test_a_peer_that_is_gone_before_it_can_be_asked_for_is_known(
    peer: Peer, told: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel forgets its address with the connection."""

    def connect(self: socket.socket, address: Any) -> None:
        Raw.connect(self, address)
        peer.accept().rst()
        wait_until(lambda: kernel.state_of(self) == "CLOSE")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with safesock.enforce(), socket.socket() as sock:
        sock.connect(peer.address)
    assert [event.peer for event in told.events] == 3 * [peer.address]


def test_what_only_leaves_out_is_not_told(peer: Peer, told: Listener) -> None:
    with safesock.enforce(only=lambda _: False):
        socket.create_connection(peer.address).close()
    with safesock.enforce(only=lambda _: True):
        socket.create_connection(peer.address).close()
    assert told.kinds() == ["Connected", "Closed"]


def test_tls_of_a_plain_client_under_enforce(tls: TlsPeer, context: ssl.SSLContext) -> None:
    """ssl makes a second object for the descriptor, and detaches the first."""
    with listening(tls.address) as told, safesock.enforce():
        end = tls.begin(tls.accept_and_shake)
        plain = socket.create_connection(tls.address, TIMEOUT)
        with context.wrap_socket(plain, server_hostname=NAME) as sock:
            done(end).close_notify()
            assert sock.recv(1) == b""
            done(end).fin()
            wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT")
    assert told.kinds() == ["Connecting", "Connected", "Lost", "Closed"]
    assert len({event.connection for event in told.events}) == 1


def test_a_nonblocking_connect_under_enforce(peer: Peer, told: Listener) -> None:
    with safesock.enforce(), socket.socket() as sock:
        sock.settimeout(TIMEOUT)  # connect(2) does not block with it, either.
        sock.setblocking(False)
        sock.connect_ex(peer.address)
        told.wait_for(Connected)
    assert told.kinds() == ["Connecting", "Connected", "Closed"], told.events
    assert len({event.connection for event in told.events}) == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_plain_socket_that_is_collected_is_told_as_closed(peer: Peer, told: Listener) -> None:
    with safesock.enforce():
        sock = socket.create_connection(peer.address)
        local = sock.getsockname()
        del sock
        closed = told.wait_for(Closed)
    assert told.kinds() == ["Connecting", "Connected", "Closed"]
    assert closed.local == local
    assert (closed.report.sent, closed.report.unacknowledged, closed.report.unread) == 3 * (None,)


def test_what_a_sweep_ends_is_told_as_released(peer: Peer, told: Listener) -> None:
    sock = Raw()
    sock.connect(peer.address)
    local = sock.getsockname()
    peer.accept().half_close()
    wait_until(lambda: kernel.state(local, peer.address) == "CLOSE_WAIT")
    with safesock.enforce(sweep=0.1):
        released = told.wait_for(Released)
    sock.close()
    assert (released.local, released.peer, released.loss) == (local, peer.address, None)
    assert released.close_wait is not None
    assert released.close_wait >= 0.1
    assert told.kinds() == ["Released"]


# The collected, and the dropped -----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_socket_that_is_collected_is_told_as_closed_from_another_thread(
    peer: Peer, told: Listener
) -> None:
    sock = safesock.create_connection(peer.address)
    del sock
    assert told.wait_for(Closed).report.cause is Cause.CLOSED
    assert told.kinds() == ["Connecting", "Connected", "Closed"]
    assert told.threads[-1].name == "safesock-events"


def test_one_that_is_given_away_is_told_of_no_more(peer: Peer, told: Listener) -> None:
    with safesock.create_connection(peer.address) as sock:
        fd = sock.detach()
    socket.socket(fileno=fd).close()
    assert told.kinds() == ["Connecting", "Connected"]


def test_wrapped_again_it_is_another(peer: Peer, told: Listener) -> None:
    safesock.wrap(safesock.create_connection(peer.address)).close()
    assert told.kinds() == ["Connecting", "Connected", "Connected", "Closed"]
    first, second = sorted({event.connection for event in told.events})
    assert told.kinds(first) == ["Connecting", "Connected"]
    assert told.kinds(second) == ["Connected", "Closed"]


def test_only_what_happens_from_the_subscription_on_is_told(peer: Peer) -> None:
    with peer.connected() as (sock, end), listening(peer.address) as told:
        end.fin()
        assert sock.recv(1) == b""
        assert told.kinds() == ["Lost", "Closed"]
        assert told.events[0].local == sock.getsockname()


# Values -------------------------------------------------------------------------------------------


def test_events_are_values(peer: Peer, told: Listener) -> None:
    with safesock.create_connection(peer.address, policy=Policy(on_loss="release")) as sock:
        peer.accept().fin()
        assert sock.recv(1) == b""
    assert len(told.events) == 5
    for event in told.events:
        assert pickle.loads(pickle.dumps(event)) == event == copy.copy(event)
        assert f"connection {event.connection} to 127.0.0.1:" in str(event)
        with pytest.raises(dataclasses.FrozenInstanceError):
            event.time = 0


@pytest.mark.parametrize("name", events.__all__)
def test_every_event_says_what_it_is(name: str) -> None:
    kind = getattr(safesock.events, name)
    assert kind.__doc__
    assert dataclasses.is_dataclass(kind)


# Threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_loss", ["close", "release", "keep"])
def test_a_close_that_races_with_the_watcher_keeps_the_order(
    peer: Peer, told: Listener, on_loss: Any
) -> None:
    order = ["Connecting", "Connected", "Lost", "Released", "Closed"]
    count = 60
    for _ in range(count):
        sock = safesock.create_connection(peer.address, policy=Policy(on_loss=on_loss, grace=0.0))
        end = peer.accept()
        closers = [threading.Thread(target=sock.close) for _ in range(2)]
        reader = threading.Thread(target=Line(sock).read)
        reader.start()
        end.fin()
        for thread in closers:
            thread.start()
        for thread in (*closers, reader):
            thread.join(TIMEOUT)
    told.wait_for(Closed, count)
    numbers = {event.connection for event in told.events}
    assert len(numbers) == count
    for number in numbers:
        kinds = told.kinds(number)
        assert kinds == [kind for kind in order if kind in kinds], "each once, and in order"
        assert {"Connecting", "Connected", "Closed"} <= set(kinds)


def test_threads_that_close_a_plain_socket_at_once_take_turns(peer: Peer, told: Listener) -> None:
    """The second one does not close what the first one is about to end by the policy."""
    with safesock.enforce(Policy(close=Drain(TIMEOUT), on_loss="release")):
        sock = socket.create_connection(peer.address)
        end = peer.accept()
        first, second = (threading.Thread(target=sock.close) for _ in range(2))
        first.start()
        assert end.read_to_end() == (b"", EOF)
        kernel.wait_until_blocked(first)
        second.start()
        second.join(0.2)
        assert second.is_alive()
        end.fin()
        for thread in (first, second):
            thread.join(TIMEOUT)
    assert sock.fileno() < 0
    assert told.kinds() == ["Connecting", "Connected", "Closed"]
    assert told.wait_for(Closed).report.reset is False


def test_threads_that_close_plain_sockets_are_told_of_once(peer: Peer, told: Listener) -> None:
    count = 200
    with safesock.enforce():
        for _ in range(count):
            sock = socket.create_connection(peer.address)
            peer.accept()
            closers = [threading.Thread(target=sock.close) for _ in range(2)]
            for thread in closers:
                thread.start()
            for thread in closers:
                thread.join(TIMEOUT)
    assert told.kinds() == count * ["Connecting", "Connected", "Closed"]
