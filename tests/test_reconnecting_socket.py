"""`Connector.socket()`: one object for life. A loss is told once, the next read or write dials."""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import itertools
import os
import random
import selectors
import socket
import ssl
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kernel
import pytest
import tenacity
import tls_client
from calls import CALLS, DATA, READS, SIZE, WRITES, Call, answer, fill
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd
from process import forked, in_child
from tls_peer import NAME, TlsEnd, TlsPeer, done

from safesock import (
    Abort,
    Cause,
    Connector,
    Policy,
    Reconnect,
    ReconnectError,
    SafeSocket,
    SafeSSLSocket,
    create_connection,
)

HERE = "127.9.8.7"  # A loopback address of our own: nobody else is on its ports.
# Some connections end so soon that they count as attempts: when, the kernel tells to milliseconds.
AT_ONCE = Reconnect(attempts=100, deadline=TIMEOUT, wait=tenacity.wait_none(), stable_after=1e-9)
FEW = Reconnect(attempts=4, deadline=TIMEOUT, wait=tenacity.wait_none())
QUIET = Policy(watch=False)
WATCHED = Policy(grace=0.0)

campaign = pytest.mark.campaign
# The others differ from these in what files do with what they get.
OFTEN = {"recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into", "file-rb"}
OFTEN |= {"send", "sendall", "sendto", "sendmsg", "sendfile", "file-wb", "read", "write"}


def by_name(calls: Iterable[str]) -> pytest.MarkDecorator:
    names = [name if name in OFTEN else pytest.param(name, marks=campaign) for name in calls]
    return pytest.mark.parametrize("name", names)


each_read = by_name(READS)
each_call = by_name(CALLS)
each_way = pytest.mark.parametrize("way", ["FIN", "RST"])


# One object, and its connections ------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def here() -> tuple[str, int]:
    """A fixed local address."""
    with socket.socket() as sock:
        sock.bind((HERE, 0))
        host, port = sock.getsockname()
        return host, port


@contextlib.contextmanager
def for_life(
    peer: Peer, policy: Policy | None = QUIET, reconnect: Reconnect = AT_ONCE, **options: Any
) -> Iterator[tuple[SafeSocket, PeerEnd]]:
    """An object for life, and the other end of its first connection."""
    connector = Connector(peer.address, policy=policy, reconnect=reconnect, **options)
    with connector, connector.socket() as sock:
        sock.settimeout(TIMEOUT)
        connector.confirm()
        yield sock, peer.accept()


def lose(sock: SafeSocket, end: PeerEnd, way: str = "FIN") -> None:
    """The peer goes, and its segment has arrived here."""
    end.fin() if way == "FIN" else end.rst()
    expected = "CLOSE_WAIT" if way == "FIN" else "CLOSE"
    kernel.wait_until(lambda: kernel.state_of(sock) == expected, f"the socket is in {expected}")


def meet(call: Call, sock: SafeSocket, end: PeerEnd, way: str) -> list[Any]:
    """Loses the connection; what the call says, up to the time that it tells of the loss."""
    lose(sock, end, way)
    answers = [answer(call, sock)]
    if loss_of(sock) is None:
        # A write that seems to succeed: the peer's RST is its answer.
        kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE", "the RST is here")
        answers.append(answer(call, sock))
    return answers


def tell(sock: SafeSocket, end: PeerEnd) -> None:
    """The connection is lost, whatever of it is unread, and its owner has been told."""
    end.half_close()
    kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT")
    assert sock.recv(SIZE) == b""
    assert sock.fileno() == -1
    end.close()


def loss_of(sock: SafeSocket) -> Any:
    """A call, as mypy would take an attribute to stay what it was."""
    return sock.loss


def found_by_the_watcher(sock: SafeSocket) -> None:
    kernel.wait_until(lambda: loss_of(sock), "the watcher has found it")
    kernel.wait_until(lambda: kernel.state_of(sock) == "CLOSE", "it is over")


def dialled(peer: Peer) -> bool:
    """Whether there is a connection that nobody has accepted. Dialling is done when a call is."""
    with selectors.DefaultSelector() as selector:
        selector.register(peer.listener, selectors.EVENT_READ)
        return bool(selector.select(0))


def serve(peer: Peer, name: str) -> tuple[PeerEnd, Any]:
    """Accepts, and gives all that the call of this name waits for; the end, and who called."""
    end = peer.accept()
    address = end.sock.getpeername()
    if name in READS:
        end.say(DATA)
        with contextlib.suppress(OSError):  # It may have been content with that, and be gone.
            end.half_close()
    return end, address


def check_next_call_dials(
    peer: Peer, threads: ThreadPoolExecutor, sock: SafeSocket, name: str
) -> Any:
    """The same call again, on the next connection, is as on the first one of a SafeSocket. Gives
    the address that it came from."""
    assert not dialled(peer)
    answers = []
    served = threads.submit(serve, peer, name)
    with create_connection(peer.address, TIMEOUT, policy=QUIET) as fresh:
        answers.append(answer(CALLS[name], fresh))
    assert served.result(TIMEOUT)[0].read_to_end()[0] == (DATA if name in WRITES else b"")
    served = threads.submit(serve, peer, name)
    answers.append(answer(CALLS[name], sock))
    end, address = served.result(TIMEOUT)
    assert answers[0] == answers[1]
    if name in WRITES:
        assert end.read(len(DATA)) == DATA
    return address


def asleep(thread: threading.Thread) -> None:
    kernel.wait_until(lambda: kernel.is_asleep(thread), "the thread is in its system call")


class Caller:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[SafeSocket], Any], sock: SafeSocket) -> None:
        self._answers: list[Any] = []
        self.thread = threading.Thread(
            target=lambda: self._answers.append(answer(call, sock)), daemon=True
        )
        self.thread.start()

    def answer(self) -> Any:
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive(), "it still waits"
        return self._answers[0]


def test_what_it_is(peer: Peer) -> None:
    with for_life(peer) as (sock, end):
        assert isinstance(sock, socket.socket)
        assert isinstance(sock, SafeSocket)
        assert type(sock).__name__ in repr(sock)
        assert "ESTABLISHED" in repr(sock)
        assert sock.policy == QUIET
        tell(sock, end)
        assert "lost by FIN" in repr(sock)


def test_what_it_is_with_tls(tls: TlsPeer, context: ssl.SSLContext) -> None:
    with tls_for_life(tls, context) as (sock, end):
        assert isinstance(sock, ssl.SSLSocket)
        assert isinstance(sock, SafeSSLSocket)
        assert sock.version() == "TLSv1.3"
        end.say(b"hello")
        assert sock.recv(SIZE) == b"hello"


