"""One fixed local port between two hosts: again and again, whoever closes first."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import kernel
import pytest
import tenacity
from kernel import wait_until
from netns import CLIENT, SERVICE, Network
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd

import safesock
from safesock import (
    Abort,
    Connector,
    LocalPortBusyError,
    Policy,
    Reconnect,
    ReconnectError,
    SafeSocket,
)

PORT = 40000
LOCAL = (CLIENT, PORT)
QUICK = 0.3
ONCE = Reconnect(attempts=1, deadline=TIMEOUT)

pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


@pytest.fixture(scope="module", autouse=True)
def the_watcher_runs() -> None:
    """Its descriptors are opened once and for all: they are none that a test leaves."""
    with Peer() as one:
        safesock.create_connection(one.address).close()


@pytest.fixture
def remote(network: Network) -> Iterator[Peer]:
    """The peer on the other host."""
    with network.service.entered():
        peer = Peer(host=SERVICE)
    with peer:
        yield peer


def set_timestamps(network: Network, value: int) -> None:
    network.client.sysctl("ipv4.tcp_timestamps", value)
    network.service.sysctl("ipv4.tcp_timestamps", value)


campaign = pytest.mark.campaign
both_timestamps = pytest.mark.parametrize("timestamps", [1, 0])


def connector_to(remote: Peer, **options: Any) -> Connector:
    chosen: dict[str, Any] = {"local_address": LOCAL, "reconnect": ONCE} | options
    return Connector(remote.address, **chosen)


def states(network: Network) -> list[str]:
    """Of all that the client's host knows."""
    with network.client.entered():
        return sorted(kernel.connections().values())


def state_of_ours(network: Network, remote: Peer) -> str | None:
    with network.client.entered():
        return kernel.state(LOCAL, remote.address)


def wait_for_ours(network: Network, remote: Peer, *wanted: str | None) -> None:
    wait_until(lambda: state_of_ours(network, remote) in wanted, f"{wanted}")


def works(sock: SafeSocket, end: PeerEnd) -> None:
    """It is the connection between these two, and from that port."""
    assert sock.getsockname() == LOCAL
    assert end.sock.getpeername() == LOCAL
    sock.settimeout(TIMEOUT)
    sock.sendall(b"question")
    assert end.read(8) == b"question"
    end.say(b"answer")
    assert sock.recv(6) == b"answer"


@contextlib.contextmanager
def dialling(network: Network, connector: Connector) -> Iterator[Future[SafeSocket]]:
    """`connect`, in a thread of its own."""

    def dial() -> SafeSocket:
        with network.client.entered():
            return connector.connect()

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(dial)
        finally:
            connector.close()


# Many times in a row -----------------------------------------------------------------------------


def peer_closes(end: PeerEnd) -> None:
    end.fin()


def peer_resets(end: PeerEnd) -> None:
    end.rst()


def peer_answers_fin(end: PeerEnd) -> None:
    assert end.read_to_end() == (b"", EOF)
    end.fin()


def peer_is_reset(end: PeerEnd) -> None:
    assert end.read_to_end() == (b"", RESET)
    end.fin()


def reads_the_end(sock: SafeSocket) -> None:
    assert sock.recv(1) == b""
    assert sock.fileno() == -1


def is_reset(sock: SafeSocket) -> None:
    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    assert sock.fileno() == -1


def does_not_look(sock: SafeSocket) -> None:
    wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT", "the FIN arrives")


def leaves_it_open(sock: SafeSocket) -> None:
    assert kernel.state_of(sock) == "ESTABLISHED"


def closes(sock: SafeSocket) -> None:
    sock.close()


class Ending(NamedTuple):
    peer: Callable[[PeerEnd], None]
    client: Callable[[SafeSocket], None]
    options: dict[str, Any]
    left: set[str] = set()


NO_WATCH = Policy(watch=False)
ENDINGS = {
    "peer, FIN": Ending(peer_closes, reads_the_end, {}),
    "peer, FIN, nobody looks": Ending(peer_closes, does_not_look, {"policy": NO_WATCH}),
    "peer, RST": Ending(peer_resets, is_reset, {}),
    "client, FIN": Ending(peer_answers_fin, closes, {}, {"TIME_WAIT"}),
    "client, FIN by connect": Ending(peer_answers_fin, leaves_it_open, {}, {"TIME_WAIT"}),
    "client, RST": Ending(peer_is_reset, closes, {"policy": Policy(Abort())}),
    "client, RST by connect": Ending(peer_is_reset, leaves_it_open, {"policy": Policy(Abort())}),
    "client, abort_previous": Ending(peer_is_reset, leaves_it_open, {"abort_previous": True}),
}
# Without timestamps TIME_WAIT holds the port for a minute: see below.
CASES = [
    (ending, timestamps)
    for ending in ENDINGS
    for timestamps in (1, 0)
    if timestamps or "TIME_WAIT" not in ENDINGS[ending].left
]


