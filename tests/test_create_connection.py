"""`create_connection`: the standard library's, with a policy. Both are run, and compared."""

from __future__ import annotations

import contextlib
import errno
import gc
import http.client
import inspect
import signal
import socket
import xmlrpc.client
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, TypeVar

import kernel
import pytest
from peer import RESET, TIMEOUT, Peer

from safesock import Abort, Cause, Policy, SafeSocket, create_connection

BOTH: Any = [socket.create_connection, create_connection]
# What http.client, smtplib, ftplib and others pass on for "no timeout was given".
NOT_GIVEN: Any = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]

pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


@pytest.fixture(scope="module", autouse=True)
def the_watcher_runs() -> None:
    """Its descriptors are opened once and for all: they are none that a test leaves."""
    with Peer() as one:
        create_connection(one.address).close()


@pytest.fixture
def default_timeout() -> Iterator[Callable[[float | None], None]]:
    before = socket.getdefaulttimeout()
    yield socket.setdefaulttimeout
    socket.setdefaulttimeout(before)


def refusing(family: int, port: int = 0) -> socket.socket:
    """A port that is taken and does not listen, so that it refuses and nobody else takes it."""
    sock = socket.socket(family)
    try:
        # For what is left in TIME_WAIT of connections from that port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", port))
    except OSError:
        sock.close()
        raise
    return sock


Taken = TypeVar("Taken", bound=contextlib.AbstractContextManager[Any])


@contextlib.contextmanager
def and_refusing(take: Callable[[], Taken], port: Callable[[Taken], int], other: int) -> Any:
    """*take* gives something with a port, which is made to refuse in the *other* family."""
    for _ in range(50):
        with take() as taken:
            try:
                refuser = refusing(other, port(taken))
            except OSError:  # Somebody has it.
                continue
            with refuser:
                yield taken
                return
    raise AssertionError("no port is free in both families")


def listening_and_refusing(listening: int, other: int) -> Any:
    return and_refusing(lambda: Peer(listening), lambda peer: peer.address[1], other)


@contextlib.contextmanager
def twice_refusing() -> Iterator[int]:
    """One port that refuses over IPv4 and IPv6."""
    ipv4 = lambda: refusing(socket.AF_INET)  # noqa: E731
    with and_refusing(ipv4, lambda sock: int(sock.getsockname()[1]), socket.AF_INET6) as taken:
        yield taken.getsockname()[1]


def free_port() -> int:
    """A port outside the range that the kernel hands out by itself."""
    for port in range(20000, 32000, 7):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def silent() -> tuple[ExitStack, tuple[str, int]]:
    """An address that answers no SYN: its queue of connections is full."""
    stack = ExitStack()
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(8):
        filler = stack.enter_context(socket.socket())
        filler.settimeout(0.3)
        try:
            filler.connect(listener.getsockname())
        except TimeoutError:
            return stack, listener.getsockname()
    raise AssertionError("the queue does not fill")


def under_way(address: tuple[str, int]) -> set[object]:
    """The connections to *address* that wait for an answer to their SYN."""
    found = kernel.connections().items()
    return {ends for ends, state in found if ends[1] == address and state == "SYN_SENT"}


def failure(call: Callable[[], socket.socket]) -> OSError:
    with pytest.raises(OSError, match=r".") as caught:
        call().close()
    return caught.value


def test_signature_is_the_standard_library_s_plus_policy() -> None:
    theirs = dict(inspect.signature(socket.create_connection).parameters)
    ours = dict(inspect.signature(create_connection).parameters)
    policy = ours.pop("policy")
    assert policy.kind is inspect.Parameter.KEYWORD_ONLY
    assert policy.default is None
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_gives_a_governed_safe_socket(peer46: Peer) -> None:
    policy = Policy(grace=30.0)
    with create_connection(peer46.address, policy=policy) as sock:
        end = peer46.accept()
        assert type(sock) is SafeSocket
        assert sock.policy is policy
        assert sock.getpeername()[:2] == peer46.address
        sock.sendall(b"ping")
        assert end.read(4) == b"ping"
        end.fin()
        assert sock.recv(1) == b""
        assert sock.loss is not None
        assert sock.loss.cause is Cause.FIN
        assert sock.fileno() == -1


def test_policy_is_carried_out(peer: Peer) -> None:
    with create_connection(peer.address, policy=Policy(close=Abort())):
        end = peer.accept()
    assert end.read_to_end() == (b"", RESET)


# Timeouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", [None, 7.5], ids=["no default", "default"])
@pytest.mark.parametrize(
    "arguments",
    [(), (None,), (3.25,), (20,), (NOT_GIVEN,)],
    ids=["not given", "None", "float", "int", "sentinel"],
)
def test_timeout_becomes_the_socket_s(
    peer: Peer,
    default_timeout: Callable[[float | None], None],
    default: float | None,
    arguments: tuple[Any, ...],
) -> None:
    default_timeout(default)
    with (
        socket.create_connection(peer.address, *arguments) as theirs,
        create_connection(peer.address, *arguments) as ours,
    ):
        assert ours.gettimeout() == theirs.gettimeout()
        assert ours.getblocking() == theirs.getblocking()


