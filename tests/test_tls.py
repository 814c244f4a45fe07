"""TLS: `secure`, `SafeSSLSocket` and `wrap`, beside the standard library's `SSLSocket`."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import io
import os
import select
import signal
import socket
import ssl
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterator
from operator import methodcaller
from typing import Any

import kernel
import pytest
from peer import EOF, RESET, TIMEOUT
from tls_peer import NAME, Certificates, TlsEnd, TlsPeer, done

from safesock import (
    Abort,
    Cause,
    Drain,
    Graceful,
    Linger,
    Loss,
    Policy,
    SafeSocket,
    SafeSSLSocket,
    create_connection,
    secure,
    wrap,
)

QUIET = Policy(watch=False)
MODES: Any = [Graceful(), Drain(0.5), Linger(1), Abort()]


@pytest.fixture(scope="session")
def certificates() -> Certificates:
    return Certificates()


@pytest.fixture
def tls(certificates: Certificates) -> Iterator[TlsPeer]:
    with TlsPeer(certificates.server()) as one:
        yield one


@pytest.fixture(params=["1.2", "1.3"], ids=["TLS 1.2", "TLS 1.3"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    return certificates.client()


@pytest.fixture
def context23(certificates: Certificates, version: str) -> ssl.SSLContext:
    """Once TLS 1.2, once 1.3."""
    return certificates.client(version)


def loss_of(sock: SafeSocket) -> Loss | None:
    """A call, as mypy would take an attribute to stay what it was."""
    return sock.loss


def lost(sock: Any) -> Loss:
    loss = loss_of(sock)
    assert loss is not None
    return loss


def connect(
    tls: TlsPeer, context: ssl.SSLContext, policy: Policy | None = QUIET, **options: Any
) -> tuple[Any, TlsEnd]:
    """A connection after its handshake; *policy* None: an SSLSocket of the standard library."""
    accepted = tls.begin(tls.accept_and_shake)
    if policy is None:
        plain = socket.create_connection(tls.address, TIMEOUT)
    else:
        plain = create_connection(tls.address, TIMEOUT, policy=policy)
        secure(context)
    sock = context.wrap_socket(plain, server_hostname=NAME, **options)
    return sock, done(accepted)


def taken_over(
    tls: TlsPeer, context: ssl.SSLContext, policy: Policy | None = QUIET, **options: Any
) -> tuple[Any, TlsEnd]:
    """As `connect`, by `wrap` of an established SSLSocket."""
    sock, end = connect(tls, context, None, **options)
    return (sock if policy is None else wrap(sock, policy)), end


WAYS: Any = {"secure": connect, "wrap": taken_over}
by_secure_and_wrap = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def wait_for_the_end(sock: Any) -> None:
    """Until the peer's FIN or RST is there."""
    kernel.wait_until(lambda: kernel.state_of(sock) in ("CLOSE_WAIT", "CLOSE"))


def wait_for_the_reset(sock: Any) -> None:
    kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE")


def readable(sock: Any) -> bool:
    return bool(select.select([sock], [], [], TIMEOUT)[0])


# What the peer does, and how the kernel shows that it has arrived.


def notify_and_fin(end: TlsEnd) -> None:
    end.close_notify()
    end.fin()


def fin_only(end: TlsEnd) -> None:
    end.fin()


def rst(end: TlsEnd) -> None:
    end.rst()


def goodbye_and_fin(end: TlsEnd) -> None:
    end.say(b"goodbye")
    end.fin()


def goodbye_notify_and_fin(end: TlsEnd) -> None:
    end.say(b"goodbye")
    notify_and_fin(end)


def half_a_record_and_fin(end: TlsEnd) -> None:
    end.say_in_clear(b"\x17\x03\x03\x00\x50half")
    end.fin()


ENDS = [
    notify_and_fin,
    fin_only,
    rst,
    goodbye_and_fin,
    goodbye_notify_and_fin,
    half_a_record_and_fin,
]
by_end = pytest.mark.parametrize("act", ENDS, ids=lambda act: act.__name__)


def read_file(sock: Any) -> bytes:
    with sock.makefile("rb") as file:
        return bytes(file.read())


def read_line(sock: Any) -> bytes:
    with sock.makefile("rb") as file:
        return bytes(file.readline())


def read_by_iteration(sock: Any) -> list[bytes]:
    with sock.makefile("rb") as file:
        return list(file)


def recv_into(sock: Any) -> tuple[int, bytes]:
    buffer = bytearray(100)
    return sock.recv_into(buffer), bytes(buffer)


def read_into(sock: Any) -> tuple[int, bytes]:
    buffer = bytearray(100)
    return sock.read(100, buffer), bytes(buffer)


READS: list[Callable[[Any], Any]] = [
    lambda sock: sock.recv(100),
    lambda sock: sock.read(100),
    lambda sock: sock.read(),
    recv_into,
    read_into,
    read_file,
    read_line,
    read_by_iteration,
]
READ_NAMES = ["recv", "read", "read()", "recv_into", "read_into", "file", "readline", "iteration"]
WRITES: list[Callable[[Any], Any]] = [
    lambda sock: sock.send(b"data"),
    lambda sock: sock.sendall(b"data"),
    lambda sock: sock.write(b"data"),
    lambda sock: sock.sendfile(io.BytesIO(b"data")),
]
WRITE_NAMES = ["send", "sendall", "write", "sendfile"]