@pytest.mark.parametrize("on_loss", ["release", "keep"])
def test_what_does_not_close_what_it_has_lost_is_refused(peer: Peer, on_loss: Any) -> None:
    with Connector(peer.address, policy=Policy(on_loss=on_loss)) as connector:
        with pytest.raises(ValueError, match="on_loss"):
            connector.socket()
        assert not dialled(peer)


def test_the_connector_belongs_to_it(peer: Peer) -> None:
    with Connector(peer.address, policy=QUIET, reconnect=AT_ONCE) as connector:
        with connector.socket() as sock:
            tell(sock, peer.accept())
            for use in (connector.connect, connector.socket, lambda: next(iter(connector))):
                with pytest.raises(RuntimeError, match="socket"):
                    use()
            assert not dialled(peer)
            assert sock.send(DATA) == len(DATA)
        with pytest.raises(ConnectionAbortedError):
            connector.connect()


# A loss is told once, and the next call dials -----------------------------------------------------


@each_way
@each_call
def test_the_call_that_meets_the_loss_tells_of_it_and_the_next_dials(
    peer: Peer, threads: ThreadPoolExecutor, here: tuple[str, int], name: str, way: str
) -> None:
    with create_connection(peer.address, TIMEOUT, policy=QUIET) as plain:
        expected = meet(CALLS[name], plain, peer.accept(), way)
    with for_life(peer, local_address=here) as (sock, end):
        assert meet(CALLS[name], sock, end, way) == expected
        assert sock.loss is not None
        assert sock.loss.cause is (Cause.RST if way == "RST" or name in WRITES else Cause.FIN)
        assert sock.loss.local == here
        assert kernel.state(here, peer.address) is None
        number = sock.loss.connection
        assert check_next_call_dials(peer, threads, sock, name) == here
        if sock.fileno() < 0:  # It has read to the end.
            assert sock.loss.connection > number
        else:
            assert loss_of(sock) is None
            assert sock.getsockname() == here


@each_way
@each_call
def test_a_loss_that_the_watcher_found(
    peer: Peer, threads: ThreadPoolExecutor, here: tuple[str, int], name: str, way: str
) -> None:
    answers = []
    with (
        create_connection(peer.address, TIMEOUT, policy=WATCHED) as plain,
        contextlib.ExitStack() as stack,
    ):
        ends = [(plain, peer.accept())]
        ends.append(stack.enter_context(for_life(peer, WATCHED, local_address=here)))
        for sock, end in ends:
            end.fin() if way == "FIN" else end.rst()
            found_by_the_watcher(sock)
            answers.append(answer(CALLS[name], sock))
            assert sock.fileno() == -1
        assert answers[0] == answers[1]
        assert check_next_call_dials(peer, threads, sock, name) == here


@each_way
@each_read
def test_a_loss_while_a_thread_waits(
    peer: Peer, threads: ThreadPoolExecutor, name: str, way: str
) -> None:
    answers = []
    with (
        create_connection(peer.address, TIMEOUT, policy=QUIET) as plain,
        contextlib.ExitStack() as stack,
    ):
        ends = [(plain, peer.accept()), stack.enter_context(for_life(peer))]
        for sock, end in ends:
            caller = Caller(READS[name].call, sock)
            asleep(caller.thread)
            end.fin() if way == "FIN" else end.rst()
            answers.append(caller.answer())
        assert answers[0] == answers[1]
        assert sock.fileno() == -1
        check_next_call_dials(peer, threads, sock, name)


@pytest.mark.parametrize("name", ["send", "sendall", "sendmsg", "sendto", "file-wb", "sendfile"])
def test_a_loss_while_a_thread_waits_to_send(
    peer: Peer, threads: ThreadPoolExecutor, name: str
) -> None:
    with for_life(peer) as (sock, end):
        fill(sock, end)
        caller = Caller(WRITES[name], sock)
        asleep(caller.thread)
        end.rst()
        assert caller.answer()[0] in (ConnectionResetError, BrokenPipeError)
        assert sock.fileno() == -1
        check_next_call_dials(peer, threads, sock, name)


@pytest.mark.parametrize("policy", [QUIET, WATCHED], ids=["unwatched", "watched"])
def test_unread_bytes_come_before_the_loss_and_not_after(peer: Peer, policy: Policy) -> None:
    with for_life(peer, policy) as (sock, end):
        end.say(b"goodbye")
        end.fin()
        kernel.wait_until(lambda: kernel.state_of(sock) != "ESTABLISHED")
        if policy.watch:
            kernel.wait_until(lambda: loss_of(sock), "the watcher has found it")
        assert [sock.recv(4), sock.recv(4), sock.recv(4)] == [b"good", b"bye", b""]
        assert not dialled(peer)
        assert sock.send(DATA) == len(DATA)
        assert peer.accept().read(len(DATA)) == DATA


def test_what_a_write_dropped_unread_is_counted_and_never_given(peer: Peer) -> None:
    with for_life(peer) as (sock, end):
        end.say(b"never read")
        kernel.wait_until(lambda: kernel.unread(sock) == 10)
        assert [one[0] for one in meet(CALLS["send"], sock, end, "RST")] == [ConnectionResetError]
        assert sock.loss is not None
        assert sock.loss.unread == 10
        sock.send(DATA)
        peer.accept().say(b"new")
        assert sock.recv(100) == b"new"


def test_fifty_losses_on_one_local_port(peer: Peer, here: tuple[str, int]) -> None:
    with for_life(peer, WATCHED, local_address=here) as (sock, end):
        numbers = set()
        for turn in range(50):
            end.say(b"%d" % turn)
            assert sock.recv(SIZE) == b"%d" % turn
            end.fin() if turn % 2 else end.rst()
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(SIZE) == b""
            assert sock.loss is not None
            numbers.add(sock.loss.connection)
            sock.sendall(DATA)
            end = peer.accept()
            assert end.sock.getpeername() == here
            assert end.read(len(DATA)) == DATA
        assert len(numbers) == 50
        end.fin()
        assert sock.recv(SIZE) == b""
    kernel.wait_until(lambda: kernel.state(here, peer.address) in (None, "TIME_WAIT"))


# TLS ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tls_for_life(
    tls: TlsPeer, context: ssl.SSLContext, policy: Policy | None = QUIET, **options: Any
) -> Iterator[tuple[Any, TlsEnd]]:
    options = {"reconnect": AT_ONCE, "server_hostname": NAME, **options}
    accepted = tls.begin(tls.accept_and_shake)
    connector = Connector(tls.address, policy=policy, ssl_context=context, **options)
    with connector, connector.socket() as sock:
        sock.settimeout(TIMEOUT)
        yield sock, done(accepted)


def serve_tls(tls: TlsPeer) -> TlsEnd:
    end = tls.accept_and_shake()
    end.say(DATA)
    end.close_notify()
    return end


