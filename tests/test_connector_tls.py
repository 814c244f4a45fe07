"""`Connector` with TLS: the same as without, and the handshake."""

from __future__ import annotations

import contextlib
import gc
import queue
import signal
import ssl
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import kernel
import pytest
import tenacity
from peer import EOF, RESET, TIMEOUT
from process import in_child
from tls_peer import TlsEnd, TlsPeer, done

from safesock import (
    Abort,
    Cause,
    Connector,
    Graceful,
    Policy,
    Reconnect,
    ReconnectError,
    SafeSocket,
    SafeSSLSocket,
)
from safesock._policy import CloseMode

SEEN = {Graceful: EOF, Abort: RESET}
by_mode = pytest.mark.parametrize("mode", [Graceful(), Abort()], ids=["Graceful", "Abort"])


@pytest.fixture(autouse=True)
def _nothing_left(tls: TlsPeer) -> Iterator[None]:
    done(tls.begin(int))  # Its first thread.
    before = kernel.descriptors()
    yield
    for end in tls.ends:
        end.close()
    assert kernel.left_open(before) == []


def budget(**choices: Any) -> Reconnect:
    """Attempts without a wait between them, and with time enough."""
    defaults: dict[str, Any] = {"wait": tenacity.wait_none(), "deadline": 3 * TIMEOUT}
    return Reconnect(**defaults | choices)


def to(tls: TlsPeer, context: ssl.SSLContext, **options: Any) -> Connector:
    defaults: dict[str, Any] = {"reconnect": budget(), "ssl_context": context}
    return Connector(tls.address, **defaults | options)


class Serving:
    """Accepts connections in another thread; `next` gives one when its handshake is done."""

    def __init__(self, tls: TlsPeer, count: int) -> None:
        self.ends: list[TlsEnd] = []
        self._queue: queue.SimpleQueue[TlsEnd] = queue.SimpleQueue()
        tls.begin(self._run, tls, count)

    def _run(self, tls: TlsPeer, count: int) -> None:
        for _ in range(count):
            self._queue.put(tls.accept_and_shake())

    def next(self) -> TlsEnd:
        self.ends.append(self._queue.get(timeout=TIMEOUT))
        return self.ends[-1]


def connect(connector: Connector, tls: TlsPeer) -> tuple[SafeSSLSocket, TlsEnd]:
    shaken = tls.begin(tls.accept_and_shake)
    sock = connector.connect()
    assert isinstance(sock, SafeSSLSocket)
    return sock, done(shaken)


def assert_works(sock: SafeSocket, end: TlsEnd) -> None:
    sock.sendall(b"question")
    assert end.read(8) == b"question"
    end.say(b"answer")
    assert sock.recv(6) == b"answer"
    assert kernel.state_of(sock) == "ESTABLISHED"
    assert sock.loss is None


@contextlib.contextmanager
def in_thread(call: Callable[[], object]) -> Iterator[tuple[threading.Thread, Future[object]]]:
    """A call in a thread of its own, once that has begun."""
    begun: Future[threading.Thread] = Future()

    def work() -> object:
        begun.set_result(threading.current_thread())
        return call()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield begun.result(TIMEOUT), future


@contextlib.contextmanager
def ctrl_c() -> Iterator[None]:
    """SIGINT, once this thread waits in a system call."""
    this = threading.current_thread()

    def send() -> None:
        kernel.wait_until_blocked(this)
        assert this.ident is not None
        signal.pthread_kill(this.ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sender = threading.Thread(target=send)
    try:
        sender.start()
        yield
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)


def assert_can_be_used_again(connector: Connector, tls: TlsPeer) -> None:
    try:
        sock, end = connect(connector, tls)
    except KeyboardInterrupt:  # It would end the whole test run.
        pytest.fail("it remembers the interrupt")
    with sock:
        assert_works(sock, end)


# connect ----------------------------------------------------------------------------------------