def outcome(call: Callable[[Any], Any], sock: Any) -> object:
    try:
        return call(sock)
    except (OSError, ValueError) as error:
        return type(error), error.args


# What is made -----------------------------------------------------------------------------------


def test_secure_changes_the_context_and_gives_it_back(context: ssl.SSLContext) -> None:
    assert secure(context) is context
    assert issubclass(context.sslsocket_class, SafeSSLSocket)
    assert issubclass(SafeSSLSocket, ssl.SSLSocket)
    assert issubclass(SafeSSLSocket, SafeSocket)


@pytest.mark.parametrize("what", [None, "context", ssl.SSLContext, object()], ids=str)
def test_secure_takes_only_a_context(what: Any) -> None:
    with pytest.raises(TypeError, match=r"ssl\.SSLContext"):
        secure(what)


@pytest.mark.parametrize("policy", ["abort", Abort(), Policy, 0, False], ids=str)
def test_secure_refuses_a_wrong_policy(context: ssl.SSLContext, policy: Any) -> None:
    with pytest.raises(TypeError, match=r"safesock\.Policy"):
        secure(context, policy)
    assert context.sslsocket_class is ssl.SSLSocket


def test_there_is_no_public_constructor() -> None:
    with pytest.raises(TypeError, match="wrap_socket"):
        SafeSSLSocket()


@by_secure_and_wrap
def test_data_goes_both_ways(tls: TlsPeer, context23: ssl.SSLContext, way: Any) -> None:
    sock, end = way(tls, context23)
    with sock:
        assert isinstance(sock, SafeSSLSocket)
        sock.sendall(b"ping" * 10000)
        assert end.read(40000) == b"ping" * 10000
        end.say(b"pong" * 10000)
        assert sock.recv(4) == b"pong"
        buffer = bytearray(4)
        assert sock.recv_into(buffer) == 4
        assert buffer == b"pong"
        with sock.makefile("rwb") as file:
            assert file.read(39992) == b"pong" * 9998
            file.write(b"line\n")
            file.flush()
        assert end.read(5) == b"line\n"
        assert sock.version() in ("TLSv1.2", "TLSv1.3")
        assert sock.cipher()
        assert sock.getpeercert()
        assert loss_of(sock) is None


def test_what_the_inner_safe_socket_has_carries_over(tls: TlsPeer, context: ssl.SSLContext) -> None:
    policy = Policy(watch=False, close=Abort(), on_loss="keep")
    secure(context, Policy())
    accepted = tls.begin(tls.accept_and_shake)
    inner = create_connection(tls.address, TIMEOUT, policy=policy)
    connection = inner._connection
    assert connection is not None
    born = connection.born
    with context.wrap_socket(inner, server_hostname=NAME) as sock:
        assert isinstance(sock, SafeSSLSocket)
        assert inner.fileno() == -1
        assert sock.policy is policy
        done(accepted).fin()
        assert sock.recv(1) == b""
        loss = lost(sock)
        assert loss.connection == connection.number
        assert loss.peer == tls.address
        assert sock._connection is not None
        assert sock._connection.born == born


def test_a_plain_socket_inside_gets_the_context_s_policy(
    tls: TlsPeer, context: ssl.SSLContext
) -> None:
    policy = Policy(close=Abort(), watch=False, nodelay=True)
    secure(context, policy)
    accepted = tls.begin(tls.accept_and_shake)
    plain = socket.create_connection(tls.address, TIMEOUT)
    with context.wrap_socket(plain, server_hostname=NAME) as sock:
        assert isinstance(sock, SafeSSLSocket)
        assert sock.policy is policy
        assert plain.fileno() == -1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        linger = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        assert struct.unpack("ii", linger) == (1, 0)
        end = done(accepted)
    assert end.read_to_end()[1] == RESET


def test_secure_again_changes_the_policy(context: ssl.SSLContext) -> None:
    first, second = Policy(watch=False, grace=2.0), Policy(watch=False, grace=3.0)
    secure(secure(context, first), second)
    with context.wrap_socket(socket.socket(), server_hostname=NAME) as sock:
        assert isinstance(sock, SafeSSLSocket)
        assert sock.policy is second


def test_contexts_do_not_share_their_policies(certificates: Certificates) -> None:
    policies = [Policy(grace=2.0), Policy(grace=3.0)]
    contexts = [secure(certificates.client(), policy) for policy in policies]
    for one, policy in zip(contexts, policies, strict=True):
        with one.wrap_socket(socket.socket(), server_hostname=NAME) as sock:
            assert isinstance(sock, SafeSSLSocket)
            assert sock.policy is policy