def met(call: Call, sock: Any, end: TlsEnd, act: Callable[[TlsEnd], None]) -> list[Any]:
    """As `meet`."""
    act(end)
    tls_client.wait_for_the_end(sock)
    answers: list[Any] = []
    for _ in range(8):
        answers.append(tls_client.outcome(call, sock))
        if loss_of(sock):
            return answers
        if answers[-1] in (4, None):  # A write that seems to succeed.
            tls_client.wait_for_the_reset(sock)
    raise AssertionError("it never told of the loss")


TLS_CALLS = dict(
    zip(
        tls_client.READ_NAMES + tls_client.WRITE_NAMES,
        tls_client.READS + tls_client.WRITES,
        strict=True,
    )
)


@pytest.mark.parametrize(
    "act",
    [
        tls_client.notify_and_fin,
        tls_client.rst,
        pytest.param(tls_client.fin_only, marks=campaign),
        pytest.param(tls_client.goodbye_and_fin, marks=campaign),
    ],
    ids=lambda act: act.__name__,
)
@by_name(TLS_CALLS)
def test_a_loss_under_tls(
    tls: TlsPeer,
    context: ssl.SSLContext,
    here: tuple[str, int],
    name: str,
    act: Callable[[TlsEnd], None],
) -> None:
    call = TLS_CALLS[name]
    plain, end = tls_client.connect(tls, context)
    with plain:
        expected = met(call, plain, end, act)
    with tls_for_life(tls, context, local_address=here) as (sock, end):
        assert met(call, sock, end, act) == expected
        assert sock.fileno() == -1
        assert not dialled(tls)
        served = tls.begin(serve_tls, tls)
        again = tls_client.outcome(call, sock)
        end = done(served)
        assert end.sock.getpeername() == here
        if name in tls_client.READ_NAMES:
            assert again in (DATA, [DATA]) or again == (len(DATA), DATA.ljust(100, b"\0"))
        else:
            assert again in (4, None)
            assert end.read(4) == b"data"


def test_tls_read_and_write_dial_themselves(tls: TlsPeer, context: ssl.SSLContext) -> None:
    with tls_for_life(tls, context, WATCHED) as (sock, end):
        for turn in range(10):
            tls_client.notify_and_fin(end)
            assert sock.read(SIZE) == b""
            accepted = tls.begin(tls.accept_and_shake)
            assert sock.write(b"%d" % turn) == 1
            end = done(accepted)
            assert end.read(1) == b"%d" % turn
            end.say(b"yes")
            assert sock.read(SIZE) == b"yes"
            assert sock.pending() == 0
            assert sock.version() == "TLSv1.3"


# Other calls do not dial -----------------------------------------------------------------------

KEEPALIVE = (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
OTHERS: dict[str, Call] = {
    "fileno": lambda sock: sock.fileno(),
    "getpeername": lambda sock: bool(sock.getpeername()),
    "getsockname": lambda sock: bool(sock.getsockname()),
    "settimeout": lambda sock: sock.settimeout(TIMEOUT),
    "gettimeout": lambda sock: sock.gettimeout(),
    "setblocking": lambda sock: sock.setblocking(True),
    "getblocking": lambda sock: sock.getblocking(),
    "getsockopt": lambda sock: sock.getsockopt(*KEEPALIVE),
    "shutdown": lambda sock: sock.shutdown(socket.SHUT_RDWR),
    "bind": lambda sock: sock.bind(("127.0.0.1", 0)),
    "listen": lambda sock: sock.listen(),
    "accept": lambda sock: sock.accept(),
    "dup": lambda sock: sock.dup(),
    "get_inheritable": lambda sock: sock.get_inheritable(),
    "set_inheritable": lambda sock: sock.set_inheritable(False),
    "repr": lambda sock: "lost by FIN" in repr(sock),
    "family": lambda sock: (sock.family, sock.type, sock.proto),
    "loss": lambda sock: sock.loss.cause,  # type: ignore[attr-defined]
    "close_report": lambda sock: sock.close_report.cause,  # type: ignore[attr-defined]
    "policy": lambda sock: sock.policy,  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("name", OTHERS)
def test_calls_that_neither_read_nor_write_do_not_dial(peer: Peer, name: str) -> None:
    with peer.connected(QUIET) as (plain, end):
        tell(plain, end)
        expected = answer(OTHERS[name], plain)
    with for_life(peer) as (sock, end):
        tell(sock, end)
        assert answer(OTHERS[name], sock) == expected
        assert sock.fileno() == -1
        assert not dialled(peer)
        assert sock.send(DATA) == len(DATA)  # It is as good as ever.
        assert peer.accept().read(len(DATA)) == DATA


def test_connect_says_that_it_dials_by_itself(peer: Peer) -> None:
    with for_life(peer) as (sock, _):
        with pytest.raises(OSError, match="dials by itself") as caught:
            sock.connect(peer.address)
        assert caught.value.errno == errno.EISCONN
        assert sock.connect_ex(peer.address) == errno.EISCONN
        assert not dialled(peer)


def test_its_owner_gives_a_connection_up_by_shutdown(peer: Peer) -> None:
    """Of a peer that is silent, or out of step: the next call dials."""
    with for_life(peer) as (sock, end):
        sock.send(DATA)
        sock.shutdown(socket.SHUT_RDWR)
        assert sock.fileno() == -1
        assert end.read_to_end() == (DATA, EOF)
        assert sock.send(b"next") == 4
        assert peer.accept().read(4) == b"next"


def test_a_connection_that_is_given_up_ends_by_its_policy(peer: Peer) -> None:
    """A FIN before the RST would make what was cut off look complete."""
    with for_life(peer, Policy(Abort(), watch=False)) as (sock, end):
        sock.send(DATA)
        sock.shutdown(socket.SHUT_RDWR)
        assert (sock.fileno(), sock.close_report.reset) == (-1, True)  # type: ignore[union-attr]
        assert end.read_to_end() == (DATA, RESET)
        assert sock.send(b"next") == 4
        assert peer.accept().read(4) == b"next"


def test_an_option_that_the_next_connection_does_not_take_is_passed_over(peer: Peer) -> None:
    """Such as one of IPv6 where the name's IPv4 address answers next."""
    with for_life(peer) as (sock, end):
        tell(sock, end)
        sock.setsockopt(socket.IPPROTO_TCP, 12345, 1)
        before = kernel.descriptors()
        assert sock.send(DATA) == len(DATA)
        assert peer.accept().read(len(DATA)) == DATA
        assert len(kernel.left_open(before)) <= 2  # Of it, and of the peer's end.


def test_on_connect_may_work_by_another_thread_until_the_deadline(
    peer: Peer, threads: ThreadPoolExecutor
) -> None:
    """Nobody but on_connect's own thread gets the connection; neither waits for ever."""
    told: list[bytes] = []

    def greet(sock: SafeSocket) -> None:
        if peer.ends:
            told.append(threads.submit(sock.recv, SIZE).result(TIMEOUT))

    reconnect = Reconnect(attempts=2, deadline=0.5, wait=tenacity.wait_none())
    connector = Connector(peer.address, reconnect=reconnect, policy=QUIET, on_connect=greet)
    with connector.socket() as sock:
        tell(sock, peer.accept())
        with pytest.raises(ReconnectError) as caught:
            sock.send(DATA)
        assert isinstance(caught.value.attempts[-1], TimeoutError)
    assert told == [b""]


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "while a thread reads"])
def test_a_forked_child_dials_although_a_thread_of_its_parent_was_at_it(
    peer: Peer, threads: ThreadPoolExecutor, busy: bool
) -> None:
    connector = Connector(peer.address, policy=QUIET, reconnect=AT_ONCE)
    with connector.socket() as sock:
        end = peer.accept()
        reading = threads.submit(sock.recv, SIZE) if busy else None

        def act() -> None:
            sock.shutdown(socket.SHUT_RDWR)
            sock.send(b"child")
            sock.close()

        with forked(act):
            assert peer.accept().read_to_end() == (b"child", EOF)
        end.fin()
        assert (reading.result(TIMEOUT) if reading else sock.recv(SIZE)) == b""