def test_connect_gives_a_safe_ssl_socket_and_leaves_the_context_alone(
    tls: TlsPeer, context23: ssl.SSLContext, version: str
) -> None:
    policy = Policy(Abort())
    with to(tls, context23, policy=policy) as connector:
        sock, end = connect(connector, tls)
        assert sock.policy is policy
        assert sock.version() == f"TLSv{version}"
        assert sock.gettimeout() is None
        assert_works(sock, end)
    assert end.read_to_end() == (b"", RESET)
    assert context23.sslsocket_class is ssl.SSLSocket


@pytest.mark.parametrize("name", [None, "localhost"])
def test_server_hostname_is_the_host_unless_it_is_given(
    tls: TlsPeer, context: ssl.SSLContext, name: str | None
) -> None:
    with to(tls, context, server_hostname=name) as connector:
        sock, end = connect(connector, tls)
        assert sock.server_hostname == (name or "127.0.0.1")
        assert_works(sock, end)


def test_certificate_for_another_name_is_not_retried(tls: TlsPeer, context: ssl.SSLContext) -> None:
    shaken = tls.begin(tls.accept_and_shake)
    with (
        to(tls, context, server_hostname="example.org") as connector,
        pytest.raises(ReconnectError, match="not retried") as caught,
    ):
        connector.connect()
    assert [type(error) for error in caught.value.attempts] == [ssl.SSLCertVerificationError]
    assert isinstance(shaken.exception(TIMEOUT), (OSError, EOFError))


@pytest.mark.parametrize("name", [5, b"localhost"])
def test_server_hostname_is_a_string(context: ssl.SSLContext, name: Any) -> None:
    with pytest.raises(TypeError, match="server_hostname takes a str"):
        Connector(("localhost", 1), ssl_context=context, server_hostname=name)


@by_mode
@pytest.mark.parametrize("files", [0, 1])
def test_connection_before_is_closed_before_the_next_shakes_hands(
    tls: TlsPeer, context: ssl.SSLContext, mode: CloseMode, files: int
) -> None:
    with to(tls, context, policy=Policy(mode), timeout=TIMEOUT) as connector:
        sock, end = connect(connector, tls)
        opened = [sock.makefile("rb") for _ in range(files)]
        with in_thread(connector.connect) as (_, call):
            other = tls.accept_tls()
            assert end.read_to_end() == (b"", SEEN[type(mode)])
            assert sock.fileno() == -1
            assert not call.done()
            other.handshake()
            again = call.result(TIMEOUT)
        assert isinstance(again, SafeSSLSocket)
        assert_works(again, other)
        for file in opened:
            file.close()


@pytest.mark.parametrize("act", [TlsEnd.close_notify, TlsEnd.fin, TlsEnd.rst])
def test_lost_connection_is_followed_by_another(
    tls: TlsPeer, context23: ssl.SSLContext, act: Callable[[TlsEnd], None]
) -> None:
    with to(tls, context23) as connector:
        sock, end = connect(connector, tls)
        act(end)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        assert sock.loss is not None
        assert sock.loss.cause is (Cause.RST if act is TlsEnd.rst else Cause.FIN)
        again, other = connect(connector, tls)
        assert_works(again, other)


def test_handshake_has_the_timeout(tls: TlsPeer, context: ssl.SSLContext) -> None:
    choice = budget(attempts=2)
    with (
        to(tls, context, reconnect=choice, timeout=0.05) as connector,
        pytest.raises(ReconnectError) as caught,
    ):
        connector.connect()
    assert all(isinstance(error, TimeoutError) for error in caught.value.attempts)
    assert len(caught.value.attempts) == 2


def test_handshake_is_cut_at_the_deadline(tls: TlsPeer, context: ssl.SSLContext) -> None:
    with (
        to(tls, context, reconnect=budget(deadline=0.25), timeout=None) as connector,
        pytest.raises(ReconnectError) as caught,
    ):
        connector.connect()
    (error,) = caught.value.attempts
    assert isinstance(error, TimeoutError)
    assert tls.accept().read_to_end()[1] == EOF


# Iteration --------------------------------------------------------------------------------------