def test_timeout_0_fails_at_once_as_in_the_standard_library(peer: Peer) -> None:
    theirs = failure(lambda: socket.create_connection(peer.address, timeout=0))
    ours = failure(lambda: create_connection(peer.address, timeout=0))
    assert (type(ours), ours.errno) == (type(theirs), theirs.errno)
    assert ours.errno == errno.EINPROGRESS


def test_an_address_that_never_answers_is_a_timeout() -> None:
    stack, address = silent()
    with stack:
        before = under_way(address)
        error = failure(lambda: create_connection(address, timeout=0.3))
        assert type(error) is TimeoutError
        assert under_way(address) == before


@pytest.mark.parametrize(
    ("timeout", "kind"),
    [(-1, ValueError), (-0.001, ValueError), (float("nan"), ValueError), ("1", TypeError)],
    ids=str,
)
def test_bad_timeouts_are_refused(peer: Peer, timeout: Any, kind: type[Exception]) -> None:
    before = kernel.descriptors()
    with pytest.raises(kind):
        create_connection(peer.address, timeout)
    assert kernel.left_open(before) == []


def test_an_interrupt_in_connect_leaves_nothing_open() -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    stack, address = silent()
    before = kernel.descriptors()
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupted):
            create_connection(address, timeout=TIMEOUT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert kernel.left_open(before) == []
    stack.close()


# Several addresses ----------------------------------------------------------------------------


def families(port: int) -> list[int]:
    """What the name None, this host, resolves to."""
    return [int(info[0]) for info in socket.getaddrinfo(None, port, 0, socket.SOCK_STREAM)]


@pytest.mark.parametrize("create", BOTH, ids=["standard library", "safesock"])
@pytest.mark.parametrize("which", [0, 1], ids=["the first", "the second"])
def test_every_address_of_a_name_is_tried(create: Any, which: int) -> None:
    both = families(80)
    assert sorted(both) == sorted([socket.AF_INET, socket.AF_INET6])
    with (
        listening_and_refusing(both[which], both[1 - which]) as peer,
        create((None, peer.address[1]), timeout=TIMEOUT) as sock,
    ):
        assert sock.family == both[which]
        assert sock.getpeername()[:2] == peer.address
        peer.accept().say(b"hello")
        assert sock.recv(5) == b"hello"


def test_an_address_that_the_source_does_not_fit_is_passed_over() -> None:
    """The source address is an IPv4 one, and ::1 comes first."""
    source = ("127.0.0.2", 0)
    with Peer() as peer, create_connection((None, peer.address[1]), TIMEOUT, source) as sock:
        assert sock.getsockname()[0] == "127.0.0.2"


@pytest.mark.parametrize("all_errors", [False, True])
def test_when_no_address_answers_the_errors_are_the_standard_library_s(all_errors: bool) -> None:
    with twice_refusing() as port:
        shapes = []
        for create in BOTH:
            with pytest.raises((OSError, ExceptionGroup)) as caught:
                create((None, port), TIMEOUT, all_errors=all_errors)
            error = caught.value
            inner = error.exceptions if isinstance(error, ExceptionGroup) else ()
            shapes.append((type(error), error.args[0], [(type(e), e.args) for e in inner]))
    assert shapes[0] == shapes[1]
    assert len(shapes[1][2]) == (2 if all_errors else 0)


@pytest.mark.parametrize("all_errors", [False, True])
def test_a_failure_leaves_no_reference_cycle(all_errors: bool) -> None:
    with (
        twice_refusing() as port,
        no_refusal_is_left(),
        contextlib.suppress(OSError, ExceptionGroup),
    ):
        create_connection((None, port), all_errors=all_errors)


def test_a_success_after_a_failure_leaves_no_reference_cycle() -> None:
    first, second = families(80)
    with listening_and_refusing(second, first) as peer, no_refusal_is_left():
        create_connection((None, peer.address[1])).close()


@contextlib.contextmanager
def no_refusal_is_left() -> Iterator[None]:
    """What is made meanwhile goes without the garbage collector."""
    gc.collect()
    before = refusals()
    gc.disable()
    try:
        yield
        assert refusals() - before == set()
    finally:
        gc.enable()


def refusals() -> set[int]:
    return {id(one) for one in gc.get_objects() if isinstance(one, ConnectionRefusedError)}


@pytest.mark.parametrize(
    "address",
    [("127.0.0.1", "no-such-service"), ("x" * 64, 80), ("127.0.0.1",), "127.0.0.1:80", None],
    ids=["service", "name", "no port", "text", "None"],
)
def test_what_does_not_resolve_fails_as_in_the_standard_library(address: Any) -> None:
    errors = []
    for create in BOTH:
        with pytest.raises((OSError, ValueError, TypeError)) as caught:
            create(address)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_refused() -> None:
    with refusing(socket.AF_INET) as sock:
        error = failure(lambda: create_connection(sock.getsockname(), TIMEOUT))
        assert type(error) is ConnectionRefusedError
        assert error.errno == errno.ECONNREFUSED


# A fixed source port --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixed", "choice", "expected"),
    [(True, None, 1), (False, None, 0), (True, False, 0), (False, True, 1)],
)
def test_reuse_address_is_set_for_a_fixed_port(
    peer: Peer, fixed: bool, choice: bool | None, expected: int
) -> None:
    port = free_port() if fixed else 0
    policy = Policy(close=Abort(), reuse_address=choice)
    with create_connection(peer.address, TIMEOUT, ("127.0.0.1", port), policy=policy) as sock:
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)) == bool(expected)
        assert sock.getsockname()[0] == "127.0.0.1"
        assert sock.getsockname()[1] == port or not fixed