def test_a_child_that_is_forked_while_a_thread_dials_can_dial(
    peer: Peer, threads: ThreadPoolExecutor
) -> None:
    greeting, go_on = threading.Event(), threading.Event()

    def greet(sock: SafeSocket) -> None:
        if not in_child:
            greeting.set()
            assert go_on.wait(TIMEOUT)
        sock.send(DATA)

    def act() -> None:
        in_child.append(True)
        connector.connect().close()

    in_child: list[bool] = []
    with Connector(peer.address, policy=QUIET, on_connect=greet) as connector:
        dialling = threads.submit(connector.connect)
        assert greeting.wait(TIMEOUT)
        end = peer.accept()
        with forked(act):
            assert peer.accept().read_to_end() == (DATA, EOF)
        go_on.set()
        with dialling.result(TIMEOUT):
            assert end.read(len(DATA)) == DATA


def test_a_stranger_that_gets_the_number_is_left_alone(peer: Peer) -> None:
    with for_life(peer) as (sock, end):
        number = sock.fileno()
        tell(sock, end)
        stranger = os.open(os.devnull, os.O_RDONLY)
        if stranger != number:
            os.dup2(stranger, number)
            os.close(stranger)
        try:
            for call in OTHERS.values():
                answer(call, sock)
            assert sock.send(DATA) == len(DATA)
            assert sock.fileno() not in (-1, number)
            tell(sock, peer.accept())
            sock.close()
            assert os.path.samestat(os.fstat(number), os.stat(os.devnull))
        finally:
            os.close(number)


# What is carried over --------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 0.0, 7.5])
@pytest.mark.parametrize("when", ["before the loss", "after the loss"])
def test_the_timeout_is_carried_over(peer: Peer, timeout: float | None, when: str) -> None:
    with for_life(peer) as (sock, end):
        if when == "before the loss":
            sock.settimeout(timeout)
        tell(sock, end)
        if when == "after the loss":
            sock.settimeout(timeout)
        for _ in range(2):
            assert sock.send(DATA) == len(DATA)
            assert sock.gettimeout() == timeout
            assert os.get_blocking(sock.fileno()) is (timeout is None)
            tell(sock, peer.accept())


def test_the_timeout_is_carried_over_with_tls(tls: TlsPeer, context: ssl.SSLContext) -> None:
    with tls_for_life(tls, context) as (sock, end):
        sock.settimeout(7.5)
        tls_client.notify_and_fin(end)
        assert sock.recv(SIZE) == b""
        sock.settimeout(0)
        accepted = tls.begin(tls.accept_and_shake)
        assert sock.send(b"data") == 4
        end = done(accepted)
        assert sock.gettimeout() == 0
        assert end.read(4) == b"data"
        end.say(b"hello")
        assert tls_client.read_when_ready(sock) == b"hello"


def test_the_default_timeout_is_that_of_the_first_connection(peer: Peer) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(7.5)
    try:
        connector = Connector(peer.address, policy=QUIET, reconnect=AT_ONCE)
        with connector, connector.socket() as sock:
            socket.setdefaulttimeout(None)
            tell(sock, peer.accept())
            sock.send(DATA)
            assert sock.gettimeout() == 7.5
    finally:
        socket.setdefaulttimeout(before)


def test_a_call_that_does_not_block_dials_all_the_same(peer: Peer) -> None:
    with for_life(peer) as (sock, end):
        sock.setblocking(False)
        lose(sock, end)
        assert sock.recv(SIZE) == b""
        with pytest.raises(BlockingIOError):
            sock.recv(SIZE)
        end = peer.accept()
        end.say(DATA)
        kernel.wait_until(lambda: kernel.unread(sock) == len(DATA))
        assert sock.recv(SIZE) == DATA


def test_socket_options_are_carried_over(peer: Peer) -> None:
    options = [
        (*KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12345),
    ]
    with for_life(peer) as (sock, end):
        sock.setsockopt(*options[0])
        sock.setsockopt(options[1][0], options[1][1], 0)
        sock.setsockopt(*options[1])
        tell(sock, end)
        for option in options[2:]:
            sock.setsockopt(*option)
        assert not dialled(peer)
        for _ in range(2):
            sock.send(DATA)
            for level, name, value in options:
                assert sock.getsockopt(level, name) == value
            tell(sock, peer.accept())


@pytest.mark.parametrize("when", ["before the loss", "after the loss"])
def test_linger_by_hand_is_carried_over(peer: Peer, when: str) -> None:
    linger = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with for_life(peer) as (sock, end):
        if when == "before the loss":
            sock.setsockopt(*linger)
        tell(sock, end)
        if when == "after the loss":
            sock.setsockopt(*linger)
        sock.send(DATA)
        end = peer.accept()
        assert sock.policy.close == Abort()
        sock.close()
        assert end.read_to_end() == (DATA, RESET)


def test_a_half_close_is_not_carried_over(peer: Peer) -> None:
    with for_life(peer) as (sock, end):
        for _ in range(3):
            sock.sendall(DATA)
            sock.shutdown(socket.SHUT_WR)
            assert end.read_to_end() == (DATA, EOF)
            end.say(b"bye")
            end.fin()
            assert [sock.recv(SIZE), sock.recv(SIZE)] == [b"bye", b""]
            assert sock.send(b"!") == 1
            end = peer.accept()
            assert end.read(1) == b"!"


# Files ----------------------------------------------------------------------------------------