def test_server_side_sockets_are_left_alone(
    certificates: Certificates, context: ssl.SSLContext
) -> None:
    server = secure(certificates.server(), Policy(close=Abort()))
    with TlsPeer(server) as listening:
        client = listening.begin(
            lambda: context.wrap_socket(
                socket.create_connection(listening.address, TIMEOUT), server_hostname=NAME
            )
        )
        accepted, _ = listening.listener.accept()
        accepted.settimeout(TIMEOUT)
        with server.wrap_socket(accepted, server_side=True) as sock:
            other = done(client)
            other.sendall(b"x")
            assert sock.recv(1) == b"x"
            other.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
            assert sock.recv(1) == b""
            assert sock.fileno() >= 0
            assert kernel.state_of(sock) == "CLOSE_WAIT"
            assert isinstance(sock, SafeSSLSocket)
            assert loss_of(sock) is None
            other.close()


# The handshake ----------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [socket.socket, SafeSocket])
@pytest.mark.parametrize("ex", [False, True], ids=["connect", "connect_ex"])
def test_unconnected_wrap_socket_then_connect(
    tls: TlsPeer, context: ssl.SSLContext, inner: Any, ex: bool
) -> None:
    secure(context, QUIET)
    with context.wrap_socket(inner(), server_hostname=NAME) as sock:
        assert isinstance(sock, SafeSSLSocket)
        sock.settimeout(TIMEOUT)
        accepted = tls.begin(tls.accept_and_shake)
        assert not (sock.connect_ex if ex else sock.connect)(tls.address)
        end = done(accepted)
        end.say(b"hello")
        assert sock.recv(5) == b"hello"
        notify_and_fin(end)
        assert sock.recv(5) == b""
        assert lost(sock).peer == tls.address
        assert sock.fileno() == -1


def test_unconnected_wrapped_then_connected(tls: TlsPeer, context: ssl.SSLContext) -> None:
    """`wrap` of an SSLSocket that has no connection yet."""
    plain = context.wrap_socket(socket.socket(), server_hostname=NAME)
    with wrap(plain, QUIET) as sock:
        assert isinstance(sock, SafeSSLSocket)
        assert plain.fileno() == -1
        sock.settimeout(TIMEOUT)
        accepted = tls.begin(tls.accept_and_shake)
        sock.connect(tls.address)
        end = done(accepted)
        end.say(b"hello")
        assert sock.recv(5) == b"hello"
        end.fin()
        assert sock.recv(5) == b""
        assert sock.fileno() == -1


def test_a_refused_connect_is_no_loss(context: ssl.SSLContext) -> None:
    secure(context, QUIET)
    with socket.socket() as port, context.wrap_socket(socket.socket(), server_hostname=NAME) as s:
        port.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            s.connect(port.getsockname())
        assert isinstance(s, SafeSSLSocket)
        assert loss_of(s) is None
        assert s.fileno() >= 0


@by_secure_and_wrap
def test_the_handshake_may_come_later(tls: TlsPeer, context23: ssl.SSLContext, way: Any) -> None:
    accepted = tls.begin(tls.accept_tls)
    secure(context23, QUIET) if way is connect else None
    plain = socket.create_connection(tls.address, TIMEOUT)
    sock: Any = context23.wrap_socket(plain, server_hostname=NAME, do_handshake_on_connect=False)
    sock = sock if way is connect else wrap(sock, QUIET)
    with sock:
        end = done(accepted)
        shaken = tls.begin(end.handshake)
        sock.do_handshake()
        done(shaken)
        end.say(b"hello")
        assert sock.recv(5) == b"hello"


@by_secure_and_wrap
def test_non_blocking_handshake_and_reads(
    tls: TlsPeer, context23: ssl.SSLContext, way: Any
) -> None:
    accepted = tls.begin(tls.accept_tls)
    secure(context23, QUIET) if way is connect else None
    plain = socket.create_connection(tls.address, TIMEOUT)
    plain.setblocking(False)
    sock: Any = context23.wrap_socket(plain, server_hostname=NAME, do_handshake_on_connect=False)
    sock = sock if way is connect else wrap(sock, QUIET)
    with sock:
        with pytest.raises(ssl.SSLWantReadError):
            sock.do_handshake()
        end = done(accepted)
        shaken = tls.begin(end.handshake)
        for _ in range(100):
            assert readable(sock)
            with contextlib.suppress(ssl.SSLWantReadError):
                sock.do_handshake()
                break
        done(shaken)
        assert sock.gettimeout() == 0.0
        end.say(b"hello")
        assert read_when_ready(sock) == b"hello"
        with pytest.raises(ssl.SSLWantReadError):
            sock.recv(5)
        assert loss_of(sock) is None
        end.close_notify()
        assert read_when_ready(sock) == b""
        assert sock.fileno() == -1


def read_when_ready(sock: Any) -> bytes:
    """In non-blocking mode; session tickets come before data."""
    for _ in range(100):
        assert readable(sock)
        with contextlib.suppress(ssl.SSLWantReadError):
            return bytes(sock.recv(100))
    raise AssertionError("always readable, and never anything to read")


def test_a_handshake_on_a_non_blocking_socket_is_refused_as_in_the_standard_library(
    tls: TlsPeer, context: ssl.SSLContext
) -> None:
    secure(context, QUIET)
    before = kernel.descriptors()
    plain = socket.create_connection(tls.address)
    plain.setblocking(False)
    with pytest.raises(ValueError, match="non-blocking"):
        context.wrap_socket(plain, server_hostname=NAME)
    assert kernel.descriptors() == before


