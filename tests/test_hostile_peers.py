"""Peers that do not want to be connected to: each ends in ReconnectError, within its bounds."""

from __future__ import annotations

import contextlib
import datetime
import errno
import itertools
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import kernel
import pytest
import trustme
from netns import SERVICE, Network
from peer import TIMEOUT, Peer, PeerEnd
from tenacity import wait_fixed, wait_none
from tls_peer import NAME, Certificates, TlsEnd

from safesock import Connector, Drain, Policy, Reconnect, ReconnectError, SafeSocket

GREETING, ANSWER = b"hello\n", b"login\n"
# More turns than any budget here allows.
MOST = 1000
# What a slow machine may take beyond the deadline. The peers give up later than that, so that what
# ignores the deadline does not hang.
LATE, PATIENCE = 20.0, 60.0
FOREVER = 3600.0
QUICK = 0.05

# What a peer does --------------------------------------------------------------------------------

Act = Callable[[PeerEnd, threading.Event], object]


def drops(end: PeerEnd, _: threading.Event) -> None:
    end.fin()


def resets(end: PeerEnd, _: threading.Event) -> None:
    end.rst()


def drops_and_resets(end: PeerEnd, _: threading.Event) -> None:
    end.half_close()
    end.rst()


def never_speaks(end: PeerEnd, over: threading.Event) -> None:
    over.wait(PATIENCE)
    end.fin()


def reads_and_drops(end: PeerEnd, _: threading.Event) -> None:
    end.sock.recv(65536)
    end.fin()


def reads_and_resets(end: PeerEnd, _: threading.Event) -> None:
    end.sock.recv(65536)
    end.rst()


def talks_of_something_else(end: PeerEnd, over: threading.Event) -> None:
    end.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    never_speaks(end, over)


def dribbles_tls(end: PeerEnd, over: threading.Event) -> None:
    """A record of 16 KiB of a handshake, byte by byte."""
    _go_on_with(end, over, b"\x16\x03\x03\x40\x00", 0.01)


def dribbles_a_greeting(end: PeerEnd, over: threading.Event) -> None:
    _go_on_with(end, over, b"hello", 0.01)


def greets_without_end(end: PeerEnd, over: threading.Event) -> None:
    _go_on_with(end, over, b"hello", 0.0, bytes(65536))


def _go_on_with(
    end: PeerEnd, over: threading.Event, begin: bytes, pause: float, more: bytes = bytes(1)
) -> None:
    give_up = time.monotonic() + PATIENCE
    end.say(begin)
    while not over.wait(pause) and time.monotonic() < give_up:
        end.say(more)
    end.fin()


def greets_and_drops(end: PeerEnd, _: threading.Event) -> None:
    end.say(GREETING)
    end.read(len(ANSWER))
    end.fin()


def greets_and_resets(end: PeerEnd, _: threading.Event) -> None:
    end.say(GREETING)
    end.read(len(ANSWER))
    end.rst()


class Place(Protocol):
    """Somewhere to connect to."""

    @property
    def address(self) -> tuple[str, int]: ...

    def count(self) -> int | None:
        """How many have connected since it was last asked, where that can be known."""

    @property
    def others(self) -> set[Any]:
        """The local addresses of connections to it that are not the connector's."""


class Hostile(Peer):
    """Does something to all who connect; several things are taken in turn."""

    def __init__(self, *acts: Act, family: int = socket.AF_INET) -> None:
        super().__init__(family)
        self.listener.settimeout(None)
        self._acts = itertools.cycle(acts)
        self._over = threading.Event()
        self._callers: list[Any] = []
        self._threads = ThreadPoolExecutor(8)
        self._accepting = self._threads.submit(self._accept_all)

    def count(self) -> int:
        with socket.socket(self.listener.family) as last:
            last.bind((self.address[0], 0))
            last.connect_ex(self.address)
            # They are accepted in the order in which they came.
            name = last.getsockname()
            kernel.wait_until(lambda: name in self._callers, "all are accepted")
        callers, self._callers = self._callers, []
        return callers.index(name)

    @property
    def others(self) -> set[Any]:
        return set()

    def _accept_all(self) -> None:
        while not self._over.is_set():
            try:
                sock, name = self.listener.accept()
            except OSError:
                return  # It has been closed.
            self.ends.append(PeerEnd(sock))
            self._callers.append(name)
            self._threads.submit(self._act_on, self.ends[-1], next(self._acts))

    def _act_on(self, end: PeerEnd, act: Act) -> None:
        with contextlib.suppress(OSError, EOFError, AssertionError):
            act(end, self._over)

    def close(self) -> None:
        self._over.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self._accepting.result(TIMEOUT)
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.sock.shutdown(socket.SHUT_RDWR)
        self._threads.shutdown()
        super().close()