def test_a_file_is_read_to_the_end_of_its_connection_and_no_further(peer: Peer) -> None:
    with for_life(peer) as (sock, end), sock.makefile("rb") as file:
        end.say(b"one\ntwo")
        end.fin()
        assert file.readline() == b"one\n"
        assert file.read() == b"two"
        assert not dialled(peer)
        sock.send(DATA)
        end = peer.accept()
        end.say(b"three\n")
        assert file.read() == file.readline() == b""
        assert list(file) == []
        assert sock.recv(100) == b"three\n"


def test_what_a_file_has_buffered_stays_with_it(peer: Peer) -> None:
    with for_life(peer) as (sock, end), sock.makefile("rb") as old:
        end.say(b"one\ntwo\n")
        end.fin()
        assert old.readline() == b"one\n"
        with contextlib.suppress(ConnectionError):
            while sock.recv(SIZE):
                pass
        with sock.makefile("rb") as new:
            end = peer.accept()
            end.say(b"three\n")
            assert new.readline() == b"three\n"
            assert old.read() == b"two\n"


def write_out(file: Any) -> None:
    file.write(b"lost")
    file.flush()


@pytest.mark.parametrize("buffering", [-1, 0])
def test_a_file_never_writes_to_the_next_connection(peer: Peer, buffering: int) -> None:
    with for_life(peer) as (sock, end):
        file = sock.makefile("wb", buffering)
        if buffering:
            file.write(b"buffered")
        tell(sock, end)
        with pytest.raises(BrokenPipeError):
            write_out(file)
        assert not dialled(peer)
        sock.send(b"new")
        end = peer.accept()
        for _ in range(3):
            with pytest.raises(BrokenPipeError):
                write_out(file)
        if buffering:
            with pytest.raises(BrokenPipeError):
                file.close()
        file.close()
        sock.send(b"er")
        sock.close()
        assert end.read_to_end() == (b"newer", EOF)


def test_a_file_of_what_has_no_connection_dials(peer: Peer) -> None:
    with for_life(peer) as (sock, end):
        tell(sock, end)
        with sock.makefile("rwb") as file:
            end = peer.accept()
            file.write(DATA)
            file.flush()
            assert end.read(len(DATA)) == DATA
            end.say(b"yes\n")
            assert file.readline() == b"yes\n"
        assert sock.send(DATA) == len(DATA)


def test_a_file_knows_its_descriptor_only_while_it_has_one(peer: Peer) -> None:
    with for_life(peer) as (sock, end), sock.makefile("rb") as file:
        assert file.fileno() == sock.fileno()
        tell(sock, end)
        assert file.fileno() == -1
        sock.send(DATA)
        assert file.fileno() == -1


def test_an_old_file_does_not_keep_the_next_connection(peer: Peer) -> None:
    with for_life(peer) as (sock, end):
        file = sock.makefile("rb")
        tell(sock, end)
        sock.send(DATA)
        end = peer.accept()
        sock.close()
        assert end.read_to_end() == (DATA, EOF)
        assert sock.fileno() == -1
        file.close()


# Closing --------------------------------------------------------------------------------------


def test_close_is_for_good_and_closes_the_connector(peer: Peer) -> None:
    with Connector(peer.address, policy=QUIET, reconnect=AT_ONCE) as connector:
        sock = connector.socket()
        end = peer.accept()
        sock.send(DATA)
        sock.close()
        sock.close()
        assert end.read_to_end() == (DATA, EOF)
        with socket.socket() as closed:
            closed.close()
            for name, call in CALLS.items():
                assert answer(call, sock) == answer(call, closed), name
        for use in (connector.connect, connector.socket):
            with pytest.raises(ConnectionAbortedError):
                use()
        assert not dialled(peer)


def test_close_after_a_loss_is_for_good_too(peer: Peer) -> None:
    with for_life(peer) as (sock, end):
        tell(sock, end)
        sock.close()
        for call in CALLS.values():
            assert isinstance(answer(call, sock), tuple)
        assert not dialled(peer)


def test_closing_the_connector_closes_it(peer: Peer) -> None:
    with Connector(peer.address, policy=QUIET, reconnect=AT_ONCE) as connector:
        with connector.socket() as sock, sock.makefile("rb") as file:
            end = peer.accept()
            connector.close()
            assert end.read_to_end() == (b"", EOF)
            assert sock.fileno() == -1
            assert file.fileno() == -1
            for name, call in CALLS.items():
                with contextlib.suppress(OSError, ValueError):
                    assert not call(sock), name
        assert not dialled(peer)


def test_its_files_keep_the_connection_that_it_closes(peer: Peer) -> None:
    """As in the standard library: http.client reads the body of its last response so."""
    with for_life(peer) as (sock, end), sock.makefile("rwb") as file:
        sock.close()
        end.say(b"body\n")
        assert file.readline() == b"body\n"
        file.write(DATA)
        file.flush()
        assert end.read(len(DATA)) == DATA
        assert isinstance(answer(CALLS["recv"], sock), (bytes, tuple)) if dialled(peer) else True
        file.close()
        assert end.read_to_end() == (b"", EOF)
        assert sock.fileno() == -1
        assert not dialled(peer)


def test_its_files_do_not_dial_when_it_has_closed(peer: Peer) -> None:
    with for_life(peer) as (sock, end), sock.makefile("rwb") as file:
        sock.close()
        end.say(b"body\n")
        end.fin()
        assert file.read() == b"body\n"
        assert file.read() == b""
        assert not dialled(peer)


@pytest.mark.parametrize("name", ["recv", "recv_into", "recvmsg", "file-rb"])
@pytest.mark.parametrize("timeout", [None, 600.0])
def test_close_wakes_a_thread_that_reads(peer: Peer, name: str, timeout: float | None) -> None:
    with for_life(peer) as (sock, end):
        sock.settimeout(timeout)
        tell(sock, end)
        caller = Caller(READS[name].call, sock)
        end = peer.accept()
        asleep(caller.thread)
        sock.shutdown(socket.SHUT_RDWR) if name.startswith("file") else sock.close()
        caller.answer()
        sock.close()
        assert end.read_to_end() == (b"", EOF)
        assert not dialled(peer)


def check_close_wakes(sock: SafeSocket, caller: Caller) -> None:
    sock.close()
    kind, *_ = caller.answer()
    assert kind is ConnectionAbortedError
    assert sock.fileno() == -1


PATIENT = Reconnect(attempts=4, deadline=900.0, wait=tenacity.wait_none(), stable_after=1e-9)


def test_close_wakes_a_call_that_waits_for_its_next_attempt(peer: Peer) -> None:
    waiting = threading.Event()

    def wait(_: tenacity.RetryCallState) -> float:
        waiting.set()
        return 600.0

    reconnect = Reconnect(attempts=4, deadline=900.0, wait=wait, stable_after=1e-9)
    with for_life(peer, reconnect=reconnect) as (sock, end):
        tell(sock, end)
        peer.listener.close()
        caller = Caller(CALLS["recv"], sock)
        assert waiting.wait(TIMEOUT)
        check_close_wakes(sock, caller)