@by_mode
def test_each_turn_has_a_connection(tls: TlsPeer, context: ssl.SSLContext, mode: CloseMode) -> None:
    ends: list[TlsEnd] = []
    with to(tls, context, policy=Policy(mode)) as connector:
        shaken = tls.begin(tls.accept_and_shake)
        for sock in connector:
            ends.append(done(shaken))
            assert_works(sock, ends[-1])
            if len(ends) > 1:
                assert ends[-2].read_to_end() == (b"", SEEN[type(mode)])
            if len(ends) == 3:
                break
            shaken = tls.begin(tls.accept_and_shake)
        assert ends[-1].read_to_end() == (b"", SEEN[type(mode)])


def use(connector: Connector, act: Callable[[SafeSocket], object]) -> None:
    for sock in connector:
        act(sock)


@by_mode
def test_exception_in_the_body_closes_by_the_policy(
    tls: TlsPeer, context: ssl.SSLContext, mode: CloseMode
) -> None:
    def divide_by_zero(_sock: SafeSocket) -> None:
        done(shaken)
        raise ZeroDivisionError

    with to(tls, context, policy=Policy(mode)) as connector:
        shaken = tls.begin(tls.accept_and_shake)
        with pytest.raises(ZeroDivisionError):
            use(connector, divide_by_zero)
        assert done(shaken).read_to_end() == (b"", SEEN[type(mode)])
        assert_can_be_used_again(connector, tls)


@by_mode
def test_ctrl_c_in_a_read_closes_by_the_policy(
    tls: TlsPeer, context23: ssl.SSLContext, mode: CloseMode
) -> None:
    def read(sock: SafeSocket) -> None:
        done(shaken)
        with ctrl_c():
            sock.recv(1)

    with to(tls, context23, policy=Policy(mode)) as connector:
        shaken = tls.begin(tls.accept_and_shake)
        with pytest.raises(KeyboardInterrupt):
            use(connector, read)
        assert done(shaken).read_to_end() == (b"", SEEN[type(mode)])
        assert_can_be_used_again(connector, tls)


def test_ctrl_c_in_the_handshake_passes(tls: TlsPeer, context: ssl.SSLContext) -> None:
    with to(tls, context, timeout=TIMEOUT) as connector:
        with pytest.raises(KeyboardInterrupt), ctrl_c():
            connector.connect()
        assert tls.accept().read_to_end()[1] == EOF
        assert_can_be_used_again(connector, tls)


# on_connect -------------------------------------------------------------------------------------


def test_on_connect_has_the_tls_socket_before_anybody_else(
    tls: TlsPeer, context: ssl.SSLContext
) -> None:
    seen: list[SafeSocket] = []

    def log_in(sock: SafeSocket) -> None:
        assert isinstance(sock, SafeSSLSocket)
        assert sock.gettimeout() == pytest.approx(9.0, abs=0.1)
        assert_works(sock, done(shaken))
        seen.append(sock)

    with to(tls, context, timeout=9.0, on_connect=log_in) as connector:
        shaken = tls.begin(tls.accept_and_shake)
        sock = connector.connect()
        assert seen == [sock]
        assert sock.gettimeout() is None
        assert_works(sock, done(shaken))


@by_mode
def test_exception_of_on_connect_closes_by_the_policy_and_counts(
    tls: TlsPeer, context: ssl.SSLContext, mode: CloseMode
) -> None:
    errors = [OSError("one"), ValueError("two"), LookupError("three")]
    raised = iter(errors)

    def greet(_sock: SafeSocket) -> None:
        serving.next()
        raise next(raised)

    choice = budget(attempts=3)
    serving = Serving(tls, 3)
    with (
        to(tls, context, policy=Policy(mode), reconnect=choice, on_connect=greet) as connector,
        pytest.raises(ReconnectError) as caught,
    ):
        connector.connect()
    assert caught.value.attempts == errors
    assert [end.read_to_end() for end in serving.ends] == [(b"", SEEN[type(mode)])] * 3


def read_and_swallow(sock: SafeSocket) -> None:
    sock.settimeout(TIMEOUT)
    with contextlib.suppress(OSError):
        sock.recv(1)