def cut_handshake(tls: TlsPeer, how: str) -> None:
    """Accepts, reads all of the ClientHello, and answers with no TLS."""
    end = tls.accept_tls()
    assert end.sock.recv(65536)
    if how == "garbage":
        end.say_in_clear(b"220 mail.example.org ESMTP\r\n")
    elif how == "rst":
        end.rst()
    else:
        end.fin()


@pytest.mark.parametrize("how", ["fin", "rst"])
@by_secure_and_wrap
def test_a_connection_lost_in_the_handshake(
    tls: TlsPeer, certificates: Certificates, version: str, way: Any, how: str
) -> None:
    errors = []
    for policy in (None, QUIET):
        context = certificates.client(version)
        cut = tls.begin(cut_handshake, tls, how)
        plain = socket.create_connection(tls.address, TIMEOUT)
        if policy and way is connect:
            secure(context, policy)
        sock: Any = context.wrap_socket(plain, server_hostname=NAME, do_handshake_on_connect=False)
        if policy and way is taken_over:
            sock = wrap(sock, policy)
        with sock:
            with pytest.raises(OSError, match=r".") as caught:
                sock.do_handshake()
            errors.append((type(caught.value), caught.value.args))
            done(cut)
            if policy:
                assert lost(sock).cause is (Cause.RST if how == "rst" else Cause.FIN)
                assert repr(lost(sock).error) == repr(caught.value)
                assert sock.fileno() == -1
                assert sock.recv(1) == b""
                with pytest.raises(BrokenPipeError):
                    sock.send(b"x")
    assert errors[0] == errors[1]


@pytest.mark.parametrize("how", ["fin", "rst", "garbage"])
@pytest.mark.parametrize("late", [False, True], ids=["wrap_socket", "connect"])
def test_a_failed_handshake_leaves_nothing_open(
    tls: TlsPeer, context: ssl.SSLContext, how: str, late: bool
) -> None:
    secure(context, QUIET)
    before = kernel.descriptors() - {end.sock.fileno() for end in tls.ends}
    cut = tls.begin(cut_handshake, tls, how)
    if late:
        with context.wrap_socket(SafeSocket(), server_hostname=NAME) as sock:
            sock.settimeout(TIMEOUT)
            with pytest.raises(OSError, match=r"."):
                sock.connect(tls.address)
    else:
        plain = socket.create_connection(tls.address, TIMEOUT)
        with pytest.raises(OSError, match=r"."):
            context.wrap_socket(plain, server_hostname=NAME)
    done(cut)
    assert kernel.descriptors() - {end.sock.fileno() for end in tls.ends} == before


def test_a_certificate_that_does_not_verify_is_no_loss(
    tls: TlsPeer, context: ssl.SSLContext
) -> None:
    secure(context, QUIET)
    accepted = tls.begin(tls.accept_and_shake)
    plain = socket.create_connection(tls.address, TIMEOUT)
    with context.wrap_socket(
        plain, server_hostname="example.org", do_handshake_on_connect=False
    ) as sock:
        with pytest.raises(ssl.SSLCertVerificationError):
            sock.do_handshake()
        assert isinstance(sock, SafeSSLSocket)
        assert loss_of(sock) is None
        assert sock.fileno() >= 0
    assert accepted.exception(TIMEOUT) is not None


def test_a_wrong_call_leaves_the_socket_with_its_caller(
    tls: TlsPeer, context: ssl.SSLContext
) -> None:
    """check_hostname without a name: nothing has been taken yet."""
    secure(context, QUIET)
    with create_connection(tls.address, TIMEOUT) as plain:
        with pytest.raises(ValueError, match="server_hostname"):
            context.wrap_socket(plain)
        plain.sendall(b"ping")
        assert tls.accept_tls().sock.recv(4) == b"ping"


# A loss is told as in the standard library ------------------------------------------------------


@by_end
@pytest.mark.parametrize("suppress", [True, False], ids=["suppress", "strict"])
@pytest.mark.parametrize("read", READS, ids=READ_NAMES)
def test_reading_meets_the_end_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, act: Any, suppress: bool, read: Any
) -> None:
    both = []
    for policy in (None, QUIET):
        sock, end = connect(tls, certificates.client(), policy, suppress_ragged_eofs=suppress)
        with sock:
            act(end)
            wait_for_the_end(sock)
            told = [outcome(read, sock)]
            if told[0] in (b"goodbye", (7, b"goodbye" + bytes(93))):
                told.append(outcome(read, sock))
            both.append(told)
            if policy:
                assert lost(sock).cause is (Cause.RST if act is rst else Cause.FIN)
                assert sock.fileno() == -1
                assert kernel.state(lost(sock).local, tls.address) != "CLOSE_WAIT"
                assert sock.recv(1) == b""
    assert both[0] == both[1]