def answer_turns(remote: Peer, turns: int, act: Callable[[PeerEnd], None]) -> list[int]:
    """The other host, in a thread: what came in each turn."""
    heard = []
    for turn in range(turns):
        end = remote.accept()
        assert end.sock.getpeername() == LOCAL
        heard.append(int(end.read(4)))
        end.say(b".")  # A connection that is reset too early would not be heard of here.
        if turn + 1 < turns:
            act(end)
    return heard


def calls(connector: Connector) -> Iterator[SafeSocket]:
    while True:
        yield connector.connect()


@pytest.mark.parametrize("turns", [20, pytest.param(200, marks=campaign)])
@pytest.mark.parametrize("drive", [calls, pytest.param(iter, marks=campaign)])
@pytest.mark.parametrize(("name", "timestamps"), CASES)
def test_the_same_port_again_and_again(
    network: Network,
    remote: Peer,
    name: str,
    timestamps: int,
    turns: int,
    drive: Callable[[Connector], Iterator[SafeSocket]],
) -> None:
    """Each time at the first attempt. The last connection is ended by the connector's close."""
    set_timestamps(network, timestamps)
    ending = ENDINGS[name]
    with ThreadPoolExecutor(1) as pool, network.client.entered():
        heard = pool.submit(answer_turns, remote, turns, ending.peer)
        with connector_to(remote, **ending.options) as connector:
            for turn, sock in zip(range(turns), drive(connector), strict=False):
                connector.confirm()
                sock.settimeout(TIMEOUT)
                sock.sendall(b"%04d" % turn)
                assert sock.recv(1) == b"."
                if turn + 1 < turns:
                    ending.client(sock)
                else:
                    assert heard.result(TIMEOUT) == list(range(turns))
                    remote.ends[-1].rst()  # What is left is of those before.
                    is_reset(sock)
        assert set(states(network)) <= ending.left


@both_timestamps
@pytest.mark.parametrize("name", ["peer, FIN", "peer, RST"])
@pytest.mark.parametrize("turns", [20, pytest.param(200, marks=campaign)])
def test_the_socket_for_life_keeps_its_port(
    network: Network, remote: Peer, name: str, timestamps: int, turns: int
) -> None:
    set_timestamps(network, timestamps)
    ending = ENDINGS[name]
    with ThreadPoolExecutor(1) as pool, network.client.entered():
        heard = pool.submit(answer_turns, remote, turns, ending.peer)
        connector = connector_to(remote)
        with connector.socket() as sock:
            sock.settimeout(TIMEOUT)
            for turn in range(turns):
                sock.sendall(b"%04d" % turn)
                assert sock.recv(1) == b"."
                connector.confirm()
                assert sock.getsockname() == LOCAL
                if turn + 1 < turns:
                    ending.client(sock)
            assert heard.result(TIMEOUT) == list(range(turns))
            remote.ends[-1].rst()
            is_reset(sock)
        assert states(network) == []


# TIME_WAIT ---------------------------------------------------------------------------------------


def closes_first(network: Network, remote: Peer, connector: Connector) -> None:
    with network.client.entered():
        sock = connector.connect()
        local = sock.getsockname()
        connector.confirm()
        end = remote.accept()
        sock.close()
        assert end.read_to_end() == (b"", EOF)
        end.fin()
        wait_until(lambda: kernel.state(local, remote.address) == "TIME_WAIT", "TIME_WAIT")


def busy(error: BaseException, *names: str) -> LocalPortBusyError:
    """connect(2) was refused, for a connection of nobody's that is in one of these states."""
    assert isinstance(error, LocalPortBusyError)
    assert (error.call, error.errno) == ("connect", errno.EADDRNOTAVAIL)
    (holder,) = error.holders
    assert holder.state in names
    assert (holder.local[1], holder.pid, holder.descriptor) == (PORT, None, None)
    assert error.passes
    assert holder.state in str(error)
    return error