class Nobody:
    """A port where nobody listens."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        self._sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._sock.getsockname()[:2]
        return host, port

    def count(self) -> None:
        """They leave no trace."""

    @property
    def others(self) -> set[Any]:
        return set()

    def __enter__(self) -> Nobody:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()


class Full(Nobody):
    """Its backlog is full: every SYN is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._sock.listen(0)
        self._waiting: list[socket.socket] = []
        for _ in range(10):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(self.address)
            if kernel.state_of(sock) == "SYN_SENT":
                sock.close()
                return
            self._waiting.append(sock)
        raise AssertionError("the backlog is never full")

    @property
    def others(self) -> set[Any]:
        return {sock.getsockname() for sock in self._waiting}

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for sock in self._waiting:
            sock.close()


# How a connector is used -------------------------------------------------------------------------


Turns = Generator[SafeSocket, None, None]


def by_connect(connector: Connector) -> Turns:
    for _ in range(MOST):
        with connector.connect() as sock:
            yield sock


def by_iteration(connector: Connector) -> Turns:
    yield from itertools.islice(connector, MOST)


def by_socket(connector: Connector) -> Turns:
    """The turns of one socket for life: what reads in it may dial."""
    with connector.socket() as sock:
        for _ in range(MOST):
            yield sock


Way = Callable[[Connector], Turns]
WAYS: dict[str, Way] = {"connect": by_connect, "iteration": by_iteration, "socket": by_socket}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
# All of them take too long for the plain run.
one_way = pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=[] if way is by_connect else [pytest.mark.campaign], id=name)
        for name, way in WAYS.items()
    ],
)


def log_in(sock: SafeSocket) -> None:
    """An on_connect that takes the peer's word for it."""
    greeting = b""
    while not greeting.endswith(b"\n"):
        part = sock.recv(65536)
        if not part:
            raise EOFError("the peer has closed instead of greeting")
        greeting += part
    sock.sendall(ANSWER)


def dislike(_: SafeSocket) -> None:
    """An on_connect that does not like what it has got."""
    raise ValueError("not this one")


def read_to_the_loss(sock: SafeSocket) -> None:
    sock.settimeout(TIMEOUT)
    try:
        while sock.recv(65536):
            pass
    except ReconnectError:
        raise
    except ConnectionError:
        pass


def exhaust(connector: Connector, way: Way, losses: list[SafeSocket]) -> None:
    """Comes back until that raises."""
    with contextlib.closing(way(connector)) as turns:
        for sock in turns:
            read_to_the_loss(sock)
            losses.append(sock)


class Outcome(NamedTuple):
    error: ReconnectError
    seconds: float
    losses: int
    # What the peer has seen.
    connections: int | None

    @property
    def kinds(self) -> list[type]:
        return [type(error) for error in self.error.attempts]


def give_up(place: Place, way: Way, **options: Any) -> Outcome:
    """Comes back until that is over. Asserts what holds whatever the peer does."""
    losses: list[SafeSocket] = []
    connector = Connector(place.address, **options)
    begin = time.monotonic()
    with connector, pytest.raises(ReconnectError) as caught:
        exhaust(connector, way, losses)
    outcome = Outcome(caught.value, time.monotonic() - begin, len(losses), place.count())
    choice: Reconnect = options["reconnect"]
    assert outcome.error.address == place.address
    assert outcome.error.__cause__ is outcome.error.attempts[-1]
    assert 1 <= len(outcome.error.attempts) <= choice.attempts
    assert outcome.seconds < choice.deadline + LATE
    assert outcome.losses <= len(outcome.error.attempts)
    if outcome.connections is not None:
        unseen = len(outcome.error.attempts) - outcome.connections
        # The deadline may pass before the last attempt comes to connect(2).
        assert unseen == 0 or (unseen == 1 and outcome.kinds[-1] is TimeoutError)
    leaves_nothing(place)
    return outcome