@pytest.mark.parametrize("suppress", [True, False], ids=["suppress", "strict"])
@by_end
@by_secure_and_wrap
def test_the_error_is_in_the_loss(
    tls: TlsPeer, certificates: Certificates, version: str, act: Any, suppress: bool, way: Any
) -> None:
    """That which the standard library raises when it suppresses none."""
    errors = []
    for policy, hide in ((None, False), (QUIET, suppress)):
        sock, end = way(tls, certificates.client(version), policy, suppress_ragged_eofs=hide)
        with sock:
            act(end)
            wait_for_the_end(sock)
            error = read_to_the_end(sock)
            error = lost(sock).error if policy else error
            errors.append((type(error), error and error.args))
    assert errors[0] == errors[1]


def read_to_the_end(sock: Any) -> BaseException | None:
    try:
        while sock.recv(100):
            pass
    except OSError as error:
        return error
    return None


@pytest.mark.parametrize(
    "timeout", [None, 0.0, TIMEOUT], ids=["blocking", "non-blocking", "timeout"]
)
@by_end
@by_secure_and_wrap
def test_every_mode_meets_the_end(
    tls: TlsPeer, certificates: Certificates, act: Any, timeout: float | None, way: Any
) -> None:
    both = []
    for policy in (None, QUIET):
        sock, end = way(tls, certificates.client(), policy)
        with sock:
            sock.settimeout(timeout)
            act(end)
            wait_for_the_end(sock)
            both.append([outcome(lambda sock: sock.recv(100), sock) for _ in range(2)])
            assert policy is None or sock.fileno() == -1
    if both[0][0] != b"goodbye":  # After the end the standard library goes on trying.
        both = [told[:1] for told in both]
    assert both[0] == both[1]


@pytest.mark.parametrize("write", WRITES, ids=WRITE_NAMES)
@pytest.mark.parametrize("act", [notify_and_fin, fin_only, rst], ids=lambda act: act.__name__)
@by_secure_and_wrap
def test_writing_meets_the_end_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, act: Any, write: Any, way: Any
) -> None:
    """After a FIN the first write seems to succeed, and is answered with RST."""
    both = []
    for policy in (None, QUIET):
        sock, end = way(tls, certificates.client(), policy)
        with sock:
            act(end)
            wait_for_the_end(sock)
            told = [outcome(write, sock)]
            if act is not rst:
                wait_for_the_reset(sock)
                told.append(outcome(write, sock))
            both.append(told)
            if policy:
                assert lost(sock).cause is Cause.RST
                assert sock.fileno() == -1
                for again in WRITES:
                    with pytest.raises(BrokenPipeError):
                        again(sock)
                assert sock.recv(1) == b""
    assert both[0] == both[1]


def test_close_notify_alone_ends_the_connection(tls: TlsPeer, context23: ssl.SSLContext) -> None:
    sock, end = connect(tls, context23)
    with sock:
        end.close_notify()
        assert sock.recv(1) == b""
        assert (lost(sock).cause, lost(sock).error) == (Cause.FIN, None)
        assert sock.fileno() == -1
        assert end.read_to_end()[1] == EOF


def test_no_loss_in_timeouts_and_empty_reads(tls: TlsPeer, context23: ssl.SSLContext) -> None:
    sock, end = connect(tls, context23)
    with sock:
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(TIMEOUT)
        assert sock.recv(0) == b""
        assert sock.read(0) == b""
        assert loss_of(sock) is None
        end.say(b"x")
        assert sock.recv(1) == b"x"


def test_garbage_amid_data_is_an_error_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates
) -> None:
    both = []
    for policy in (None, QUIET):
        sock, end = connect(tls, certificates.client(), policy)
        with sock:
            end.say_in_clear(b"this is no TLS record at all")
            both.append(outcome(lambda sock: sock.recv(100), sock))
    assert both[0] == both[1]


@by_secure_and_wrap
@by_end
def test_after_a_loss_questions_are_answered_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, version: str, way: Any, act: Any
) -> None:
    questions: Any = [
        *("version", "cipher", "compression", "shared_ciphers", "getpeercert", "pending"),
        *("selected_alpn_protocol", "getpeername", "gettimeout"),
    ]
    both = []
    for policy in (None, QUIET):
        sock, end = way(tls, certificates.client(version), policy)
        with sock:
            local = sock.getsockname()
            act(end)
            wait_for_the_end(sock)
            read_to_the_end(sock)
            both.append([outcome(methodcaller(name), sock) for name in questions])
            assert policy is None or sock.getsockname() == local
            assert sock.session_reused is False
            assert isinstance(sock.get_channel_binding(), (bytes, type(None)))
    # RST: the kernel has no peer any more; a SafeSocket remembers.
    at = questions.index("getpeername")
    assert both[1][at] == tls.address
    assert [both[0][:at], both[0][at + 1 :]] == [both[1][:at], both[1][at + 1 :]]


@by_secure_and_wrap
@by_end
def test_after_a_loss_nothing_is_sent(
    tls: TlsPeer, context: ssl.SSLContext, way: Any, act: Any
) -> None:
    sock, end = way(tls, context)
    with sock:
        act(end)
        wait_for_the_end(sock)
        read_to_the_end(sock)
        assert "lost by" in repr(sock)
        with pytest.raises(BrokenPipeError):
            sock.do_handshake()
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")
        assert sock.unwrap() is sock
        assert sock.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")


