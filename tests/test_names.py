"""Names: resolved afresh for every attempt, all addresses tried, within the bounds of `Reconnect`.

The system's resolver is asked, in a network namespace that has nothing but a loopback device and a
name server of ours. The connector runs there in a program of its own; the sockets of the server and
of the peers belong to this process.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import kernel
import netns
import pytest
from netns import Namespace
from peer import TIMEOUT
from tls_peer import Certificates

NAME, PORT, LOCAL_PORT = "plc.test", 4000, 40000
A, AAAA = 1, 28
SERVFAIL, NXDOMAIN, REFUSED = 2, 3, 5
SILENCE = -1
# Addresses, or an error, or SILENCE.
Answer = list[str] | int

# What it is told on stdin it does, line by line.
CLIENT = """
import json, os, ssl, sys, threading, time
from safesock import Connector, Policy, Reconnect, ReconnectError
from tenacity import wait_none

threads = set()
threading.setprofile(lambda *_: threads.add(threading.get_ident()))

def act(address, reconnect, turns, local_address=None, authority=None, closes=None, **options):
    if authority:
        options["ssl_context"] = ssl.create_default_context(cadata=authority)
    connector = Connector(
        tuple(address),
        local_address=local_address and tuple(local_address),
        policy=Policy(watch=False),
        reconnect=Reconnect(wait=wait_none(), **reconnect),
        **options,
    )
    connections, attempts = [], []
    if closes:
        threading.Timer(closes, connector.close).start()
    begin = time.monotonic()
    with connector:
        try:
            for _ in range(turns):
                sock = connector.connect()
                connections.append([sock.getsockname()[:2], sock.getpeername()[:2]])
                sock.settimeout(20)
                assert sock.recv(1) == b""
        except ConnectionAbortedError as error:
            attempts.append(["closed", error.errno, []])
        except ReconnectError as error:
            for one in error.attempts:
                notes = getattr(one, "__notes__", [])
                attempts.append([type(one).__name__, getattr(one, "errno", None), notes])
    return connections, attempts, time.monotonic() - begin, bool(threads)

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def say(what):
    print(json.dumps(what), flush=True)

for line in sys.stdin:
    before = descriptors()
    threads.clear()
    say(act(**json.loads(line)))
    input()
    end = time.monotonic() + 15
    while threading.active_count() > 1 and time.monotonic() < end:
        time.sleep(0.005)
    say([threading.active_count() - 1, descriptors() - before])
threading.setprofile(None)
"""


class Names:
    """A name server. The answers for a name are given in turn, and the last one for ever."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 53))
        self.answers: dict[int, list[Answer]] = {}
        self.asked: Counter[int] = Counter()
        self._waiting: list[tuple[bytes, Any]] = []
        self._is_silent = True
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def be_silent_no_more(self) -> None:
        """Those who wait are told that there is no such name."""
        self._is_silent = False
        for query, caller in self._waiting:
            self._sock.sendto(_message(query, NXDOMAIN), caller)

    def _serve(self) -> None:
        while True:
            query, caller = self._sock.recvfrom(4096)
            if not query:
                return
            name, kind = _question(query)
            answers = self.answers.get(kind, [[]]) if name == NAME else [NXDOMAIN]
            answer = answers[min(self.asked[kind], len(answers) - 1)]
            self.asked[kind] += name == NAME
            if answer != SILENCE:
                self._sock.sendto(_message(query, answer), caller)
            elif self._is_silent:
                self._waiting.append((query, caller))

    def close(self) -> None:
        self._sock.sendto(b"", self._sock.getsockname())
        self._thread.join(TIMEOUT)
        self._sock.close()


def _question(query: bytes) -> tuple[str, int]:
    labels, at = [], 12
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode())
        at += 1 + size
    return ".".join(labels), int.from_bytes(query[at + 1 : at + 3], "big")


def _message(query: bytes, answer: Answer) -> bytes:
    """RFC 1035, 4.1."""
    code, addresses = (answer, []) if isinstance(answer, int) else (0, answer)
    _, kind = _question(query)
    family = socket.AF_INET if kind == A else socket.AF_INET6
    message = query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(addresses), 0, 0)
    message += query[12:]
    for address in addresses:
        data = socket.inet_pton(family, address)
        message += struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(data)) + data
    return message