# On our side, of a connection that has been closed. The peers that never close leave FIN_WAIT2.
PASSING = {"FIN_WAIT1", "FIN_WAIT2", "CLOSING", "TIME_WAIT", "LAST_ACK"}


def leaves_nothing(place: Place) -> None:
    """No connection to it, and no thread but the watcher and the peer's own."""

    def states() -> set[str]:
        found = kernel.connections(peer_port=place.address[1]).items()
        return {state for (local, _), state in found if local not in place.others} - PASSING

    kernel.wait_until(lambda: not states(), "the connections have ended")


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Neither a descriptor nor a thread, once the peers have gone."""
    with Peer() as peer, peer.connected():
        pass  # The watcher stays.
    descriptors, threads = kernel.descriptors(), set(threading.enumerate())
    yield
    kernel.wait_until(lambda: set(threading.enumerate()) == threads, "the threads have ended")
    assert kernel.left_open(descriptors) == []


# What becomes of it ------------------------------------------------------------------------------


class Scenario(NamedTuple):
    """What one attempt raises, and what it takes for that."""

    place: Callable[[], Any]
    errors: set[type]
    tls: bool = False
    on_connect: Callable[[SafeSocket], object] | None = None
    # Only a time limit ends an attempt, and, where it is not patient, only the deadline.
    silent: bool = False
    trickles: bool = False
    # Whether attempts lead to a connection, which is then lost. None: it may be lost before.
    is_lost: bool | None = False


def hostile(act: Act) -> Callable[[], Hostile]:
    return lambda: Hostile(act)


# A peer that closes with our hello unread resets, and that may meet our write or our read.
CUT: set[type] = {ConnectionResetError, BrokenPipeError, ssl.SSLEOFError}
SCENARIOS = {
    "refuses": Scenario(Nobody, {ConnectionRefusedError}),
    "refuses, IPv6": Scenario(lambda: Nobody(socket.AF_INET6), {ConnectionRefusedError}),
    "backlog full": Scenario(Full, {TimeoutError}, silent=True),
    "drops": Scenario(hostile(drops), {ConnectionError}, is_lost=True),
    "drops, IPv6": Scenario(
        lambda: Hostile(drops, family=socket.AF_INET6), {ConnectionError}, is_lost=True
    ),
    "resets": Scenario(hostile(resets), {ConnectionResetError}, is_lost=None),
    "drops, then resets": Scenario(
        hostile(drops_and_resets), {ConnectionError, BrokenPipeError}, is_lost=None
    ),
    "drops before the greeting": Scenario(hostile(drops), {EOFError}, on_connect=log_in),
    "resets before the greeting": Scenario(
        hostile(resets), {ConnectionResetError}, on_connect=log_in
    ),
    "never greets": Scenario(hostile(never_speaks), {TimeoutError}, on_connect=log_in, silent=True),
    "dribbles the greeting": Scenario(
        hostile(dribbles_a_greeting), {TimeoutError}, on_connect=log_in, silent=True, trickles=True
    ),
    "greets without end": Scenario(
        hostile(greets_without_end), {TimeoutError}, on_connect=log_in, silent=True, trickles=True
    ),
    "greets and drops": Scenario(
        hostile(greets_and_drops), {ConnectionError}, on_connect=log_in, is_lost=True
    ),
    "greets and resets": Scenario(
        hostile(greets_and_resets), {ConnectionResetError}, on_connect=log_in, is_lost=True
    ),
    "is disliked": Scenario(hostile(never_speaks), {ValueError}, on_connect=dislike),
    "TLS: drops": Scenario(hostile(drops), CUT, tls=True),
    "TLS: resets": Scenario(hostile(resets), CUT, tls=True),
    "TLS: drops, then resets": Scenario(hostile(drops_and_resets), CUT, tls=True),
    "TLS: never speaks": Scenario(hostile(never_speaks), {TimeoutError}, tls=True, silent=True),
    "TLS: drops after our hello": Scenario(hostile(reads_and_drops), {ssl.SSLEOFError}, tls=True),
    "TLS: resets after our hello": Scenario(
        hostile(reads_and_resets), {ConnectionResetError}, tls=True
    ),
    "TLS: not spoken": Scenario(hostile(talks_of_something_else), {ssl.SSLError}, tls=True),
    "TLS: dribbles": Scenario(hostile(dribbles_tls), {TimeoutError}, tls=True, silent=True),
}


def options_of(scenario: Scenario, certificates: Certificates) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if scenario.tls:
        options |= {"ssl_context": certificates.client(), "server_hostname": NAME}
    if scenario.on_connect is not None:
        options |= {"on_connect": scenario.on_connect}
    return options


def cases(*, deadline: bool) -> list[Any]:
    """Each peer met in each way. In the plain run the slow ones are met in one way."""
    found = []
    for (name, scenario), (used, way) in itertools.product(SCENARIOS.items(), WAYS.items()):
        if scenario.trickles and not deadline:
            continue
        slow = (scenario.silent or deadline) and way is not by_connect
        slow |= deadline and not scenario.silent and name not in ("refuses", "drops")
        marks = [pytest.mark.campaign] if slow else []
        found.append(pytest.param(scenario, way, marks=marks, id=f"{name}, {used}"))
    return found


@pytest.mark.parametrize(("scenario", "way"), cases(deadline=False))
def test_the_attempts_are_all_there_are(
    scenario: Scenario, way: Way, certificates: Certificates
) -> None:
    reconnect = Reconnect(attempts=3, deadline=FOREVER, wait=wait_none())
    timeout = QUICK if scenario.silent else TIMEOUT
    options = options_of(scenario, certificates)
    with scenario.place() as place:
        outcome = give_up(place, way, reconnect=reconnect, timeout=timeout, **options)
    assert len(outcome.kinds) == 3
    assert set(outcome.kinds) <= scenario.errors
    assert outcome.seconds < LATE
    assert outcome.connections in (None, 3)
    if scenario.silent:
        assert outcome.seconds >= 3 * QUICK
    if scenario.is_lost is not None:
        assert outcome.losses == (3 if scenario.is_lost else 0)  # One loss, one signal.


PAUSE, DEADLINE = 0.02, 0.12


@pytest.mark.parametrize(("scenario", "way"), cases(deadline=True))
@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_the_deadline_ends_it(
    scenario: Scenario, way: Way, timeout: float | None, certificates: Certificates
) -> None:
    reconnect = Reconnect(attempts=MOST, deadline=DEADLINE, wait=wait_fixed(PAUSE))
    options = options_of(scenario, certificates)
    with scenario.place() as place:
        outcome = give_up(place, way, reconnect=reconnect, timeout=timeout, **options)
    if scenario.silent:
        # It cuts the attempt that is under way.
        assert outcome.kinds == [TimeoutError]
        assert outcome.seconds >= DEADLINE
    else:
        *before, last = outcome.kinds
        assert set(before) <= scenario.errors
        assert last in scenario.errors | {TimeoutError}
        assert len(before) <= DEADLINE / PAUSE
    assert "deadline" in outcome.error.reason


# What only the number of attempts shows ----------------------------------------------------------


@pytest.mark.campaign
@each_way
@pytest.mark.parametrize("on_connect", [None, log_in], ids=["", "on_connect"])
@pytest.mark.parametrize("tls", [False, True], ids=["", "TLS"])
@pytest.mark.parametrize("act", [drops, resets, drops_and_resets], ids=lambda act: act.__name__)
def test_wherever_the_end_strikes_it_is_an_attempt_and_leaves_nothing(
    act: Act, tls: bool, on_connect: Any, way: Way, certificates: Certificates
) -> None:
    options = options_of(Scenario(Nobody, set(), tls=tls, on_connect=on_connect), certificates)
    reconnect = Reconnect(attempts=300, deadline=FOREVER, wait=wait_none())
    with Hostile(act) as place:
        outcome = give_up(place, way, reconnect=reconnect, timeout=TIMEOUT, **options)
    assert len(outcome.kinds) == 300
    errors = CUT if tls else {ConnectionError, ConnectionResetError, BrokenPipeError}
    assert set(outcome.kinds) <= errors | ({EOFError} if on_connect and not tls else set())
    assert tls is False or outcome.losses == 0


# The deadline ------------------------------------------------------------------------------------


@each_way
def test_a_wait_that_would_end_too_late_is_not_begun(way: Way) -> None:
    reconnect = Reconnect(attempts=MOST, deadline=60, wait=wait_fixed(61))
    with Nobody() as place:
        outcome = give_up(place, way, reconnect=reconnect)
    assert outcome.kinds == [ConnectionRefusedError]
    assert outcome.seconds < LATE


@one_way
@pytest.mark.parametrize(
    "name",
    [
        "never greets",
        "greets without end",
        "is disliked",
        "TLS: never speaks",
        "TLS: not spoken",
    ],
)
def test_a_close_mode_that_waits_does_not_outlast_it(
    name: str, way: Way, certificates: Certificates
) -> None:
    scenario = SCENARIOS[name]
    reconnect = Reconnect(attempts=2, deadline=0.1, wait=wait_fixed(PAUSE))
    options = options_of(scenario, certificates) | {"policy": Policy(close=Drain(PATIENCE))}
    with scenario.place() as place:
        outcome = give_up(place, way, reconnect=reconnect, **options)
    assert set(outcome.kinds) <= scenario.errors | {TimeoutError}


def test_one_deadline_is_for_all_attempts() -> None:
    reconnect = Reconnect(attempts=MOST, deadline=0.2, wait=wait_none())
    with Full() as place:
        outcome = give_up(place, by_connect, reconnect=reconnect, timeout=0.08)
    assert outcome.seconds >= 0.2
    assert set(outcome.kinds) == {TimeoutError}
    assert len(outcome.kinds) <= 3


@pytest.mark.parametrize("way", [by_connect, by_iteration])
def test_what_is_used_up_stays_so(way: Way) -> None:
    reconnect = Reconnect(attempts=2, deadline=FOREVER, wait=wait_none())
    with Hostile(drops) as place, Connector(place.address, reconnect=reconnect) as connector:
        for _ in range(3):
            with pytest.raises(ReconnectError) as caught:
                exhaust(connector, way, [])
            assert [type(error) for error in caught.value.attempts] == [ConnectionError] * 2
        assert place.count() == 2


@pytest.mark.campaign
def test_attempts_may_fail_in_different_ways(certificates: Certificates) -> None:
    acts = [drops, never_speaks, talks_of_something_else, reads_and_resets, dribbles_tls]
    options = options_of(Scenario(Nobody, set(), tls=True), certificates)
    reconnect = Reconnect(attempts=5, deadline=FOREVER, wait=wait_none())
    with Hostile(*acts) as place:
        outcome = give_up(place, by_connect, reconnect=reconnect, timeout=1, **options)
    assert outcome.kinds[0] in CUT
    assert outcome.kinds[1:] == [TimeoutError, ssl.SSLError, ConnectionResetError, TimeoutError]


# Certificates ------------------------------------------------------------------------------------


def shakes_hands(context: ssl.SSLContext) -> Act:
    def act(end: PeerEnd, _: threading.Event) -> None:
        tls = TlsEnd(end, context)
        tls.handshake()
        tls.close_notify()
        tls.fin()

    return act


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
BAD_CERTIFICATES: dict[str, Callable[[trustme.CA], trustme.LeafCert]] = {
    "wrong name": lambda authority: authority.issue_cert("elsewhere.example"),
    "untrusted": lambda _: trustme.CA().issue_cert(NAME),
    "expired": lambda authority: authority.issue_cert(NAME, not_after=YESTERDAY),
}
each_bad_certificate = pytest.mark.parametrize(
    "issue", BAD_CERTIFICATES.values(), ids=BAD_CERTIFICATES.keys()
)


@each_way
@each_bad_certificate
def test_a_bad_certificate_is_not_retried(
    issue: Callable[[trustme.CA], trustme.LeafCert],
    way: Way,
    version: str,
    certificates: Certificates,
) -> None:
    context = serving(issue(certificates.authority))
    reconnect = Reconnect(attempts=5, deadline=FOREVER, wait=wait_none())
    with Hostile(shakes_hands(context)) as place:
        outcome = give_up(
            place,
            way,
            reconnect=reconnect,
            timeout=TIMEOUT,
            ssl_context=certificates.client(version),
            server_hostname=NAME,
        )
    assert outcome.connections == 1
    assert outcome.kinds == [ssl.SSLCertVerificationError]
    assert outcome.losses == 0
    assert "not retried" in outcome.error.reason


@each_way
def test_a_certificate_that_goes_bad_ends_it(
    way: Way, version: str, certificates: Certificates
) -> None:
    bad = BAD_CERTIFICATES["expired"](certificates.authority)
    acts = [shakes_hands(certificates.server()), drops, shakes_hands(serving(bad))]
    reconnect = Reconnect(attempts=9, deadline=FOREVER, wait=wait_none())
    with Hostile(*acts) as place:
        outcome = give_up(
            place,
            way,
            reconnect=reconnect,
            timeout=TIMEOUT,
            ssl_context=certificates.client(version),
            server_hostname=NAME,
        )
    assert outcome.kinds[0] is ConnectionError
    assert outcome.kinds[1] in CUT
    assert outcome.kinds[2:] == [ssl.SSLCertVerificationError]
    assert outcome.losses == 1


# A network that drops packets, or says that there is no way --------------------------------------


class Remote:
    """A port of the service, and the SYNs that come for it over the cable."""

    def __init__(self, network: Network) -> None:
        with network.service.entered():
            self._cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
            self._cable.bind(("eth0", 0))
            self._cable.setblocking(False)
            self._sock = socket.create_server((SERVICE, 0))
        self.address: tuple[str, int] = self._sock.getsockname()

    @property
    def others(self) -> set[Any]:
        return set()

    def stop_listening(self) -> None:
        self._sock.close()

    def count(self) -> int:
        syns = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self._cable.recv(65536)
                source, port, number = struct.unpack_from("!HHI", frame, 34)
                if frame[23] == socket.IPPROTO_TCP and frame[47] & 0x12 == 0x02:
                    assert port == self.address[1]
                    syns.add((source, number))  # Not counting retransmissions.
        return len(syns)

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self._cable.close()
        self._sock.close()


ETH_P_IP = 0x0800


@pytest.fixture
def remote(network: Network) -> Iterator[Remote]:
    with Remote(network) as one:
        yield one


DISASTERS: dict[str, tuple[Callable[[Network, Remote], object], type, int | None]] = {
    "refuses": (lambda _, remote: remote.stop_listening(), ConnectionRefusedError, None),
    "packets dropped": (lambda network, _: network.vanish(), TimeoutError, None),
    "answers dropped": (lambda network, _: network.deafen_the_client(), TimeoutError, None),
    "no such network": (
        lambda network, _: network.lose_the_network(),
        OSError,
        errno.ENETUNREACH,
    ),
    "no such host": (lambda network, _: network.become_unreachable(), OSError, errno.EHOSTUNREACH),
}
each_disaster = pytest.mark.parametrize(
    ("happens", "kind", "number"),
    [
        pytest.param(
            *disaster,
            marks=[] if name in ("refuses", "packets dropped") else [pytest.mark.campaign],
            id=name,
        )
        for name, disaster in DISASTERS.items()
    ],
)


@one_way
@each_disaster
def test_on_a_network_that_fails(
    happens: Callable[[Network, Remote], object],
    kind: type,
    number: int | None,
    way: Way,
    network: Network,
    remote: Remote,
) -> None:
    happens(network, remote)
    timeout = QUICK if kind is TimeoutError else TIMEOUT
    reconnect = Reconnect(attempts=3, deadline=FOREVER, wait=wait_none())
    with network.client.entered():
        outcome = give_up(remote, way, reconnect=reconnect, timeout=timeout)
    assert outcome.kinds == [kind] * 3
    assert outcome.connections == 3
    if number is not None:
        assert [getattr(error, "errno", None) for error in outcome.error.attempts] == [number] * 3
    assert outcome.seconds < LATE


@one_way
@pytest.mark.parametrize("timeout", [None, pytest.param(PATIENCE, marks=pytest.mark.campaign)])
def test_the_deadline_ends_it_on_a_network_that_drops_packets(
    timeout: float | None, way: Way, network: Network, remote: Remote
) -> None:
    network.vanish()
    reconnect = Reconnect(attempts=MOST, deadline=DEADLINE, wait=wait_fixed(PAUSE))
    with network.client.entered():
        outcome = give_up(remote, way, reconnect=reconnect, timeout=timeout)
    assert outcome.kinds == [TimeoutError]
    assert outcome.seconds >= DEADLINE