# What the policy says ---------------------------------------------------------------------------


@by_secure_and_wrap
def test_release_leaves_the_descriptor_and_lets_one_send_succeed(
    tls: TlsPeer, certificates: Certificates, way: Any
) -> None:
    both = []
    for policy in (None, Policy(watch=False, on_loss="release")):
        sock, end = way(tls, certificates.client(), policy)
        with sock:
            notify_and_fin(end)
            told: list[object] = [sock.recv(10), sock.recv(10), sock.fileno() >= 0]
            if policy:
                assert lost(sock).cause is Cause.FIN
                assert kernel.state_of(sock) != "CLOSE_WAIT"
                assert sock.getpeername() == tls.address
            told.append(outcome(WRITES[0], sock))
            wait_for_the_reset(sock)
            told.append(outcome(WRITES[0], sock))
            told.append(outcome(WRITES[0], sock))
            both.append(told)
    assert both[0] == both[1]


@by_secure_and_wrap
def test_keep_only_records(tls: TlsPeer, context: ssl.SSLContext, way: Any) -> None:
    sock, end = way(tls, context, Policy(watch=False, on_loss="keep"))
    with sock:
        end.close_notify()
        end.half_close()
        assert sock.recv(1) == b""
        assert lost(sock).cause is Cause.FIN
        assert kernel.state_of(sock) == "CLOSE_WAIT"
        sock.sendall(b"still talking")
        assert end.read(13) == b"still talking"


@pytest.mark.parametrize(
    ("close", "on_loss", "act"),
    [(mode, "close", goodbye_and_fin) for mode in MODES]
    + [(Graceful(), on_loss, goodbye_notify_and_fin) for on_loss in ("close", "release", "keep")],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
@by_secure_and_wrap
def test_unread_plain_text_survives_the_watcher(
    tls: TlsPeer, context: ssl.SSLContext, on_loss: Any, act: Any, close: Any, way: Any
) -> None:
    sock, end = way(tls, context, Policy(close=close, grace=0.01, on_loss=on_loss))
    with sock:
        end.say(b"a line\n" * 5000)
        end.say(b"first ")
        act(end)
        kernel.wait_until(lambda: loss_of(sock) is not None, "the watcher has stepped in")
        if on_loss != "keep":
            kernel.wait_until(lambda: kernel.state_of(sock) != "CLOSE_WAIT")
        assert read_file(sock) == b"a line\n" * 5000 + b"first goodbye"
        assert sock.recv(1) == b""


@by_secure_and_wrap
def test_decrypted_bytes_survive_the_watcher_and_count_as_unread(
    tls: TlsPeer, context: ssl.SSLContext, way: Any
) -> None:
    sock, end = way(tls, context, Policy(grace=0.01))
    with sock:
        end.say(b"x" * 100)
        assert sock.recv(10) == b"x" * 10
        assert sock.pending() == 90
        end.fin()
        kernel.wait_until(lambda: loss_of(sock) is not None, "the watcher has stepped in")
        assert lost(sock).unread == 90
        assert sock.recv(100) == b"x" * 90
        assert sock.recv(100) == b""


@by_secure_and_wrap
@pytest.mark.parametrize("how", ["close", "loss"])
def test_decrypted_bytes_count_as_unread(
    tls: TlsPeer, context: ssl.SSLContext, way: Any, how: str
) -> None:
    sock, end = way(tls, context)
    with sock:
        end.say(b"x" * 100)
        assert sock.recv(10) == b"x" * 10
        if how == "close":
            sock.close()
            record = sock.close_report
        else:
            end.rst()
            wait_for_the_end(sock)
            with pytest.raises(OSError, match=r"."):
                sock.send(b"data")
            record = sock.loss
        assert record.unread == 90


@by_secure_and_wrap
@pytest.mark.parametrize("close", MODES, ids=repr)
def test_close_does_on_the_wire_what_the_policy_says(
    tls: TlsPeer, context23: ssl.SSLContext, close: Any, way: Any
) -> None:
    """With unread input, session tickets among it, and with a duplicate descriptor."""
    sock, end = way(tls, context23, Policy(close=close, watch=False))
    end.say(b"never read")
    assert readable(sock)
    duplicate = os.dup(sock.fileno())
    try:
        if isinstance(close, Drain):
            end.half_close()
        sock.close()
        assert end.read_to_end() == (b"", RESET if isinstance(close, Abort) else EOF)
        assert sock.close_report.reset is isinstance(close, Abort)
    finally:
        os.close(duplicate)


def test_close_sends_no_close_notify_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, version: str
) -> None:
    for policy in (None, QUIET):
        sock, end = connect(tls, certificates.client(version), policy)
        sock.close()
        assert end.read_to_end()[0] == b""


# unwrap -----------------------------------------------------------------------------------------