def test_without_timestamps_time_wait_ends_it_at_once_where_the_time_is_too_short(
    network: Network, remote: Peer
) -> None:
    set_timestamps(network, 0)
    reconnect = Reconnect(attempts=2, deadline=TIMEOUT, wait=tenacity.wait_none())
    connector = connector_to(remote, reconnect=reconnect)
    closes_first(network, remote, connector)
    with dialling(network, connector) as dialled, pytest.raises(ReconnectError) as caught:
        dialled.result(TIMEOUT)
    (attempt,) = caught.value.attempts
    error = busy(attempt, "TIME_WAIT")
    assert error.seconds_left is not None
    # Had it been waited for up to the deadline, there would be less.
    assert 60 - TIMEOUT < error.seconds_left <= 60


@campaign
def test_time_wait_is_waited_for_where_there_is_time(network: Network, remote: Peer) -> None:
    """In one attempt, as nothing is sent meanwhile. It is bind that is refused where SO_REUSEADDR
    is off, else connect."""
    set_timestamps(network, 0)
    reconnect = Reconnect(attempts=1, deadline=100)
    by_connect = connector_to(remote, reconnect=reconnect)
    by_bind = connector_to(
        remote,
        reconnect=reconnect,
        local_address=(CLIENT, PORT + 1),
        policy=Policy(reuse_address=False),
    )
    connectors = (by_connect, by_bind)
    for connector in connectors:
        closes_first(network, remote, connector)
    began = time.monotonic()
    with dialling(network, by_connect) as one, dialling(network, by_bind) as other:
        ports = {one.result(100).getsockname()[1], other.result(100).getsockname()[1]}
        assert ports == {PORT, PORT + 1}
        assert time.monotonic() - began > 30


@both_timestamps
def test_a_connection_is_reset_only_when_its_port_is_needed_again(
    network: Network, remote: Peer, timestamps: int
) -> None:
    set_timestamps(network, timestamps)
    with connector_to(remote, abort_previous=True) as connector, network.client.entered():
        for _ in range(3):
            sock = connector.connect()
            connector.confirm()
            works(sock, remote.accept())
        connector.close()
    assert [end.read_to_end()[1] for end in remote.ends] == [RESET, RESET, EOF]


@campaign
def test_an_orphan_in_fin_wait2_is_waited_for(network: Network, remote: Peer) -> None:
    """The peer does not close its side: the kernel gives up after net.ipv4.tcp_fin_timeout."""
    set_timestamps(network, 0)
    network.client.sysctl("ipv4.tcp_fin_timeout", 3)
    with connector_to(remote) as connector, network.client.entered():
        sock = connector.connect()
        connector.confirm()
        end = remote.accept()
        sock.close()
        wait_for_ours(network, remote, "FIN_WAIT2")
        sock = connector.connect()
        works(sock, remote.accept())
        # Our end was forgotten, theirs was not: the new SYN has ended it.
        assert end.read_to_end() == (b"", EOF)


# A RST that was lost -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by_connect", "timestamps"),
    [
        (False, 1),
        (False, 0),
        pytest.param(True, 1, marks=campaign),
        pytest.param(True, 0, marks=campaign),
    ],
)
def test_a_peer_that_has_not_heard_of_the_end_is_connected_to_again(
    network: Network, remote: Peer, timestamps: int, by_connect: bool
) -> None:
    """Its end of the old connection is still ESTABLISHED. It answers the SYN with a challenge ACK
    (RFC 5961), for which it gets the RST that it has missed; the next SYN gets through."""
    set_timestamps(network, timestamps)
    options: dict[str, Any] = {"abort_previous": True}
    if not by_connect:
        options = {"policy": Policy(Abort())}
    with connector_to(remote, **options) as connector, network.client.entered():
        sock = connector.connect()
        connector.confirm()
        old = remote.accept()
        works(sock, old)
        network.vanish()
        if by_connect:
            with dialling(network, connector) as dialled:
                wait_for_ours(network, remote, "SYN_SENT")
                network.come_back()
                assert kernel.state_of(old.sock) == "ESTABLISHED"
                works(dialled.result(TIMEOUT), remote.accept())
        else:
            sock.close()
            wait_for_ours(network, remote, None)
            network.come_back()
            assert kernel.state_of(old.sock) == "ESTABLISHED"
            with connector.connect() as sock:
                works(sock, remote.accept())
        assert old.read_to_end() == (b"", RESET)


# The link goes down, and comes up ----------------------------------------------------------------


class Outage(NamedTuple):
    begins: Callable[[Network], None]
    ends: Callable[[Network], None]
    errors: set[int]


OUTAGES = {
    "the client's link": Outage(
        Network.take_the_link_down,
        Network.bring_the_link_up,
        {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT},
    ),
    "the service's link": Outage(
        Network.pull_the_cable, Network.plug_the_cable_in, {errno.ETIMEDOUT}
    ),
}