@pytest.mark.parametrize("first", ["we", "the peer"])
def test_a_fixed_port_is_used_again_right_after(peer: Peer, first: str) -> None:
    """Ten connections, one after the other, whoever closes first."""
    source = ("127.0.0.1", free_port())
    for turn in range(10):
        with create_connection(peer.address, TIMEOUT, source) as sock:
            end = peer.accept()
            assert sock.getsockname() == source
            if first == "the peer":
                end.fin()
                assert sock.recv(1) == b""
            else:
                sock.sendall(b"%d" % turn)
                assert end.read(1) == b"%d" % turn
        end.close()
    assert kernel.state(source, peer.address) in (None, "TIME_WAIT", "LAST_ACK")


def test_a_busy_port_is_told_and_nothing_left_open(peer: Peer) -> None:
    with Peer() as holder:
        before = kernel.descriptors()
        error = failure(lambda: create_connection(peer.address, TIMEOUT, holder.address))
        assert error.errno == errno.EADDRINUSE
        assert kernel.left_open(before) == []


# Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["close", Abort(), Policy, 5, {}], ids=repr)
def test_a_wrong_policy_is_refused_before_anything_is_opened(peer: Peer, policy: Any) -> None:
    with pytest.raises(TypeError, match=r"safesock\.Policy"):
        create_connection(peer.address, policy=policy)
    assert peer.nobody_waits()


# Protocol clients -----------------------------------------------------------------------------

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: text/xml\r\n\r\n%s"


def serve_one(peer: Peer, body: bytes) -> None:
    end = peer.accept()
    request = b""
    while b"\r\n\r\n" not in request:
        request += end.sock.recv(65536)
    end.say(ANSWER % (len(body), body))
    end.fin()


def ask(client: http.client.HTTPConnection) -> bytes:
    client.request("GET", "/")
    return client.getresponse().read()


def test_http_client_on_top(peer: Peer, default_timeout: Callable[[float | None], None]) -> None:
    """It passes the standard library's sentinel on."""
    default_timeout(TIMEOUT)
    client: Any = http.client.HTTPConnection(*peer.address)
    client._create_connection = create_connection
    with ThreadPoolExecutor(1) as thread, closing(client):
        served = thread.submit(serve_one, peer, b"body")
        client.request("GET", "/")
        sock = client.sock
        assert isinstance(sock, SafeSocket)
        assert sock.gettimeout() == TIMEOUT
        assert client.getresponse().read() == b"body"
        served.result(TIMEOUT)
        local = sock.getsockname()
        kernel.wait_until(lambda: kernel.state(local, peer.address) != "ESTABLISHED")
        with pytest.raises(ConnectionError):
            ask(client)
        assert kernel.state(local, peer.address) != "CLOSE_WAIT"


def test_xmlrpc_client_on_top(peer: Peer) -> None:
    class Transport(xmlrpc.client.Transport):
        def make_connection(self, host: Any) -> http.client.HTTPConnection:
            client: Any = super().make_connection(host)
            client._create_connection = create_connection
            connection: http.client.HTTPConnection = client
            return connection

    answer = xmlrpc.client.dumps((42,), methodresponse=True).encode()
    url = "http://{}:{}".format(*peer.address)
    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(serve_one, peer, answer)
        with xmlrpc.client.ServerProxy(url, transport=Transport()) as proxy:
            assert proxy.answer() == 42
        served.result(TIMEOUT)


def test_a_host_with_a_null_is_refused() -> None:
    """In C it ends there: the connection would go to another host."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = ("127.0.0.1\0.example.com", listener.getsockname()[1])
        with pytest.raises(ValueError, match="null character"):
            create_connection(address, TIMEOUT)