@by_secure_and_wrap
@pytest.mark.parametrize("first", ["we", "the peer"])
def test_unwrap_leaves_a_governed_connection_in_clear_text(
    tls: TlsPeer, context23: ssl.SSLContext, way: Any, first: str
) -> None:
    sock, end = way(tls, context23)
    with sock:
        if first == "the peer":
            end.close_notify()
            assert sock.unwrap() is sock
            end.answer_close_notify()
        else:
            answered = tls.begin(end.answer_close_notify)
            assert sock.unwrap() is sock
            done(answered)
        assert loss_of(sock) is None
        assert sock.version() is None
        end.say_in_clear(b"in the clear")
        assert sock.recv(100) == b"in the clear"
        if first == "we":
            sock.sendall(b"me too")
            assert end.sock.recv(6) == b"me too"
        end.fin()
        assert sock.recv(100) == b""
        assert lost(sock).cause is Cause.FIN
        assert sock.fileno() == -1


@pytest.mark.parametrize("written", [False, True], ids=["idle", "after a write"])
@pytest.mark.parametrize("act", [notify_and_fin, fin_only, rst], ids=lambda act: act.__name__)
@by_secure_and_wrap
def test_unwrap_meets_the_end_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, act: Any, written: bool, way: Any
) -> None:
    both = []
    for policy in (None, QUIET):
        sock, end = way(tls, certificates.client(), policy)
        with sock:
            act(end)
            wait_for_the_end(sock)
            if written and act is not rst:
                sock.send(b"data")
                wait_for_the_reset(sock)
            told = outcome(lambda sock: sock.unwrap() is sock, sock)
            both.append(told)
            if policy and told is not True:
                assert lost(sock)
                assert sock.fileno() == -1
    assert both[0] == both[1]


# wrap of an established SSLSocket ---------------------------------------------------------------


def test_wrap_moves_the_session(tls: TlsPeer, context23: ssl.SSLContext) -> None:
    old, end = connect(tls, context23, None)
    facts = (old.version(), old.cipher(), old.getpeercert(), old.server_hostname)
    fd, timeout = old.fileno(), old.gettimeout()
    with wrap(old, QUIET) as sock:
        assert isinstance(sock, SafeSSLSocket)
        assert (sock.fileno(), sock.gettimeout()) == (fd, timeout)
        assert (sock.version(), sock.cipher(), sock.getpeercert(), sock.server_hostname) == facts
        assert sock.context is context23
        assert old.fileno() == -1
        for use in (old.read, old.do_handshake, old.unwrap):
            with pytest.raises((OSError, ValueError)):
                use()
        old.close()
        del old, use
        sock.sendall(b"ping")
        assert end.read(4) == b"ping"


def test_wrap_again(tls: TlsPeer, context: ssl.SSLContext) -> None:
    sock, end = connect(tls, context, Policy(close=Abort(), watch=False))
    for _ in range(3):
        sock = wrap(sock)
    with sock:
        sock.settimeout(TIMEOUT)
        end.say(b"hello")
        assert sock.recv(5) == b"hello"
    assert end.read_to_end()[1] == RESET


def test_decrypted_bytes_move_too(tls: TlsPeer, context23: ssl.SSLContext) -> None:
    old, end = connect(tls, context23, None)
    end.say(b"hello world")
    assert old.recv(5) == b"hello"
    end.fin()
    with wrap(old, QUIET) as sock:
        assert sock.recv(100) == b" world"
        assert sock.recv(100) == b""


@pytest.mark.parametrize("before", [None, 0.0, 5.0])
@pytest.mark.parametrize("after", [None, 0.0, 0.1])
def test_every_mode_works_after_wrap(
    tls: TlsPeer, context23: ssl.SSLContext, before: float | None, after: float | None
) -> None:
    old, end = connect(tls, context23, None)
    old.settimeout(before)
    with wrap(old, QUIET) as sock:
        assert sock.gettimeout() == before
        sock.settimeout(after)
        assert sock.gettimeout() == after
        if after is not None:
            with pytest.raises(ssl.SSLWantReadError if after == 0.0 else TimeoutError):
                sock.recv(1)
        later = threading.Timer(0.05, end.say, [b"late"])
        later.start()
        try:
            if after == 0.1:
                sock.settimeout(TIMEOUT)
            assert (read_when_ready(sock) if after == 0.0 else sock.recv(4)) == b"late"
        finally:
            later.join()
        assert loss_of(sock) is None


@pytest.mark.parametrize("timeout", [None, 0.0, 0.2])
@by_secure_and_wrap
def test_a_peer_that_does_not_read_stops_writes_as_in_the_standard_library(
    tls: TlsPeer, certificates: Certificates, timeout: float | None, way: Any
) -> None:
    """Non-blocking: SSLWantWriteError; timeout: TimeoutError; blocking: until the peer reads."""
    data = bytes(1 << 20)
    for policy in (None, QUIET):
        sock, end = way(tls, certificates.client(), policy)
        with sock:
            sock.settimeout(timeout)
            if timeout is None:
                reading = tls.begin(end.read, 4 * len(data))
                for _ in range(4):
                    sock.sendall(data)
                assert len(done(reading)) == 4 * len(data)
                continue
            with pytest.raises(TimeoutError if timeout else ssl.SSLWantWriteError):
                sock.sendall(data * 64)
            assert policy is None or loss_of(sock) is None


