"""TLS connections are made: `secure`, the handshake, and clients over a secured context."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import ssl
import struct
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import kernel
import pytest
from peer import EOF, RESET, TIMEOUT
from tls_client import (
    QUIET,
    by_secure_and_wrap,
    connect,
    loss_of,
    lost,
    notify_and_fin,
    read_when_ready,
    readable,
    taken_over,
)
from tls_peer import NAME, Certificates, TlsPeer, done

from safesock import (
    Abort,
    Cause,
    Policy,
    SafeSocket,
    SafeSSLSocket,
    create_connection,
    secure,
    wrap,
)

# What is made -----------------------------------------------------------------------------------


def test_secure_changes_the_context_and_gives_it_back(context: ssl.SSLContext) -> None:
    assert secure(context) is context
    assert issubclass(context.sslsocket_class, SafeSSLSocket)
    assert issubclass(SafeSSLSocket, ssl.SSLSocket)
    assert issubclass(SafeSSLSocket, SafeSocket)


@pytest.mark.parametrize("what", [None, "context", ssl.SSLContext, object()])
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


def test_a_handshake_on_a_non_blocking_socket_is_refused_as_in_the_standard_library(
    tls: TlsPeer, context: ssl.SSLContext
) -> None:
    secure(context, QUIET)
    before = kernel.descriptors()
    plain = socket.create_connection(tls.address)
    plain.setblocking(False)
    with pytest.raises(ValueError, match="non-blocking"):
        context.wrap_socket(plain, server_hostname=NAME)
    assert kernel.left_open(before) == []


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
    before = kernel.descriptors()
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
    assert kernel.left_open(before | {end.sock.fileno() for end in tls.ends}) == []


@pytest.mark.parametrize("secured", [True, False], ids=["secured context", "plain context"])
def test_a_connection_that_ended_before_wrap_socket_is_not_taken_for_an_unconnected_one(
    tls: TlsPeer, context: ssl.SSLContext, secured: bool
) -> None:
    """It would be returned without TLS, and without an error."""
    if secured:
        secure(context)
    before = kernel.descriptors()
    plain = create_connection(tls.address, TIMEOUT, policy=Policy(grace=0.01))
    end = tls.accept_tls()
    end.half_close()
    assert end.read_to_end() == (b"", EOF)
    with pytest.raises(OSError, match=r"."):
        context.wrap_socket(plain, server_hostname=NAME)
    plain.close()
    # The watcher may still be at work with it: then it is the one that closes.
    before.add(end.sock.fileno())
    kernel.wait_until(lambda: kernel.left_open(before) == [], "it is closed")


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