def test_close_wakes_a_call_that_waits_for_the_peer_to_accept(here: tuple[str, int]) -> None:
    with (
        Peer() as peer,
        for_life(peer, reconnect=PATIENT, timeout=None, local_address=here) as (sock, end),
        contextlib.ExitStack() as fillers,
    ):
        tell(sock, end)
        peer.listener.listen(0)
        for _ in range(4):  # The backlog is full: the next SYN gets no answer.
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(peer.address)
        caller = Caller(CALLS["send"], sock)
        kernel.wait_until(lambda: kernel.state(here, peer.address) == "SYN_SENT")
        check_close_wakes(sock, caller)


def test_close_wakes_a_call_that_waits_for_the_handshake(
    tls: TlsPeer, context: ssl.SSLContext
) -> None:
    options: dict[str, Any] = {"reconnect": PATIENT, "timeout": None}
    with tls_for_life(tls, context, **options) as (sock, end):
        tls_client.notify_and_fin(end)
        assert sock.recv(SIZE) == b""
        caller = Caller(CALLS["recv"], sock)
        end = tls.accept_tls()
        kernel.wait_until(lambda: kernel.unread(end.sock), "the client's hello is here")
        asleep(caller.thread)
        check_close_wakes(sock, caller)


def test_close_wakes_a_call_that_waits_in_on_connect(peer: Peer) -> None:
    greeted = threading.Event()

    def log_in(sock: SafeSocket) -> None:
        if greeted.is_set():
            sock.settimeout(None)
            sock.recv(SIZE)
        greeted.set()

    with for_life(peer, reconnect=PATIENT, timeout=None, on_connect=log_in) as (sock, end):
        tell(sock, end)
        caller = Caller(CALLS["recv"], sock)
        end = peer.accept()
        asleep(caller.thread)
        sock.close()
        assert caller.answer() == b"" or caller.answer()[0] is ConnectionAbortedError
        assert end.read_to_end() == (b"", EOF)