@by_mode
def test_on_connect_is_cut_in_a_read_at_the_deadline(
    tls: TlsPeer, context: ssl.SSLContext, mode: CloseMode
) -> None:
    choice = budget(deadline=0.5)
    began = time.monotonic()
    with to(
        tls, context, policy=Policy(mode), reconnect=choice, on_connect=read_and_swallow
    ) as connector:
        shaken = tls.begin(tls.accept_and_shake)
        with pytest.raises(ReconnectError) as caught:
            connector.connect()
    assert 0.5 <= time.monotonic() - began < TIMEOUT
    (error,) = caught.value.attempts
    assert isinstance(error, TimeoutError)
    assert done(shaken).read_to_end() == (b"", SEEN[type(mode)])


# close ------------------------------------------------------------------------------------------


def connect_in_vain(connector: Connector) -> None:
    with pytest.raises(ConnectionAbortedError):
        connector.connect()


def loop_in_vain(connector: Connector) -> None:
    assert list(connector) == []


by_use = pytest.mark.parametrize("call", [connect_in_vain, loop_in_vain])


@by_use
@by_mode
def test_close_wakes_the_handshake(
    tls: TlsPeer,
    context23: ssl.SSLContext,
    mode: CloseMode,
    call: Callable[[Connector], None],
) -> None:
    connector = to(tls, context23, policy=Policy(mode), timeout=3 * TIMEOUT)
    with in_thread(partial(call, connector)) as (thread, future):
        end = tls.accept()
        kernel.wait_until_blocked(thread)
        connector.close()
        future.result(TIMEOUT)
        assert end.read_to_end()[1] == SEEN[type(mode)]


@by_use
@by_mode
def test_close_wakes_on_connect_in_a_read(
    tls: TlsPeer,
    context23: ssl.SSLContext,
    mode: CloseMode,
    call: Callable[[Connector], None],
) -> None:
    greeting = threading.Event()

    def greet(sock: SafeSocket) -> None:
        greeting.set()
        read_and_swallow(sock)

    connector = to(tls, context23, policy=Policy(mode), timeout=3 * TIMEOUT, on_connect=greet)
    with in_thread(partial(call, connector)) as (thread, future):
        end = tls.accept_and_shake()
        assert greeting.wait(TIMEOUT)
        kernel.wait_until_blocked(thread)
        connector.close()
        future.result(TIMEOUT)
        assert end.read_to_end() == (b"", SEEN[type(mode)])


@by_mode
def test_close_ends_the_connection_by_its_policy(
    tls: TlsPeer, context: ssl.SSLContext, mode: CloseMode
) -> None:
    connector = to(tls, context, policy=Policy(mode))
    sock, end = connect(connector, tls)
    connector.close()
    assert sock.fileno() == -1
    assert end.read_to_end() == (b"", SEEN[type(mode)])


@pytest.mark.parametrize("failures", [0, 1])
@by_mode
def test_dropped_connection_is_collected_and_ends_at_once(
    tls: TlsPeer, context: ssl.SSLContext, mode: CloseMode, failures: int
) -> None:
    errors = [OSError("no") for _ in range(failures)]

    def greet(_sock: SafeSocket) -> None:
        serving.next()
        if errors:
            raise errors.pop()

    def connect_and_drop() -> weakref.ref[SafeSocket]:
        sock = connector.connect()
        return weakref.ref(sock)

    serving = Serving(tls, failures + 1)
    with to(tls, context, policy=Policy(mode), on_connect=greet) as connector:
        gc.disable()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # It would keep the socket.
                assert connect_and_drop()() is None
        finally:
            gc.enable()
        assert serving.ends[-1].read_to_end() == (b"", SEEN[type(mode)])


@by_mode
def test_child_that_closes_leaves_the_parents_connection_alone(
    tls: TlsPeer, context23: ssl.SSLContext, mode: CloseMode
) -> None:
    with to(tls, context23, policy=Policy(mode)) as connector:
        sock, end = connect(connector, tls)
        in_child(connector.close)
        assert_works(sock, end)
    assert end.read_to_end() == (b"", SEEN[type(mode)])