class Patience:
    """Waits between attempts, a tenacity strategy that knows what has happened so far."""

    def __init__(self, after: int, then: Callable[[], None]) -> None:
        self.errors: list[BaseException | None] = []
        self._after, self._then = after, then

    def __call__(self, state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        self.errors.append(state.outcome.exception())
        if len(self.errors) == self._after:
            self._then()
        return 0.05


@pytest.mark.parametrize(
    ("name", "timestamps"),
    [
        ("the client's link", 1),
        pytest.param("the client's link", 0, marks=campaign),
        pytest.param("the service's link", 1, marks=campaign),
        pytest.param("the service's link", 0, marks=campaign),
    ],
)
def test_the_link_goes_down_while_connected(
    network: Network, remote: Peer, name: str, timestamps: int
) -> None:
    set_timestamps(network, timestamps)
    outage = OUTAGES[name]
    patience = Patience(3, lambda: outage.ends(network))
    with (
        connector_to(
            remote,
            policy=Policy(user_timeout=QUICK),
            reconnect=Reconnect(attempts=1000, deadline=2 * TIMEOUT, wait=patience),
            timeout=QUICK,
        ) as connector,
        network.client.entered(),
    ):
        sock = connector.connect()
        connector.confirm()
        old = remote.accept()
        works(sock, old)
        outage.begins(network)
        sock.sendall(b"lost")
        with pytest.raises(OSError) as caught:  # noqa: PT011 - checked in the next line
            sock.recv(1)
        assert caught.value.errno in outage.errors
        assert sock.loss is not None
        assert sock.loss.unacknowledged == 4
        assert sock.fileno() == -1
        sock = connector.connect()
        assert len(patience.errors) >= 3
        for error in patience.errors[:3]:
            assert isinstance(error, OSError)
            assert isinstance(error, TimeoutError) or error.errno in outage.errors
        works(sock, remote.accept())
        # The old connection has not heard of the new one.
        assert old.read_to_end() == (b"", RESET)


@campaign
@pytest.mark.parametrize("name", OUTAGES)
def test_the_link_goes_down_while_dialling(network: Network, remote: Peer, name: str) -> None:
    """The kernel goes on sending SYN: it is connected once the link is up."""
    outage = OUTAGES[name]
    network.vanish()
    reconnect = Reconnect(attempts=100, deadline=2 * TIMEOUT, wait=tenacity.wait_fixed(0.05))
    connector = connector_to(remote, reconnect=reconnect, timeout=TIMEOUT)
    with dialling(network, connector) as dialled:
        wait_for_ours(network, remote, "SYN_SENT")
        outage.begins(network)
        network.come_back()
        assert not dialled.done()
        outage.ends(network)
        works(dialled.result(2 * TIMEOUT), remote.accept())


# The previous connection cannot end --------------------------------------------------------------


def stuck_in_fin_wait1(end: PeerEnd, sock: SafeSocket) -> str:
    assert kernel.state_of(end.sock) == kernel.state_of(sock) == "ESTABLISHED"
    return "FIN_WAIT1"


def stuck_in_last_ack(end: PeerEnd, sock: SafeSocket) -> str:
    end.half_close()
    wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT", "the FIN arrives")
    return "LAST_ACK"


@pytest.mark.parametrize("timestamps", [1, pytest.param(0, marks=campaign)])
@pytest.mark.parametrize(
    "prepare", [stuck_in_fin_wait1, pytest.param(stuck_in_last_ack, marks=campaign)]
)
def test_a_previous_connection_that_cannot_end_is_named(
    network: Network,
    remote: Peer,
    prepare: Callable[[PeerEnd, SafeSocket], str],
    timestamps: int,
) -> None:
    """The peer has vanished. Each attempt is over after its timeout; the peer may come back."""
    set_timestamps(network, timestamps)
    wait = tenacity.wait_fixed(0.01)
    with (
        connector_to(
            remote,
            policy=NO_WATCH,
            reconnect=Reconnect(attempts=2, deadline=TIMEOUT, wait=wait),
            timeout=QUICK,
        ) as connector,
        network.client.entered(),
    ):
        sock = connector.connect()
        connector.confirm()
        end = remote.accept()
        works(sock, end)
        state = prepare(end, sock)
        network.vanish()
        with pytest.raises(ReconnectError) as caught:
            connector.connect()
        assert len(caught.value.attempts) == 2
        for attempt in caught.value.attempts:
            assert busy(attempt, state).seconds_left is None
        assert state_of_ours(network, remote) == state
        assert sock.fileno() == -1
        network.come_back()
        if state == "FIN_WAIT1":
            assert end.read_to_end() == (b"", EOF)
            end.rst()
        wait_for_ours(network, remote, None)
        connector.confirm()
        with connector.connect() as sock:
            works(sock, remote.accept())


@pytest.mark.parametrize("prepare", [stuck_in_fin_wait1, stuck_in_last_ack])
def test_a_previous_connection_that_is_about_to_end_is_waited_for(
    network: Network, remote: Peer, prepare: Callable[[PeerEnd, SafeSocket], str]
) -> None:
    """Within the one attempt that there is. Its FIN was lost, and is sent again 0.2 s later."""
    with network.client.entered():
        connector = connector_to(remote, policy=NO_WATCH)
        sock = connector.connect()
        connector.confirm()
        end = remote.accept()
        works(sock, end)
        state = prepare(end, sock)
    network.vanish()
    with dialling(network, connector) as dialled:
        wait_for_ours(network, remote, state)
        network.come_back()
        if state == "FIN_WAIT1":
            assert end.read_to_end() == (b"", EOF)
            end.rst()
        works(dialled.result(TIMEOUT), remote.accept())


def test_a_previous_connection_whose_peer_takes_its_time_is_waited_for(
    network: Network, remote: Peer
) -> None:
    """Nobody knows how long FIN_WAIT2 lasts: it is for the peer to say."""
    set_timestamps(network, 0)
    connector = connector_to(remote)
    with network.client.entered():
        connector.connect().close()
        connector.confirm()
        end = remote.accept()
        assert end.read_to_end() == (b"", EOF)
        wait_for_ours(network, remote, "FIN_WAIT2")
    with dialling(network, connector) as dialled:
        assert not futures.wait([dialled], QUICK).done
        end.rst()
        works(dialled.result(TIMEOUT), remote.accept())


def test_a_previous_connection_that_cannot_end_is_waited_for_within_the_deadline(
    network: Network, remote: Peer
) -> None:
    """The deadline is shorter than the timeout of an attempt."""
    # Long enough for the first connection, whose first SYN a new cable may lose.
    reconnect = Reconnect(attempts=5, deadline=5, wait=tenacity.wait_fixed(9))
    with (
        connector_to(remote, reconnect=reconnect, timeout=TIMEOUT) as connector,
        network.client.entered(),
    ):
        sock = connector.connect()
        connector.confirm()
        network.vanish()
        began = time.monotonic()
        with pytest.raises(ReconnectError) as caught:
            connector.connect()
        assert time.monotonic() - began < TIMEOUT / 2
        assert sock.fileno() == -1
        (attempt,) = caught.value.attempts
        busy(attempt, "FIN_WAIT1")


@campaign
def test_user_timeout_ends_a_previous_connection_that_cannot_end(
    network: Network, remote: Peer
) -> None:
    """Then the port is free, within the same attempt, and only the peer is missing."""
    with (
        connector_to(
            remote,
            policy=Policy(user_timeout=QUICK),
            reconnect=Reconnect(attempts=1, deadline=TIMEOUT),
        ) as connector,
        network.client.entered(),
    ):
        sock = connector.connect()
        connector.confirm()
        network.vanish()
        sock.sendall(b"lost")
        with pytest.raises(ReconnectError) as caught:
            connector.connect()
        (attempt,) = caught.value.attempts
        assert isinstance(attempt, TimeoutError)
        assert sock.fileno() == -1


# Link-local addresses ----------------------------------------------------------------------------


def test_a_connection_between_link_local_addresses_is_named(network: Network) -> None:
    """Their scope is in the address to connect to, and not in the kernel's table."""
    for host, address in ((network.client, "fe80::1"), (network.service, "fe80::2")):
        host.ip(f"address add {address}/64 dev eth0 nodad")
    with network.service.entered():
        peer = Peer(socket.AF_INET6, host="::")
    there, local = ("fe80::2%eth0", peer.address[1]), ("", PORT)
    with contextlib.ExitStack() as stack:
        stack.enter_context(peer)
        stack.enter_context(network.client.entered())
        holder = stack.enter_context(safesock.create_connection(there, TIMEOUT, local))
        connector = Connector(there, local_address=local, reconnect=ONCE)
        with pytest.raises(ReconnectError) as caught:
            connector.connect()
        (error,) = caught.value.attempts
        assert isinstance(error, LocalPortBusyError)
        assert (error.call, error.errno) == ("connect", errno.EADDRNOTAVAIL)
        (named,) = error.holders
        assert (named.state, named.pid) == ("ESTABLISHED", os.getpid())
        assert named.descriptor == holder.fileno()
        assert named.peer is not None
        assert (named.local[1], named.peer[1]) == (PORT, peer.address[1])