@by_secure_and_wrap
def test_a_signal_in_a_blocking_read_is_not_seen(
    tls: TlsPeer, context: ssl.SSLContext, way: Any
) -> None:
    """EINTR: PEP 475 has the call go on."""
    sock, end = way(tls, context)
    sock.settimeout(None)
    calls = []

    def handler(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            end.say(b"hello")

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        with sock:
            signal.setitimer(signal.ITIMER_REAL, 0.1, 0.05)
            assert sock.recv(5) == b"hello"
            assert len(calls) >= 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_wrap_refuses_while_a_makefile_file_is_open(tls: TlsPeer, context: ssl.SSLContext) -> None:
    sock, end = connect(tls, context, None)
    with sock, sock.makefile("rb") as file:
        with pytest.raises(ValueError, match="makefile"):
            wrap(sock)
        end.say(b"line\n")
        assert file.readline() == b"line\n"


# The descriptor's number ------------------------------------------------------------------------


@contextlib.contextmanager
def strangers() -> Iterator[set[int]]:
    """Socket pairs, which take the numbers that are free. Nothing is to be read from them, or
    written to them, by anybody else."""
    data = b"a stranger's data" * 100
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for _ in range(4) for end in socket.socketpair()]
        for end in ends:
            end.sendall(data)
            end.setblocking(False)
        yield {end.fileno() for end in ends}
        assert [end.recv(len(data) + 1) for end in ends] == [data] * len(ends)


@by_secure_and_wrap
@pytest.mark.parametrize("how", ["loss", "close"])
@by_end
def test_a_stranger_with_the_same_number_is_left_alone(
    tls: TlsPeer, context: ssl.SSLContext, way: Any, how: str, act: Any
) -> None:
    sock, end = way(tls, context)
    file = sock.makefile("rb")
    number = sock.fileno()
    act(end)
    wait_for_the_end(sock)
    if how == "loss":
        read_to_the_end(sock)
    else:
        file.close()
        sock.close()
    assert sock.fileno() == -1
    with strangers() as numbers:
        assert number in numbers
        uses: list[Callable[[Any], Any]] = [
            *READS,
            *WRITES,
            lambda sock: sock.pending(),
            lambda sock: sock.unwrap(),
            lambda sock: sock.do_handshake(),
            lambda sock: sock.shutdown(socket.SHUT_RDWR),
            lambda _: file.read(),
            lambda sock: sock.close(),
        ]
        for use in uses:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                use(sock)
        file.close()
        sock.close()


@by_secure_and_wrap
@pytest.mark.parametrize("timeout", [None, TIMEOUT], ids=["blocking", "timeout"])
def test_close_from_another_thread_wakes_a_blocked_read(
    tls: TlsPeer, context23: ssl.SSLContext, way: Any, timeout: float | None
) -> None:
    for _ in range(5):
        sock, _ = way(tls, context23)
        sock.settimeout(timeout)
        reading = threading.Event()

        def read(sock: Any = sock, reading: threading.Event = reading) -> object:
            reading.set()
            return outcome(lambda sock: sock.recv(100), sock)

        reader = tls.begin(read)
        assert reading.wait(TIMEOUT)
        # In the system call, or about to be: either way it must come back.
        sock.close()
        with strangers():
            assert done(reader) == b"" or isinstance(done(reader), tuple)


# Clients ----------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"body of " + self.path.encode()
        self.send_response(200)
        if self.path == "/until-the-end":
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        if self.path == "/last":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def https(certificates: Certificates) -> Iterator[int]:
    """The port of a real HTTPS server."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = False

        def get_request(self) -> Any:
            sock, address = super().get_request()
            sock.settimeout(TIMEOUT)
            return certificates.server().wrap_socket(sock, server_side=True), address

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def waiting_for_close(port: int) -> list[object]:
    return [
        ends
        for ends, state in kernel.connections().items()
        if ends[1] == ("127.0.0.1", port) and state == "CLOSE_WAIT"
    ]


def test_https_connection_over_a_secured_context(https: int, context23: ssl.SSLContext) -> None:
    secure(context23)
    client = http.client.HTTPSConnection(NAME, https, context=context23, timeout=TIMEOUT)
    with contextlib.closing(client):
        for path in ("/one", "/two", "/last", "/three", "/until-the-end", "/four"):
            client.request("GET", path)
            assert path == "/last" or isinstance(client.sock, SafeSSLSocket)
            assert client.getresponse().read() == b"body of " + path.encode()
    assert not waiting_for_close(https)


@pytest.mark.parametrize("path", ["/one", "/until-the-end"])
def test_urllib_over_a_secured_context(https: int, context23: ssl.SSLContext, path: str) -> None:
    secure(context23)
    handler = urllib.request.HTTPSHandler(context=context23)
    opener = urllib.request.build_opener(handler, urllib.request.ProxyHandler({}))
    with opener.open(f"https://{NAME}:{https}{path}", timeout=TIMEOUT) as answer:
        assert answer.read() == b"body of " + path.encode()
    assert not waiting_for_close(https)