def test_close_ends_a_connection_that_another_thread_has_just_made(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever close has done already by the time that it is there."""
    begun, greeted = threading.Event(), threading.Event()

    def log_in(sock: SafeSocket) -> None:
        if begun.is_set():
            greeted.set()
            sock.settimeout(None)
            sock.recv(SIZE)

    connector = Connector(peer.address, policy=QUIET, reconnect=PATIENT, on_connect=log_in)
    with connector, connector.socket() as sock:
        tell(sock, peer.accept())
        dial, stop = connector._dialler.dial, connector._stop
        closing = threading.Event()

        def dial_late(until: float) -> SafeSocket:
            begun.set()
            assert closing.wait(TIMEOUT)
            return dial(until)

        def stop_late() -> None:
            closing.set()
            assert greeted.wait(TIMEOUT)
            stop()

        monkeypatch.setattr(connector._dialler, "dial", dial_late)
        monkeypatch.setattr(sock, "_when_closed", stop_late)
        caller = Caller(CALLS["recv"], sock)
        assert begun.wait(TIMEOUT)
        sock.close()
        assert caller.answer() == b"" or caller.answer()[0] is ConnectionAbortedError
        assert peer.accept().read_to_end() == (b"", EOF)


# Left behind, given away, duplicated --------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "how"), [(QUIET, EOF), (Policy(Abort(), watch=False), RESET), (WATCHED, EOF)]
)
@pytest.mark.parametrize("losses", [0, 1])
def test_left_behind_it_ends_by_its_policy(
    peer: Peer, policy: Policy, how: str, losses: int
) -> None:
    connector = Connector(peer.address, policy=policy, reconnect=AT_ONCE)
    sock = connector.socket()
    sock.settimeout(TIMEOUT)
    end = peer.accept()
    for _ in range(losses):
        end.fin()
        assert sock.recv(SIZE) == b""
        sock.send(DATA)
        end = peer.accept()
    gone = weakref.ref(sock)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del sock
    assert gone() is None
    assert end.read_to_end()[1] == how
    with connector.connect() as plain:  # The connector is nobody's now.
        plain.sendall(DATA)
        assert peer.accept().read(len(DATA)) == DATA
    connector.close()


def test_left_behind_it_ends_although_an_attempt_has_failed(peer: Peer) -> None:
    calls: list[None] = []

    def fail_once(_: SafeSocket) -> None:
        calls.append(None)
        if len(calls) == 2:
            raise ValueError("not today")

    def use() -> weakref.ref[SafeSocket]:
        sock = connector.socket()
        tell(sock, peer.accept())
        sock.send(DATA)
        return weakref.ref(sock)

    connector = Connector(peer.address, reconnect=AT_ONCE, policy=QUIET, on_connect=fail_once)
    with connector:
        with pytest.warns(ResourceWarning, match="unclosed"):
            gone = use()
        assert gone() is None
        assert [peer.accept().read_to_end() for _ in range(2)] == [(b"", EOF), (DATA, EOF)]


def test_detach_gives_the_connection_away_and_is_for_good(peer: Peer) -> None:
    with for_life(peer) as (sock, end):
        with socket.socket(fileno=sock.detach()) as plain:
            assert sock.fileno() == -1
            plain.sendall(DATA)
            assert end.read(len(DATA)) == DATA
            for call in CALLS.values():
                assert isinstance(answer(call, sock), tuple)
            assert not dialled(peer)
            sock.close()
            plain.sendall(DATA)
        assert end.read_to_end() == (DATA, EOF)


def test_a_duplicate_does_not_come_back(peer: Peer) -> None:
    with for_life(peer) as (sock, end):
        sock.settimeout(7.5)
        with sock.dup() as duplicate:
            assert isinstance(duplicate, SafeSocket)
            assert type(duplicate) is not type(sock)
            assert duplicate.gettimeout() == 7.5
            assert duplicate.fileno() != sock.fileno()
            duplicate.sendall(DATA)
            assert end.read(len(DATA)) == DATA
            tell(sock, end)
            assert duplicate.recv(SIZE) == b""
            assert answer(CALLS["sendall"], duplicate)[0] is BrokenPipeError
            assert not dialled(peer)


def test_a_forked_child_that_closes_it_leaves_the_connection_alone(peer: Peer) -> None:
    with for_life(peer) as (sock, end):
        in_child(sock.close)
        sock.send(DATA)
        assert end.read(len(DATA)) == DATA
        end.say(b"yes")
        assert sock.recv(SIZE) == b"yes"


# The budget -------------------------------------------------------------------------------------


def test_when_the_budget_is_used_up_every_call_says_so() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = listener.getsockname()
        connector = stack.enter_context(Connector(address, policy=QUIET, reconnect=FEW))
        sock = stack.enter_context(connector.socket())
        connector.confirm()
        tell(sock, PeerEnd(listener.accept()[0]))
        listener.close()
        # Bound, and so nobody else's, and not listening: the kernel refuses.
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        for call in (CALLS["recv"], CALLS["send"], CALLS["file-rb"], CALLS["sendfile"]):
            with pytest.raises(ReconnectError) as caught:
                call(sock)
            kinds = [type(error) for error in caught.value.attempts]
            assert kinds == [ConnectionRefusedError] * FEW.attempts
            assert sock.fileno() == -1
        listener.listen()
        with pytest.raises(ReconnectError):
            sock.recv(SIZE)
        connector.confirm()
        assert sock.send(DATA) == len(DATA)
        listener.settimeout(TIMEOUT)
        with listener.accept()[0] as end:
            assert end.recv(SIZE) == DATA


def test_connections_that_do_not_last_use_the_budget_up(peer: Peer) -> None:
    reconnect = Reconnect(attempts=3, deadline=TIMEOUT, wait=tenacity.wait_none())
    with for_life(peer, reconnect=reconnect) as (sock, end):
        for _ in range(3):
            tell(sock, end)
            sock.send(DATA)
            end = peer.accept()
        tell(sock, end)
        for _ in range(2):
            with pytest.raises(ReconnectError) as caught:
                sock.send(DATA)
            assert len(caught.value.attempts) == 3
        assert not dialled(peer)


# on_connect ------------------------------------------------------------------------------------


def test_on_connect_gets_the_object_itself(peer: Peer, threads: ThreadPoolExecutor) -> None:
    seen: list[SafeSocket] = []

    def log_in(sock: SafeSocket) -> None:
        seen.append(sock)
        sock.sendall(b"user")
        assert sock.recv(2) == b"ok"

    def admit() -> PeerEnd:
        end = peer.accept()
        assert end.read(4) == b"user"
        end.say(b"ok")
        return end

    admitted = threads.submit(admit)
    connector = Connector(peer.address, policy=QUIET, reconnect=AT_ONCE, on_connect=log_in)
    with connector, connector.socket() as sock:
        for _ in range(3):
            tell(sock, admitted.result(TIMEOUT))
            admitted = threads.submit(admit)
            sock.sendall(DATA)
            assert admitted.result(TIMEOUT).read(len(DATA)) == DATA
            tell(sock, admitted.result())
            admitted = threads.submit(admit)
            sock.sendall(DATA)
        assert len(seen) == 7
        assert {id(one) for one in seen} == {id(sock)}
        admitted.result(TIMEOUT)
        seen.clear()


def refuse(peer: Peer, count: int) -> None:
    for _ in range(count):
        peer.accept().fin()


def test_calls_of_on_connect_do_not_dial(peer: Peer, threads: ThreadPoolExecutor) -> None:
    said: list[Any] = []

    def log_in(sock: SafeSocket) -> None:
        if said:
            said.append([sock.recv(SIZE) for _ in range(3)])
            said.append(answer(CALLS["send"], sock))
            said.append(answer(CALLS["file-rb"], sock))
        said.append(None)

    with for_life(peer, reconnect=FEW, on_connect=log_in) as (sock, end):
        tell(sock, end)
        refusing = threads.submit(refuse, peer, FEW.attempts)
        with pytest.raises(ReconnectError) as caught:
            sock.recv(SIZE)
        refusing.result(TIMEOUT)
        assert [type(one) for one in caught.value.attempts] == [ConnectionError] * FEW.attempts
        assert said[1:4] == [[b""] * 3, (BrokenPipeError, 32, "[Errno 32] Broken pipe"), b""]
        assert not dialled(peer)


@pytest.mark.parametrize("error", [ValueError("not today"), OSError("nor tomorrow")])
def test_an_on_connect_that_raises_leaves_nothing_open(peer: Peer, error: Exception) -> None:
    failing = threading.Event()

    def log_in(_: SafeSocket) -> None:
        if failing.is_set():
            raise error

    with for_life(peer, reconnect=FEW, on_connect=log_in) as (sock, end):
        sock.settimeout(7.5)
        tell(sock, end)
        before = kernel.descriptors()
        failing.set()
        with pytest.raises(ReconnectError) as caught:
            sock.send(DATA)
        assert caught.value.attempts == [error] * FEW.attempts
        assert sock.fileno() == -1
        assert kernel.left_open(before) == []
        assert [peer.accept().read_to_end() for _ in range(4)] == [(b"", EOF)] * 4


def test_after_an_on_connect_that_raised_it_is_as_good_as_ever(peer: Peer) -> None:
    calls: list[float | None] = []

    def log_in(sock: SafeSocket) -> None:
        calls.append(sock.gettimeout())
        if len(calls) in (2, 3):
            raise ValueError("not yet")

    with for_life(peer, on_connect=log_in) as (sock, end):
        sock.settimeout(7.5)
        tell(sock, end)
        assert sock.send(DATA) == len(DATA)
        assert len(calls) == 4
        assert sock.gettimeout() == 7.5
        assert loss_of(sock) is None
        ends = [peer.accept() for _ in range(3)]
        assert [end.read_to_end() for end in ends[:2]] == [(b"", EOF)] * 2
        assert ends[2].read(len(DATA)) == DATA


def test_nobody_else_gets_the_connection_before_on_connect_is_done(
    peer: Peer,
) -> None:
    logged_in: list[bytes] = []
    again, go_on = threading.Event(), threading.Event()

    def log_in(sock: SafeSocket) -> None:
        if again.is_set():
            go_on.wait(TIMEOUT)
            sock.settimeout(TIMEOUT)
            logged_in.append(sock.recv(2))

    with for_life(peer, on_connect=log_in) as (sock, end):
        tell(sock, end)
        again.set()
        caller = Caller(CALLS["recv"], sock)
        end = peer.accept()
        sender = Caller(CALLS["send"], sock)
        reader = Caller(CALLS["recv"], sock)
        for waiting in (caller, sender, reader):
            kernel.wait_until(functools.partial(is_at_rest, waiting.thread))
        end.say(b"ok")
        kernel.wait_until(lambda: kernel.unread(sock) == 2 or not reader.thread.is_alive())
        go_on.set()
        assert sender.answer() == len(DATA)
        assert logged_in == [b"ok"]
        assert end.read(len(DATA)) == DATA
        end.say(b"1")
        kernel.wait_until(lambda: not (caller.thread.is_alive() and reader.thread.is_alive()))
        end.say(b"2")
        assert sorted([caller.answer(), reader.answer()]) == [b"1", b"2"]


def is_at_rest(thread: threading.Thread) -> bool:
    """It waits, for whatever it is, or has ended."""
    if not thread.is_alive():
        return True
    with open(f"/proc/self/task/{thread.native_id}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


# Two threads -------------------------------------------------------------------------------------

MESSAGE = 20_000
CUTS = 50


def message(number: int) -> bytes:
    return struct.pack(">I", number) * (MESSAGE // 4)


def broken_messages(data: bytes) -> list[int]:
    """The places in a stream of messages where a word is not of the message that is due there."""
    words = struct.unpack(f">{len(data) // 4}I", data[: len(data) // 4 * 4])
    size = MESSAGE // 4
    return [
        at
        for at, word in enumerate(words)
        if word != words[at // size * size] or (at and at % size == 0 and word <= words[at - 1])
    ]


class Cutter:
    """A peer that reads, speaks, and cuts each connection somewhere."""

    def __init__(self, peer: Peer, seed: int) -> None:
        self.peer = peer
        self.random = random.Random(seed)
        self.received: list[bytes] = []
        self.ended_by_others = 0

    def run(self, end: PeerEnd) -> None:
        self.cut(end)
        for _ in range(CUTS):
            self.cut(self.peer.accept())

    def cut(self, end: PeerEnd) -> None:
        limit = self.random.randrange(3 * MESSAGE)
        received = bytearray()
        while len(received) < limit:
            data = end.sock.recv(min(limit - len(received), 65536))
            self.ended_by_others += not data
            if not data:
                break
            received += data
        with contextlib.suppress(ConnectionError):
            end.say(b"." * self.random.randrange(100))
        self.random.choice([end.fin, end.rst, end.half_close])()
        if end.sock.fileno() >= 0:
            received += end.read_to_end()[0]
        end.close()
        self.received.append(bytes(received))


@pytest.mark.parametrize(
    ("policy", "timeout"),
    [
        (WATCHED, None),
        pytest.param(WATCHED, TIMEOUT, marks=campaign),
        pytest.param(QUIET, None, marks=campaign),
        pytest.param(QUIET, TIMEOUT, marks=campaign),
    ],
)
def test_a_reader_and_a_writer(
    threads: ThreadPoolExecutor, timeout: float | None, policy: Policy
) -> None:
    with Peer(receive_buffer=8192) as peer, for_life(peer, policy) as (sock, end):
        done_with = threading.Event()
        cutter = Cutter(peer, seed=7)
        sock.settimeout(timeout)

        def read(_: int) -> None:
            sock.recv(64)

        def write(number: int) -> None:
            sock.sendall(message(number))

        def use(call: Callable[[int], None]) -> None:
            for number in itertools.count(1):
                try:
                    call(number)
                except (ConnectionResetError, BrokenPipeError):
                    pass  # The loss, told as ever.
                except OSError:
                    if not done_with.is_set():
                        raise
                if done_with.is_set():
                    return

        users = [threads.submit(use, call) for call in (read, write)]
        cutting = threads.submit(cutter.run, end)
        try:
            cutting.result(2 * TIMEOUT)
        finally:
            done_with.set()
            sock.close()
        for user in users:
            user.result(TIMEOUT)
        assert cutter.ended_by_others == 0
        assert [broken_messages(data)[:1] for data in cutter.received] == [[]] * (CUTS + 1)


def test_many_threads_that_find_it_lost_dial_once(peer: Peer, threads: ThreadPoolExecutor) -> None:
    with for_life(peer) as (sock, end):
        for _ in range(20):
            tell(sock, end)
            together = threading.Barrier(4)

            def send(together: threading.Barrier = together) -> int:
                together.wait(TIMEOUT)
                return sock.send(DATA)

            sent = [threads.submit(send) for _ in range(4)]
            assert [one.result(TIMEOUT) for one in sent] == [len(DATA)] * 4
            end = peer.accept()
            assert end.read(4 * len(DATA)) == 4 * DATA
            assert not dialled(peer)


# In use -----------------------------------------------------------------------------------------


def test_http_client_over_it(peer: Peer, threads: ThreadPoolExecutor) -> None:
    def serve_one(end: PeerEnd, body: bytes, *fields: bytes) -> PeerEnd:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += end.read(1)
        length = b"Content-Length: %d" % len(body)
        end.say(b"\r\n".join([b"HTTP/1.1 200 OK", length, *fields, b"", body]))
        return end

    with for_life(peer) as (sock, end):
        client = http.client.HTTPConnection(*peer.address)
        client.sock = sock
        for turn in range(5):
            served = threads.submit(serve_one, end, b"%d" % turn)
            client.request("GET", "/")
            assert client.getresponse().read() == b"%d" % turn
            served.result(TIMEOUT)
            if turn % 2:  # It has timed out at the server.
                tell(sock, end)
                accepted = threads.submit(peer.accept)
                client.request("GET", "/")
                end = accepted.result(TIMEOUT)
                serve_one(end, b"again")
                assert client.getresponse().read() == b"again"
        # It closes the socket before it gives the response: the body is still to be read.
        served = threads.submit(serve_one, end, b"last", b"Connection: close")
        client.request("GET", "/")
        with client.getresponse() as response:
            assert served.result(TIMEOUT) is end
            assert response.read() == b"last"
        assert end.read_to_end() == (b"", EOF)
        assert not dialled(peer)


def test_a_line_protocol_over_it(peer: Peer, threads: ThreadPoolExecutor) -> None:
    """As smtplib and ftplib speak: lines are sent with sendall, answers read from a file."""

    def reply() -> PeerEnd:
        end = peer.accept()
        line = b""
        while not line.endswith(b"\r\n"):
            line += end.read(1)
        end.say(b"250 " + line)
        end.fin()
        return end

    with for_life(peer) as (sock, end):
        tell(sock, end)
        for turn in range(5):
            served = threads.submit(reply)
            sock.sendall(b"NOOP %d\r\n" % turn)
            with sock.makefile("rb") as file:
                assert file.readline() == b"250 NOOP %d\r\n" % turn
                assert file.readline() == b""
            served.result(TIMEOUT)


def test_its_descriptor_can_be_selected_on(peer: Peer) -> None:
    with for_life(peer) as (sock, end), selectors.DefaultSelector() as selector:
        for _ in range(3):
            key = selector.register(sock, selectors.EVENT_READ)
            assert selector.select(0) == []
            end.say(DATA)
            assert [one.fileobj for one, _ in selector.select(TIMEOUT)] == [sock]
            assert sock.recv(SIZE) == DATA
            end.fin()
            assert [one.fileobj for one, _ in selector.select(TIMEOUT)] == [sock]
            assert sock.recv(SIZE) == b""
            assert selector.unregister(sock) == key
            with pytest.raises(ValueError, match="-1"):
                selector.register(sock, selectors.EVENT_READ)
            assert not dialled(peer)
            sock.send(DATA)
            end = peer.accept()
            assert end.read(len(DATA)) == DATA