class Result(NamedTuple):
    # Local and peer address of each.
    connections: list[tuple[tuple[str, int], tuple[str, int]]]
    # Of the ReconnectError, if there was one: type, errno, notes.
    attempts: list[tuple[str, int | None, list[str]]]
    seconds: float
    # Whether another thread has run.
    threads: bool

    @property
    def peers(self) -> list[str]:
        return [peer[0] for _, peer in self.connections]

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, *_ in self.attempts]


class Client:
    """The program with the connector."""

    def __init__(self, namespace: Namespace) -> None:
        self._program = subprocess.Popen(
            namespace.python(CLIENT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str) -> Any:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(f"{line}\n")
        self._program.stdin.flush()
        assert select.select([self._program.stdout], [], [], TIMEOUT)[0], "it says nothing"
        answer = self._program.stdout.readline()
        assert answer, self._program.communicate()[1]
        return json.loads(answer)

    def close(self) -> None:
        """It ends well."""
        try:
            assert self._program.communicate(timeout=TIMEOUT) == ("", "")
        finally:
            self._program.kill()
            self._program.communicate()


class Host:
    """The namespace, its name server and its peers."""

    def __init__(self, namespace: Namespace, client: Client, stack: contextlib.ExitStack) -> None:
        self.names = Names(namespace)
        stack.callback(self.names.close)
        self._namespace = namespace
        self._client = client
        self._stack = stack

    def listens(self, *addresses: str) -> None:
        """A peer that drops whoever connects."""
        for address in addresses:
            self.serves(address, None)

    def serves(self, address: str, context: ssl.SSLContext | None) -> list[Any]:
        """A peer, with TLS or without, that drops whoever connects; the list of the callers."""
        listener, callers = self._listener(address), []
        listener.listen(16)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, caller = listener.accept()
                    callers.append(caller)
                    sock.settimeout(TIMEOUT)
                    with sock, contextlib.suppress(OSError):
                        if context is not None:
                            context.wrap_socket(sock, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        self._stack.callback(thread.join, TIMEOUT)
        self._stack.callback(listener.shutdown, socket.SHUT_RDWR)
        return callers

    def is_deaf(self, address: str) -> None:
        """There all SYNs are dropped: the backlog is full."""
        listener = self._listener(address)
        listener.listen(0)
        for _ in range(10):
            with self._namespace.entered():
                sock = self._stack.enter_context(socket.socket(listener.family))
            sock.setblocking(False)
            sock.connect_ex((address, PORT))
            if kernel.state_of(sock) == "SYN_SENT":
                return
        raise AssertionError("the backlog is never full")

    def _listener(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self._namespace.entered():
            listener = self._stack.enter_context(socket.socket(family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, PORT))
        return listener

    def has_no_name_server(self) -> None:
        self._namespace.etc(NO_NAME_SERVER)
        self._stack.callback(self._namespace.etc, NAME_SERVER)

    def connects(
        self,
        host: str = NAME,
        *,
        attempts: int = 3,
        deadline: float = 3600.0,
        turns: int = 1,
        **options: Any,
    ) -> Result:
        """What a connector comes to that connects so many times."""
        options |= {"address": (host, PORT), "turns": turns}
        options["reconnect"] = {"attempts": attempts, "deadline": deadline}
        connections, errors, *rest = self._client.ask(json.dumps(options))
        self.names.be_silent_no_more()
        threads, descriptors = self._client.ask("")
        assert (threads, descriptors) == (0, 0), "something is left"
        ends = [(tuple(local), tuple(peer)) for local, peer in connections]
        return Result(ends, [tuple(error) for error in errors], *rest)


NAME_SERVER = {"resolv.conf": "nameserver 127.0.0.1\n"}
NO_NAME_SERVER = {"resolv.conf": "nameserver 127.0.0.99\n"}


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    if reason := netns.why_not():
        pytest.skip(reason)
    with Namespace("names") as made:
        made.ip("link set lo up")
        made.etc(NAME_SERVER | {"nsswitch.conf": "hosts: files dns\n"})
        yield made


@pytest.fixture(scope="module")
def client(namespace: Namespace) -> Iterator[Client]:
    with contextlib.closing(Client(namespace)) as one:
        yield one


@pytest.fixture
def host(namespace: Namespace, client: Client) -> Iterator[Host]:
    before, threads = kernel.descriptors(), set(threading.enumerate())
    with contextlib.ExitStack() as stack:
        yield Host(namespace, client, stack)
    assert kernel.left_open(before) == []
    assert set(threading.enumerate()) == threads


# Which addresses ---------------------------------------------------------------------------------

LIVE, *DEAD = "127.0.0.2", "127.0.0.3", "127.0.0.4"


def test_every_attempt_asks_anew(host: Host) -> None:
    host.names.answers = {A: [[DEAD[0]], [DEAD[1]], NXDOMAIN, [LIVE]]}
    host.listens(LIVE)
    result = host.connects(attempts=4)
    assert result.peers == [LIVE]
    assert host.names.asked == {A: 4, AAAA: 4}
    assert result.threads


def test_after_a_loss_too(host: Host) -> None:
    host.names.answers = {A: [[LIVE], [DEAD[0]], ["127.0.0.5"]]}
    host.listens(LIVE, "127.0.0.5")
    result = host.connects(attempts=4, turns=2)
    assert result.peers == [LIVE, "127.0.0.5"]
    assert host.names.asked[A] == 3


@pytest.mark.parametrize("live", [LIVE, *DEAD])
def test_all_addresses_are_tried_in_one_attempt(host: Host, live: str) -> None:
    host.names.answers = {A: [[LIVE, *DEAD]]}
    host.listens(live)
    result = host.connects(attempts=1)
    assert result.peers == [live]
    assert host.names.asked[A] == 1


@pytest.mark.parametrize("live", ["127.0.0.1", "::1"])
def test_of_both_families(host: Host, live: str) -> None:
    host.names.answers = {A: [["127.0.0.1"]], AAAA: [["::1"]]}
    host.listens(live)
    result = host.connects(attempts=1)
    assert result.peers == [live]


@pytest.mark.parametrize("timeout", [None, 0.15])
def test_one_deadline_is_for_all_addresses(host: Host, timeout: float | None) -> None:
    addresses = [LIVE, *DEAD]
    host.names.answers = {A: [addresses]}
    for address in addresses:
        host.is_deaf(address)
    result = host.connects(deadline=0.2, timeout=timeout)
    assert result.kinds == ["TimeoutError"]
    assert 0.2 <= result.seconds < TIMEOUT


def test_the_attempt_tells_of_all_addresses(host: Host) -> None:
    host.names.answers = {A: [["127.0.0.1"]], AAAA: [["::1"]]}
    result = host.connects(attempts=2)
    assert result.kinds == ["ConnectionRefusedError"] * 2
    for _, _, notes in result.attempts:
        assert len(notes) == 2
        for address in ("127.0.0.1", "::1"):
            assert sum(f"at {address} port {PORT}" in note for note in notes) == 1


@pytest.mark.parametrize("order", [1, -1])
def test_a_bad_certificate_at_one_address_is_not_retried(
    host: Host, certificates: Certificates, order: int
) -> None:
    """Wherever it is among those that refuse."""
    bad = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates.authority.issue_cert("elsewhere.test").configure_cert(bad)
    addresses = ["127.0.0.1", "::1"][::order]
    host.names.answers = {A: [["127.0.0.1"]], AAAA: [["::1"]]}
    callers = host.serves(addresses[0], bad)
    authority = certificates.authority.cert_pem.bytes().decode()
    result = host.connects(attempts=3, authority=authority, timeout=TIMEOUT)
    assert result.kinds == ["SSLCertVerificationError"]
    assert len(callers) == 1


# With a local port -------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [LIVE, *DEAD])
@pytest.mark.parametrize("deaf", [False, True], ids=["refuses", "deaf"])
def test_all_addresses_are_tried_from_the_same_port(host: Host, live: str, deaf: bool) -> None:
    addresses = [LIVE, *DEAD]
    host.names.answers = {A: [addresses]}
    host.listens(live)
    for address in addresses:
        if deaf and address != live:
            host.is_deaf(address)
    result = host.connects(attempts=1, timeout=0.1, local_address=("", LOCAL_PORT))
    assert result.peers == [live]
    assert [local[1] for local, _ in result.connections] == [LOCAL_PORT]


@pytest.mark.parametrize("live", ["127.0.0.1", "::1"])
def test_of_both_families_from_the_same_port(host: Host, live: str) -> None:
    host.names.answers = {A: [["127.0.0.1"]], AAAA: [["::1"]]}
    host.listens(live)
    result = host.connects(attempts=3, turns=3, local_address=("", LOCAL_PORT))
    assert result.peers == [live] * 3
    assert [local[1] for local, _ in result.connections] == [LOCAL_PORT] * 3


def test_an_address_of_the_other_family_than_the_local_one_is_left_out(host: Host) -> None:
    host.names.answers = {A: [["127.0.0.1"]], AAAA: [["::1"]]}
    host.listens("127.0.0.1", "::1")
    result = host.connects(attempts=1, local_address=("127.0.0.1", LOCAL_PORT))
    assert result.peers == ["127.0.0.1"]


# Names that lead nowhere -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        pytest.param(NXDOMAIN, socket.EAI_NONAME, id="NXDOMAIN"),
        pytest.param(SERVFAIL, socket.EAI_AGAIN, id="SERVFAIL"),
        pytest.param(REFUSED, socket.EAI_AGAIN, id="REFUSED"),
        pytest.param([], socket.EAI_NODATA, id="no address"),
    ],
)
def test_a_name_without_an_address_uses_up_the_attempts(
    host: Host, answer: Answer, number: int
) -> None:
    host.names.answers = {A: [answer], AAAA: [answer]}
    result = host.connects(attempts=3)
    assert [attempt[:2] for attempt in result.attempts] == [("gaierror", number)] * 3
    assert result.seconds < TIMEOUT
    assert host.names.asked[A] >= 3


def test_so_it_does_where_there_is_no_name_server(host: Host) -> None:
    host.has_no_name_server()
    result = host.connects(attempts=3)
    assert [attempt[:2] for attempt in result.attempts] == [("gaierror", socket.EAI_AGAIN)] * 3
    assert result.seconds < TIMEOUT


def test_the_deadline_ends_those_attempts_too(host: Host) -> None:
    host.names.answers = {A: [NXDOMAIN], AAAA: [NXDOMAIN]}
    result = host.connects(attempts=10**6, deadline=0.15)
    *before, last = result.kinds
    assert set(before) <= {"gaierror"}
    assert last in ("gaierror", "TimeoutError")
    assert result.seconds < TIMEOUT


@pytest.mark.parametrize("timeout", [None, pytest.param(0.01, marks=pytest.mark.campaign)])
def test_the_deadline_cuts_a_resolver_that_never_answers(host: Host, timeout: float | None) -> None:
    """By itself it takes 10 s. Its thread then ends when the resolver does."""
    host.names.answers = {A: [SILENCE], AAAA: [SILENCE]}
    result = host.connects(attempts=5, deadline=0.3, timeout=timeout)
    assert result.kinds == ["TimeoutError"]
    assert 0.3 <= result.seconds < 8
    assert host.names.asked[A] >= 1


def test_close_wakes_whoever_waits_for_the_resolver(host: Host) -> None:
    host.names.answers = {A: [SILENCE], AAAA: [SILENCE]}
    result = host.connects(attempts=5, closes=0.2)
    assert result.kinds == ["closed"]
    assert result.seconds < 8


@pytest.mark.campaign
@pytest.mark.parametrize("kind", [A, AAAA], ids=["A", "AAAA"])
def test_half_an_answer_is_none(host: Host, kind: int) -> None:
    """The system waits for both families."""
    host.names.answers = {A: [["127.0.0.1"]], AAAA: [["::1"]]}
    host.names.answers[kind] = [SILENCE]
    host.listens("127.0.0.1", "::1")
    result = host.connects(deadline=0.5)
    assert result.kinds == ["TimeoutError"]
    assert result.seconds < 8


# Hosts that are no names -------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_numeric_host_takes_no_thread_and_asks_nobody(host: Host, address: str) -> None:
    host.listens(address)
    result = host.connects(address, turns=2)
    assert result.peers == [address] * 2
    assert not result.threads
    assert not host.names.asked


def test_nor_does_one_that_refuses(host: Host) -> None:
    result = host.connects("127.0.0.1")
    assert result.kinds == ["ConnectionRefusedError"] * 3
    assert not result.threads
    assert not host.names.asked
