"""`Connector`: one connection after the other, each ended by its policy whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import random
import re
import signal
import socket
import struct
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import kernel
import pytest
import tenacity
from kernel import wait_until
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd
from process import Gate, forked, in_child, run_script

from safesock import (
    Abort,
    Cause,
    Connector,
    Drain,
    Graceful,
    Linger,
    Policy,
    Reconnect,
    ReconnectError,
    SafeSocket,
)
from safesock._policy import CloseMode

Result = TypeVar("Result")

campaign = pytest.mark.campaign
MODES: list[CloseMode] = [Graceful(), Drain(0.1), Linger(1), Abort()]
# The RST that ends a Drain comes after the FIN, which a reader sees.
SEEN = {Graceful: EOF, Drain: EOF, Linger: EOF, Abort: RESET}
by_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: type(mode).__name__)
# Where there is much else to choose.
by_each_mode = pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=[campaign] * isinstance(mode, (Drain, Linger))) for mode in MODES],
    ids=[type(mode).__name__ for mode in MODES],
)
by_two_modes = pytest.mark.parametrize("mode", [Graceful(), Abort()], ids=["Graceful", "Abort"])
by_on_loss = pytest.mark.parametrize("on_loss", ["close", "release", "keep"])
by_each_on_loss = pytest.mark.parametrize(
    "on_loss", ["close", *(pytest.param(one, marks=campaign) for one in ("release", "keep"))]
)


@pytest.fixture(autouse=True)
def _nothing_left(peer: Peer) -> Iterator[None]:
    threads, before = set(threading.enumerate()), kernel.descriptors()
    yield
    for end in peer.ends:
        end.close()
    try:
        wait_until(lambda: not others(threads), "no thread is left")
    except AssertionError:
        pytest.fail(f"left: {others(threads)}")
    assert kernel.left_open(before) == []


def others(threads: set[threading.Thread]) -> list[threading.Thread]:
    """The threads that run, but for these."""
    return [thread for thread in threading.enumerate() if thread not in threads]


def budget(**choices: Any) -> Reconnect:
    """Attempts without a wait between them, and with time enough."""
    defaults: dict[str, Any] = {"wait": tenacity.wait_none(), "deadline": 3 * TIMEOUT}
    return Reconnect(**defaults | choices)


def to(peer: Peer, **options: Any) -> Connector:
    return Connector(peer.address, **{"reconnect": budget()} | options)


@contextlib.contextmanager
def connected(connector: Connector, peer: Peer) -> Iterator[tuple[SafeSocket, PeerEnd]]:
    with connector.connect() as sock:
        yield sock, peer.accept()


def addresses(sock: socket.socket) -> tuple[Any, Any]:
    return sock.getsockname(), sock.getpeername()


def assert_works(sock: SafeSocket, end: PeerEnd) -> None:
    sock.sendall(b"question")
    assert end.read(8) == b"question"
    end.say(b"answer")
    assert sock.recv(6) == b"answer"
    assert kernel.state_of(sock) == "ESTABLISHED"
    assert sock.loss is None
    assert sock.close_report is None


class InThread:
    """A call in a thread of its own, joined at the end of `with`."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.future: Future[object] = Future()
        self._call = call
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.future.set_result(self._call())
        except BaseException as error:
            self.future.set_exception(error)

    def error(self) -> BaseException | None:
        return self.future.exception(TIMEOUT)

    def __enter__(self) -> InThread:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()


def is_in_lock(thread: threading.Thread) -> bool:
    with open(f"/proc/self/task/{thread.native_id}/wchan", encoding="ascii") as file:
        return file.read().startswith("futex")


class Sleeping:
    """A wait strategy that lets a connector sleep for a minute, and tells when it is about to."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def __call__(self, _state: tenacity.RetryCallState) -> float:
        self._asked.set()
        return 59.0

    def wait_until_asleep(self, thread: threading.Thread) -> None:
        assert self._asked.wait(TIMEOUT)
        wait_until(lambda: is_in_lock(thread), "it sleeps")


@contextlib.contextmanager
def signal_once(
    number: int, handler: Any, ready: Callable[[threading.Thread], None]
) -> Iterator[None]:
    """Sends a real signal to this thread, once it is *ready*."""
    this = threading.current_thread()

    def send() -> None:
        ready(this)
        assert this.ident is not None
        signal.pthread_kill(this.ident, number)

    before = signal.signal(number, handler)
    try:
        with InThread(send) as sender:
            yield
        assert sender.error() is None
    finally:
        signal.signal(number, before)


def ctrl_c(ready: Callable[[threading.Thread], None] | None = None) -> Any:
    """SIGINT, unless told otherwise once this thread waits in a system call."""
    return signal_once(
        signal.SIGINT, signal.default_int_handler, ready or kernel.wait_until_blocked
    )


@contextlib.contextmanager
def full(*peers: Peer) -> Iterator[None]:
    """Their backlog is full: a connect stays in SYN_SENT."""
    with contextlib.ExitStack() as fillers:
        for peer in peers:
            peer.listener.listen(0)
            fillers.enter_context(socket.create_connection(peer.address, TIMEOUT))
            wait_until(partial(backlog, peer.listener), "it is full")
        yield


def backlog(listener: socket.socket) -> int:
    """The connections that wait to be accepted (TCP_INFO of a listening socket)."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int(struct.unpack_from("=I", info, 24)[0])


def accept_all(peer: Peer) -> None:
    """Those that are waiting, so that there is room again."""
    while backlog(peer.listener):
        peer.accept()


def dialling(address: tuple[str, int]) -> list[tuple[str, int]]:
    """The local addresses of the connections that are being made."""
    return [
        local
        for (local, remote), state in kernel.connections().items()
        if remote == address and state == "SYN_SENT"
    ]


def wait_until_dialling(address: tuple[str, int]) -> None:
    wait_until(lambda: dialling(address), "SYN_SENT")


# connect ----------------------------------------------------------------------------------------


def test_connect_gives_a_safe_socket_under_the_policy(peer46: Peer) -> None:
    policy = Policy(Drain(0.2), nodelay=True)
    with to(peer46, policy=policy) as connector, connected(connector, peer46) as (sock, end):
        assert isinstance(sock, SafeSocket)
        assert type(sock) is SafeSocket
        assert sock.family == peer46.listener.family
        assert sock.getpeername()[:2] == peer46.address
        assert sock.policy is policy
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert_works(sock, end)


def test_connect_gives_the_default_policy(peer: Peer) -> None:
    with to(peer) as connector, connector.connect() as sock:
        assert sock.policy == Policy()


def test_address_may_be_a_list_and_the_port_a_string(peer: Peer) -> None:
    host, port = peer.address
    connector = Connector([host, str(port)], reconnect=budget())  # type: ignore[arg-type]
    with connector, connected(connector, peer) as (sock, end):
        assert_works(sock, end)


@pytest.mark.parametrize("files", [0, 1, 3])
@by_each_mode
def test_connection_before_is_closed_before_the_next_is_dialled(
    peer: Peer, mode: CloseMode, files: int
) -> None:
    """The next one stays in SYN_SENT, and the peer has seen the end of the one before."""
    with to(peer, policy=Policy(mode), timeout=3 * TIMEOUT) as connector:
        sock = connector.connect()
        end, ends = peer.accept(), addresses(sock)
        opened = [sock.makefile("rb") for _ in range(files)]
        with full(peer), InThread(connector.connect) as call:
            wait_until_dialling(peer.address)
            assert end.read_to_end() == (b"", SEEN[type(mode)])
            assert sock.fileno() == -1
            assert kernel.state(*ends) in (None, "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT")
            assert not call.future.done()
            connector.close()
            assert isinstance(call.error(), ConnectionAbortedError)
        for file in opened:
            file.close()


@by_on_loss
@by_each_mode
def test_connection_that_was_lost_is_closed_before_the_next(
    peer: Peer, mode: CloseMode, on_loss: Any
) -> None:
    with to(peer, policy=Policy(mode, on_loss, watch=False)) as connector:
        sock = connector.connect()
        end, ends = peer.accept(), addresses(sock)
        end.half_close()
        assert sock.recv(1) == b""
        assert (sock.fileno() == -1) == (on_loss == "close")
        with connected(connector, peer) as (again, other):
            assert sock.fileno() == -1
            assert kernel.state(*ends) in (None, "LAST_ACK")
            assert sock.loss is not None
            assert sock.loss.cause is Cause.FIN
            assert_works(again, other)
        assert end.read_to_end() == (b"", SEEN[type(mode)])


def test_socket_that_its_owner_has_detached_is_no_longer_the_connectors(peer: Peer) -> None:
    with to(peer) as connector:
        sock = connector.connect()
        with socket.socket(fileno=sock.detach()) as mine:
            end = peer.accept()
            with connector.connect():
                peer.accept()
                mine.sendall(b"mine")
                assert end.read(4) == b"mine"


# Iteration --------------------------------------------------------------------------------------


@by_mode
def test_each_turn_has_a_connection_and_the_one_before_has_ended(
    peer: Peer, mode: CloseMode
) -> None:
    socks: list[SafeSocket] = []
    with to(peer, policy=Policy(mode)) as connector:
        for sock in connector:
            socks.append(sock)
            assert_works(sock, peer.accept())
            if len(socks) > 1:
                assert socks[-2].fileno() == -1
                assert peer.ends[-2].read_to_end() == (b"", SEEN[type(mode)])
            if len(socks) == 4:
                break
        assert peer.ends[-1].read_to_end() == (b"", SEEN[type(mode)])
    assert len({id(sock) for sock in socks}) == len(peer.ends) == 4


def test_connection_that_ends_in_its_turn_is_followed_by_another(peer: Peer) -> None:
    with to(peer) as connector:
        for number, sock in enumerate(connector):
            end = peer.accept()
            if number == 3:
                break
            (end.fin, end.rst, sock.close)[number]()
            with contextlib.suppress(ConnectionResetError, OSError):
                assert sock.recv(1) == b""
        assert number == 3


def leave_by_break(connector: Connector, peer: Peer) -> None:
    for _ in connector:
        peer.accept()
        break


def leave_by_return(connector: Connector, peer: Peer) -> None:
    def inner() -> object:
        for _ in connector:
            return peer.accept()
        return None

    assert inner() is not None


def use_each(connector: Connector, peer: Peer, use: Callable[[SafeSocket], object]) -> None:
    for sock in connector:
        peer.accept()
        use(sock)


def divide_by_zero(sock: SafeSocket) -> None:
    raise ZeroDivisionError(sock)


def wait_for_nothing(_sock: SafeSocket) -> None:
    threading.Event().wait(TIMEOUT)


def leave_by_exception(connector: Connector, peer: Peer) -> None:
    with pytest.raises(ZeroDivisionError):
        use_each(connector, peer, divide_by_zero)


def leave_by_ctrl_c_in_recv(connector: Connector, peer: Peer) -> None:
    with pytest.raises(KeyboardInterrupt), ctrl_c():
        use_each(connector, peer, lambda sock: sock.recv(1))


def leave_by_ctrl_c_in_a_wait(connector: Connector, peer: Peer) -> None:
    count = len(peer.ends)

    def ready(thread: threading.Thread) -> None:
        wait_until(lambda: len(peer.ends) > count and is_in_lock(thread), "it waits")

    with pytest.raises(KeyboardInterrupt), ctrl_c(ready):
        use_each(connector, peer, wait_for_nothing)


def leave_by_dropping(connector: Connector, peer: Peer) -> None:
    turns = iter(connector)
    next(turns)
    peer.accept()
    del turns


def leave_by_closing(connector: Connector, peer: Peer) -> None:
    turns: Any = iter(connector)
    with contextlib.closing(turns):
        next(turns)
        peer.accept()


def leave_with_an_open_file(connector: Connector, peer: Peer) -> None:
    for sock in connector:
        peer.accept()
        file = sock.makefile("rb")
        break
    file.close()


LEAVE = [
    leave_by_break,
    leave_by_return,
    leave_by_exception,
    leave_by_ctrl_c_in_recv,
    leave_by_ctrl_c_in_a_wait,
    leave_by_dropping,
    leave_by_closing,
    leave_with_an_open_file,
]


@pytest.mark.parametrize("leave", LEAVE)
@by_each_mode
def test_leaving_the_loop_closes_by_the_policy_and_the_loop_can_be_begun_again(
    peer: Peer, mode: CloseMode, leave: Callable[[Connector, Peer], None]
) -> None:
    connector = to(peer, policy=Policy(mode))
    for count in (1, 2):
        leave(connector, peer)
        assert len(peer.ends) == count
        assert peer.ends[-1].read_to_end() == (b"", SEEN[type(mode)])
    for sock in connector:
        assert_works(sock, peer.accept())
        break
    connector.close()


def test_iterator_that_was_not_begun_does_not_connect(peer: Peer) -> None:
    with to(peer) as connector, connected(connector, peer) as (sock, end):
        del sock
        turns = iter(connector)
        del turns
        assert not backlog(peer.listener)
        end.say(b"x")


@pytest.mark.parametrize("newer", ["connect", "iterator"])
def test_dropping_an_iterator_leaves_a_newer_connection_alone(peer: Peer, newer: str) -> None:
    with to(peer) as connector:
        turns = iter(connector)
        first = next(turns)
        peer.accept()
        others = iter(connector)
        sock = connector.connect() if newer == "connect" else next(others)
        assert first.fileno() == -1
        del turns
        assert_works(sock, peer.accept())


def test_reconnect_error_comes_out_of_the_loop() -> None:
    def use(sock: SafeSocket) -> None:
        peer.ends[-1].fin()
        peer.listener.close()
        assert sock.recv(1) == b""

    with Peer() as peer, to(peer, reconnect=budget(attempts=3)) as connector:
        with pytest.raises(ReconnectError) as caught:
            use_each(connector, peer, use)
        assert len(peer.ends) == 1
    error = caught.value
    assert error.address[0] == "127.0.0.1"
    lost, *refused = error.attempts
    assert type(lost) is ConnectionError
    assert [type(one) for one in refused] == [ConnectionRefusedError] * 2
    assert error.__cause__ is refused[-1]
    assert "the limit is 3" in str(error)


def test_loop_can_be_begun_again_after_a_reconnect_error_and_confirm(peer: Peer) -> None:
    fails = [OSError("no")]

    def greet(_sock: SafeSocket) -> None:
        if fails:
            raise fails[0]

    with to(peer, reconnect=budget(attempts=1), on_connect=greet) as connector:
        for _ in range(2):
            with pytest.raises(ReconnectError):
                list(connector)
        assert len(drain_backlog(peer)) == 1, "the budget was used up"
        fails.clear()
        connector.confirm()
        for sock in connector:
            assert_works(sock, peer.accept())
            break


def drain_backlog(peer: Peer) -> list[PeerEnd]:
    ends = []
    while backlog(peer.listener):
        ends.append(peer.accept())
    return ends


# on_connect -------------------------------------------------------------------------------------


def test_on_connect_runs_before_anybody_gets_the_connection(peer: Peer) -> None:
    news: list[tuple[str, SafeSocket]] = []

    def log_in(sock: SafeSocket) -> None:
        end = peer.accept()
        sock.sendall(b"user")
        assert end.read(4) == b"user"
        end.say(b"ok")
        assert sock.recv(2) == b"ok"
        news.append(("on_connect", sock))

    with to(peer, on_connect=log_in) as connector:
        news.append(("connect", connector.connect()))
        assert_works(news[-1][1], peer.ends[-1])
        for sock in connector:
            news.append(("turn", sock))
            assert_works(sock, peer.ends[-1])
            break
    assert [what for what, _ in news] == ["on_connect", "connect", "on_connect", "turn"]
    assert news[0][1] is news[1][1]
    assert news[2][1] is news[3][1]


@by_mode
def test_exception_of_on_connect_closes_by_the_policy_and_counts(
    peer: Peer, mode: CloseMode
) -> None:
    errors = [OSError("one"), AttributeError("two"), ConnectionAbortedError("three")]
    raised = iter(errors)

    def greet(sock: SafeSocket) -> None:
        sock.makefile("rb")
        raise next(raised)

    with (
        to(peer, policy=Policy(mode), reconnect=budget(attempts=3), on_connect=greet) as connector,
        pytest.raises(ReconnectError) as caught,
    ):
        connector.connect()
    assert caught.value.attempts == errors
    assert caught.value.__cause__ is errors[-1]
    assert [end.read_to_end() for end in drain_backlog(peer)] == [(b"", SEEN[type(mode)])] * 3


def test_after_on_connect_has_failed_the_next_connection_is_given(peer: Peer) -> None:
    raised = [OSError("one"), OSError("two")]

    def greet(_sock: SafeSocket) -> None:
        if raised:
            raise raised.pop()

    with to(peer, on_connect=greet) as connector, connector.connect() as sock:
        ends = drain_backlog(peer)
        assert len(ends) == 3
        assert_works(sock, ends[-1])


def recv_for_long(sock: SafeSocket) -> None:
    sock.settimeout(TIMEOUT)
    assert sock.recv(1) == b""
    raise EOFError


def recv_and_swallow(sock: SafeSocket) -> None:
    sock.settimeout(TIMEOUT)
    with contextlib.suppress(OSError):
        sock.recv(1)


def read_a_file(sock: SafeSocket) -> None:
    sock.settimeout(TIMEOUT)
    with sock.makefile("rb") as file:
        file.readline()


def wait_for_the_cut(sock: SafeSocket) -> None:
    wait_until(lambda: sock.fileno() < 0, "it is cut")


@by_each_on_loss
@by_mode
@pytest.mark.parametrize(
    "greet",
    [
        recv_for_long,
        recv_and_swallow,
        pytest.param(read_a_file, marks=campaign),
        pytest.param(wait_for_the_cut, marks=campaign),
    ],
)
def test_on_connect_is_cut_at_the_deadline(
    peer: Peer, mode: CloseMode, on_loss: Any, greet: Callable[[SafeSocket], None]
) -> None:
    """By its policy, but nothing is waited for."""
    if isinstance(mode, Drain):
        mode = Drain(60.0)
    policy = Policy(mode, on_loss)
    choice = budget(deadline=0.25)
    began = time.monotonic()
    with (
        to(peer, policy=policy, reconnect=choice, on_connect=greet) as connector,
        pytest.raises(ReconnectError, match=r"the deadline of 0\.25 s") as caught,
    ):
        connector.connect()
    assert 0.25 <= time.monotonic() - began < TIMEOUT
    (error,) = caught.value.attempts
    assert isinstance(error, TimeoutError)
    assert peer.accept().read_to_end() == (b"", SEEN[type(mode)])


@campaign
def test_on_connect_is_done_with_the_connection_when_its_time_is_not_up(peer: Peer) -> None:
    """The deadline that has been waited for no longer cuts the connection."""
    with (
        to(peer, reconnect=budget(deadline=2.0), on_connect=repr) as connector,
        connected(connector, peer) as (sock, end),
    ):
        sock.settimeout(2.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert_works(sock, end)


def close_it(sock: SafeSocket, _peer: Peer) -> None:
    sock.close()


def lose_by_fin(sock: SafeSocket, peer: Peer) -> None:
    peer.accept().fin()
    assert sock.recv(1) == b""


def lose_by_rst(sock: SafeSocket, peer: Peer) -> None:
    peer.accept().rst()
    with pytest.raises(ConnectionResetError):
        sock.recv(1)


def give_it_away(sock: SafeSocket, _peer: Peer) -> None:
    os.close(sock.detach())


@pytest.mark.parametrize("act", [close_it, lose_by_fin, lose_by_rst, give_it_away])
@pytest.mark.parametrize("on_loss", ["close", "release"])
@by_two_modes
def test_connection_that_on_connect_has_ended_is_not_given(
    peer: Peer, mode: CloseMode, on_loss: Any, act: Callable[[SafeSocket, Peer], None]
) -> None:
    with (
        to(
            peer,
            policy=Policy(mode, on_loss),
            reconnect=budget(attempts=2),
            on_connect=lambda sock: act(sock, peer),
        ) as connector,
        pytest.raises(ReconnectError) as caught,
    ):
        connector.connect()
    assert [type(error) for error in caught.value.attempts] == [ConnectionError] * 2
    assert "while on_connect ran" in str(caught.value)


def test_half_open_connection_that_is_kept_is_given(peer: Peer) -> None:
    def greet(sock: SafeSocket) -> None:
        peer.accept().half_close()
        assert sock.recv(1) == b""

    with (
        to(peer, policy=Policy(on_loss="keep"), on_connect=greet) as connector,
        connector.connect() as sock,
    ):
        sock.sendall(b"still here")
        assert peer.ends[-1].read(10) == b"still here"


def test_on_connect_that_detaches_and_outlasts_the_deadline_counts(peer: Peer) -> None:
    """And no thread dies of it."""

    def greet(sock: SafeSocket) -> None:
        os.close(sock.detach())
        wait_until(lambda: time.monotonic() > began + 0.25, "the deadline")
        for thread in {*threading.enumerate()} - before:
            thread.join(TIMEOUT)

    before = {*threading.enumerate()}
    with to(peer, reconnect=budget(deadline=0.25), on_connect=greet) as connector:
        began = time.monotonic()
        with pytest.raises(ReconnectError) as caught:
            connector.connect()
    assert len(caught.value.attempts) == 1


@pytest.mark.parametrize("way", ["connect", "iterate"])
def test_on_connect_cannot_connect_by_its_own_connector(peer: Peer, way: str) -> None:
    def greet(sock: SafeSocket) -> None:
        assert kernel.state_of(sock) == "ESTABLISHED"
        if way == "connect":
            connector.connect()
        else:
            next(iter(connector))

    connector = to(peer, reconnect=budget(attempts=2), on_connect=greet)
    with connector, pytest.raises(ReconnectError) as caught:
        connector.connect()
    assert [type(error) for error in caught.value.attempts] == [RuntimeError] * 2
    assert [end.read_to_end() for end in drain_backlog(peer)] == [(b"", EOF)] * 2


def test_on_connect_may_confirm(peer: Peer) -> None:
    def greet(_sock: SafeSocket) -> None:
        connector.confirm()

    connector = to(peer, reconnect=budget(attempts=1), on_connect=greet)
    with connector:
        for _ in range(4):
            with connected(connector, peer) as (sock, end):
                assert_works(sock, end)


def test_confirmation_of_a_connection_that_is_not_made_counts_for_nothing(peer: Peer) -> None:
    def greet(_sock: SafeSocket) -> None:
        connector.confirm()
        raise OSError("on second thoughts")

    connector = to(peer, reconnect=budget(attempts=2), on_connect=greet)
    with connector:
        for _ in range(2):
            with pytest.raises(ReconnectError):
                connector.connect()
    assert len(drain_backlog(peer)) == 2


def test_confirmation_is_not_for_the_attempt_after(peer: Peer) -> None:
    greeted: list[SafeSocket] = []

    def greet(sock: SafeSocket) -> None:
        greeted.append(sock)
        if len(greeted) == 1:
            connector.confirm()
            raise OSError("on second thoughts")

    connector = to(peer, reconnect=budget(attempts=2), on_connect=greet)
    with connector, connector.connect() as sock:
        assert sock is greeted[1]
        with pytest.raises(ReconnectError, match="the limit is 2"):
            connector.connect()


def test_on_connect_may_close_the_connector(peer: Peer) -> None:
    def greet(_sock: SafeSocket) -> None:
        connector.close()

    connector = to(peer, on_connect=greet)
    with pytest.raises(ConnectionAbortedError):
        connector.connect()
    assert peer.accept().read_to_end() == (b"", EOF)
    assert list(connector) == []
    assert not backlog(peer.listener)


# KeyboardInterrupt ------------------------------------------------------------------------------


def assert_can_be_used_again(connector: Connector, peer: Peer) -> None:
    try:
        with connected(connector, peer) as (sock, end):
            assert_works(sock, end)
        for sock in connector:
            assert_works(sock, peer.accept())
            break
    except KeyboardInterrupt:  # It would end the whole test run.
        pytest.fail("it remembers the interrupt")


@by_mode
def test_ctrl_c_in_on_connect_passes_and_closes_by_the_policy(peer: Peer, mode: CloseMode) -> None:
    waits = [True]

    def greet(sock: SafeSocket) -> None:
        if waits:
            waits.clear()
            sock.recv(1)

    with to(peer, policy=Policy(mode), on_connect=greet) as connector:
        with pytest.raises(KeyboardInterrupt), ctrl_c():
            connector.connect()
        assert peer.accept().read_to_end() == (b"", SEEN[type(mode)])
        assert_can_be_used_again(connector, peer)


def test_ctrl_c_in_connect_passes(peer: Peer) -> None:
    def ready(thread: threading.Thread) -> None:
        wait_until_dialling(peer.address)
        kernel.wait_until_blocked(thread)

    with to(peer, timeout=TIMEOUT) as connector:
        with full(peer):
            with pytest.raises(KeyboardInterrupt), ctrl_c(ready):
                connector.connect()
            assert not dialling(peer.address)
            accept_all(peer)
        assert_can_be_used_again(connector, peer)


def test_ctrl_c_in_the_wait_between_two_attempts_passes(peer: Peer) -> None:
    fails = [OSError("no")]
    sleeping = Sleeping()

    def greet(_sock: SafeSocket) -> None:
        if fails:
            raise fails.pop()

    with to(peer, reconnect=budget(wait=sleeping), on_connect=greet) as connector:
        with pytest.raises(KeyboardInterrupt), ctrl_c(sleeping.wait_until_asleep):
            connector.connect()
        assert peer.accept().read_to_end() == (b"", EOF)
        connector.confirm()
        with connected(connector, peer) as (sock, end):
            assert_works(sock, end)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupt_passes_after_the_deadline_too(peer: Peer, kind: type[BaseException]) -> None:
    def greet(sock: SafeSocket) -> None:
        wait_for_the_cut(sock)
        raise kind

    with (
        to(peer, reconnect=budget(deadline=0.25), on_connect=greet) as connector,
        pytest.raises(kind),
    ):
        connector.connect()
    assert peer.accept().read_to_end() == (b"", EOF)


# Timeouts ---------------------------------------------------------------------------------------


@pytest.fixture(params=[None, 7.5], ids=["no default timeout", "a default timeout"])
def default_timeout(request: pytest.FixtureRequest) -> Iterator[float | None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(request.param)
    yield request.param
    socket.setdefaulttimeout(before)


def test_socket_has_the_default_timeout(peer: Peer, default_timeout: float | None) -> None:
    with to(peer) as connector, connector.connect() as sock:
        assert sock.gettimeout() == default_timeout


@pytest.mark.parametrize(
    ("timeout", "deadline", "most"), [(5.0, 60.0, 5.0), (60.0, 8.0, 8.0), (None, 8.0, 8.0)]
)
def test_on_connect_has_the_timeout_or_what_is_left(
    peer: Peer,
    default_timeout: float | None,
    timeout: float | None,
    deadline: float,
    most: float,
) -> None:
    def greet(sock: SafeSocket) -> None:
        seen.append(sock.gettimeout())

    seen: list[float | None] = []
    choice = budget(deadline=deadline)
    with (
        to(peer, reconnect=choice, timeout=timeout, on_connect=greet) as connector,
        connector.connect() as sock,
    ):
        assert sock.gettimeout() == default_timeout
    (found,) = seen
    assert found is not None
    assert found <= most
    assert found == pytest.approx(most, abs=4.0)


def test_timeout_of_on_connect_ends_the_attempt(peer: Peer) -> None:
    choice = budget(attempts=2)
    with (
        to(peer, reconnect=choice, timeout=0.05, on_connect=lambda sock: sock.recv(1)) as connector,
        pytest.raises(ReconnectError) as caught,
    ):
        connector.connect()
    assert [type(error) for error in caught.value.attempts] == [TimeoutError] * 2


@pytest.mark.parametrize("chosen", [None, 0.0, 3.0, 9.0, 7.5])
def test_timeout_that_on_connect_sets_is_kept(
    peer: Peer, default_timeout: float | None, chosen: float | None
) -> None:
    """Also the one that was in force (9.0), and the default."""
    del default_timeout
    with (
        to(peer, timeout=9.0, on_connect=lambda sock: sock.settimeout(chosen)) as connector,
        connector.connect() as sock,
    ):
        assert sock.gettimeout() == chosen


# The budget -------------------------------------------------------------------------------------


def end_by_close(sock: SafeSocket, _end: PeerEnd) -> None:
    sock.close()


def end_by_fin(sock: SafeSocket, end: PeerEnd) -> None:
    end.fin()
    assert sock.recv(1) == b""


def end_by_rst(sock: SafeSocket, end: PeerEnd) -> None:
    end.rst()
    with pytest.raises(ConnectionResetError):
        sock.recv(1)


def end_not_at_all(sock: SafeSocket, _end: PeerEnd) -> None:
    assert sock.fileno() >= 0


ENDS = pytest.mark.parametrize(
    ("ends", "message"),
    [
        (end_by_close, "was closed before it was stable"),
        (end_by_fin, "was lost after"),
        (end_by_rst, "reset by peer"),
        (end_not_at_all, "was closed before it was stable"),
    ],
)


@ENDS
def test_connection_that_was_not_stable_was_an_attempt(
    peer: Peer, ends: Callable[[SafeSocket, PeerEnd], None], message: str
) -> None:
    with to(peer, reconnect=budget(attempts=1, stable_after=60.0)) as connector:
        sock = connector.connect()
        ends(sock, peer.accept())
        for _ in range(2):
            with pytest.raises(ReconnectError, match="confirm") as caught:
                connector.connect()
            (error,) = caught.value.attempts
            assert isinstance(error, ConnectionError)
            assert message in str(error)
        assert not backlog(peer.listener)


@ENDS
def test_connection_that_was_stable_ends_the_outage(
    peer: Peer, ends: Callable[[SafeSocket, PeerEnd], None], message: str
) -> None:
    del message
    with to(peer, reconnect=budget(attempts=1, stable_after=0.05)) as connector:
        for _ in range(2):
            sock = connector.connect()
            born, end = time.monotonic(), peer.accept()
            wait_until(lambda since=born: time.monotonic() - since > 0.06)  # type: ignore[misc]
            ends(sock, end)


@ENDS
def test_confirmed_connection_ends_the_outage(
    peer: Peer, ends: Callable[[SafeSocket, PeerEnd], None], message: str
) -> None:
    del message
    with to(peer, reconnect=budget(attempts=1, stable_after=60.0)) as connector:
        for number in range(4):
            sock = connector.connect()
            if number % 2:
                connector.confirm()
                ends(sock, peer.accept())
            else:
                ends(sock, peer.accept())
                connector.confirm()


def test_dropped_connection_was_an_attempt(peer: Peer) -> None:
    with to(peer, reconnect=budget(attempts=1, stable_after=60.0)) as connector:
        with pytest.warns(ResourceWarning, match="unclosed"):
            connector.connect()
        with pytest.raises(ReconnectError) as caught:
            connector.connect()
        assert "was closed before it was stable" in str(caught.value.attempts[0])


def test_wait_before_the_next_is_that_of_a_failed_attempt(peer: Peer) -> None:
    """The backoff goes on over connections that do not last, and starts over by confirm."""
    asked: list[int] = []

    def wait(state: tenacity.RetryCallState) -> float:
        asked.append(state.attempt_number)
        return 0.0

    with to(peer, reconnect=budget(wait=wait, attempts=8, stable_after=60.0)) as connector:
        kept = [connector.connect() for _ in range(3)]
        connector.confirm()
        kept += [connector.connect() for _ in range(2)]
        assert len(kept) == 5
    assert asked == [1, 2, 1]


# close ------------------------------------------------------------------------------------------


@by_each_mode
@pytest.mark.parametrize("way", ["close", "with", "exception"])
def test_close_ends_the_connection_by_its_policy(peer: Peer, mode: CloseMode, way: str) -> None:
    connector = to(peer, policy=Policy(mode))
    sock = connector.connect()
    if way == "close":
        connector.close()
    elif way == "with":
        with connector as same:
            assert same is connector
    else:
        with pytest.raises(ZeroDivisionError), connector:
            raise ZeroDivisionError
    assert sock.fileno() == -1
    assert peer.accept().read_to_end() == (b"", SEEN[type(mode)])


def test_close_may_be_called_again_and_before_any_connection(peer: Peer) -> None:
    connector = to(peer)
    connector.close()
    connector.close()
    with connector:
        pass
    assert not backlog(peer.listener)


def test_close_ends_the_connection_under_an_open_file(peer: Peer) -> None:
    connector = to(peer)
    with connector.connect().makefile("rb") as file:
        connector.close()
        assert peer.accept().read_to_end() == (b"", EOF)
        assert not file.closed


def test_connect_after_close_is_refused(peer: Peer) -> None:
    connector = to(peer)
    with connector.connect():
        connector.close()
    for _ in range(2):
        with pytest.raises(ConnectionAbortedError) as caught:
            connector.connect()
        assert caught.value.errno == errno.ECONNABORTED
        assert list(connector) == []
    assert len(drain_backlog(peer)) == 1


def test_close_in_the_body_ends_the_loop(peer: Peer) -> None:
    connector = to(peer)
    turns = 0
    for _ in connector:
        turns += 1
        connector.close()
        assert peer.accept().read_to_end() == (b"", EOF)
    assert turns == 1


def use_connect(connector: Connector) -> object:
    with pytest.raises(ConnectionAbortedError) as caught:
        connector.connect()
    assert caught.value.errno == errno.ECONNABORTED
    return None


def use_loop(connector: Connector) -> object:
    assert list(connector) == []
    return None


by_use = pytest.mark.parametrize("use", [use_connect, use_loop])


@by_use
def test_close_wakes_the_wait_between_two_attempts(
    peer: Peer, use: Callable[[Connector], object]
) -> None:
    sleeping = Sleeping()
    fails = partial(raise_it, OSError("no"))
    connector = to(peer, reconnect=budget(wait=sleeping), on_connect=fails)
    with InThread(partial(use, connector)) as call:
        sleeping.wait_until_asleep(call.thread)
        connector.close()
        assert call.error() is None
    assert len(drain_backlog(peer)) == 1


def raise_it(error: Exception, *_: object) -> None:
    raise error


@by_use
def test_close_wakes_connect(peer: Peer, use: Callable[[Connector], object]) -> None:
    connector = to(peer, timeout=3 * TIMEOUT)
    with full(peer), InThread(partial(use, connector)) as call:
        wait_until_dialling(peer.address)
        kernel.wait_until_blocked(call.thread)
        connector.close()
        assert call.error() is None
        assert not dialling(peer.address)


@by_use
@by_each_mode
@pytest.mark.parametrize("greet", [recv_for_long, recv_and_swallow, read_a_file])
def test_close_wakes_on_connect(
    peer: Peer,
    mode: CloseMode,
    use: Callable[[Connector], object],
    greet: Callable[[SafeSocket], None],
) -> None:
    connector = to(peer, policy=Policy(mode), timeout=3 * TIMEOUT, on_connect=greet)
    with InThread(partial(use, connector)) as call:
        end = peer.accept()
        kernel.wait_until_blocked(call.thread)
        connector.close()
        assert call.error() is None
        assert end.read_to_end() == (b"", SEEN[type(mode)])
    assert not backlog(peer.listener)


def test_close_from_a_signal_handler_wakes_the_wait(peer: Peer) -> None:
    sleeping = Sleeping()

    def handle(_number: int, _frame: FrameType | None) -> None:
        connector.close()

    fails = partial(raise_it, OSError("no"))
    connector = to(peer, reconnect=budget(wait=sleeping), on_connect=fails)
    with (
        pytest.raises(ConnectionAbortedError),
        signal_once(signal.SIGUSR1, handle, sleeping.wait_until_asleep),
    ):
        connector.connect()


def test_close_at_any_moment_leaves_no_connection(peer: Peer) -> None:
    """Whatever connect was at, it has nothing to give once the connector is closed."""
    rng = random.Random(20)
    for _ in range(150):
        connector = to(peer)
        with InThread(partial(connect_until_closed, connector)) as call:
            for _ in range(rng.randrange(4)):
                peer.accept()
            for _ in range(rng.randrange(3000)):
                pass
            connector.close()
            assert call.error() is None
        for end in (*peer.ends, *drain_backlog(peer)):
            assert end.read_to_end() == (b"", EOF)
            end.close()
        peer.ends.clear()


def connect_until_closed(connector: Connector) -> object:
    kept = []
    for _ in range(10_000):
        connector.confirm()
        try:
            kept.append(connector.connect())
        except ConnectionAbortedError:
            return None
    raise AssertionError("it was not closed")


# Threads ----------------------------------------------------------------------------------------


def test_threads_that_use_one_connector_take_turns(peer: Peer) -> None:
    """Never is there more than one connection: `on_connect` sees its peer's other ends closed."""

    def greet(sock: SafeSocket) -> None:
        connector.confirm()
        end = peer.accept()
        for other in peer.ends[:-1]:
            assert other.read_to_end() == (b"", EOF)
            other.close()
        del peer.ends[:-1]
        assert_works(sock, end)
        made.append(threading.get_ident())

    def work() -> None:
        start.wait(TIMEOUT)
        for _ in range(10):
            kept.append(connector.connect())

    made: list[int] = []
    kept: list[SafeSocket] = []
    start = threading.Barrier(4)
    with to(peer, on_connect=greet) as connector, contextlib.ExitStack() as threads:
        calls = [threads.enter_context(InThread(work)) for _ in range(4)]
        assert [call.error() for call in calls] == [None] * 4
        assert kernel.state_of(peer.ends[-1].sock) == "ESTABLISHED"
    assert len(made) == 40
    assert len(set(made)) == 4
    assert peer.ends[-1].read_to_end() == (b"", EOF)


def test_close_wakes_all_threads(peer: Peer) -> None:
    sleeping = Sleeping()
    fails = partial(raise_it, OSError("no"))
    connector = to(peer, reconnect=budget(wait=sleeping), on_connect=fails)
    with contextlib.ExitStack() as threads:
        calls = [
            threads.enter_context(InThread(partial(use, connector)))
            for use in (use_connect, use_loop, use_connect, use_loop)
        ]
        wait_until(lambda: all(is_in_lock(call.thread) for call in calls), "all wait")
        connector.close()
        assert [call.error() for call in calls] == [None] * 4


# Objects that are dropped -----------------------------------------------------------------------


@pytest.mark.parametrize("failures", [0, 1])
@by_each_mode
def test_dropped_connection_is_collected_and_ends_at_once(
    peer: Peer, mode: CloseMode, failures: int
) -> None:
    """Without the help of gc, also when there was an attempt that failed."""
    errors = [OSError("no") for _ in range(failures)]

    def greet(_sock: SafeSocket) -> None:
        if errors:
            raise errors.pop()

    def use() -> weakref.ref[SafeSocket]:
        sock = connector.connect()
        return weakref.ref(sock)

    with to(peer, policy=Policy(mode), on_connect=greet) as connector:
        gc.disable()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # It would keep the socket.
                assert use()() is None
        finally:
            gc.enable()
        *_, end = drain_backlog(peer)
        assert end.read_to_end() == (b"", SEEN[type(mode)])
        assert_can_be_used_again(connector, peer)


def test_dropped_connector_leaves_the_connection_alone(peer: Peer) -> None:
    connector = to(peer)
    gone = weakref.ref(connector)
    with connector.connect() as sock:
        end = peer.accept()
        del connector
        gc.collect()
        assert gone() is None
        assert_works(sock, end)
    assert end.read_to_end() == (b"", EOF)


# Forked children --------------------------------------------------------------------------------


def child_closes(held: list[Any]) -> None:
    held[0].close()


def child_leaves_with(held: list[Any]) -> None:
    with held[0]:
        pass


def child_drops_all(held: list[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        held.clear()
        gc.collect()


def child_drops_the_connector(held: list[Any]) -> None:
    del held[0]
    gc.collect()


def child_connects(held: list[Any]) -> None:
    with held[0].connect() as sock:
        assert sock.fileno() >= 0


@by_each_mode
@pytest.mark.parametrize(
    "iterates", [False, pytest.param(True, marks=campaign)], ids=["connect", "iteration"]
)
@pytest.mark.parametrize(
    "act",
    [child_closes, child_leaves_with, child_drops_all, child_drops_the_connector, child_connects],
)
def test_child_leaves_the_parents_connection_alone(
    peer: Peer, mode: CloseMode, iterates: bool, act: Callable[[list[Any]], None]
) -> None:
    connector = to(peer, policy=Policy(mode))
    turns = iter(connector)
    sock = next(turns) if iterates else connector.connect()
    end = peer.accept()
    held: list[Any] = [connector, sock, turns]
    names = addresses(sock)
    del connector, sock, turns
    in_child(lambda: act(held))
    assert_works(held[1], end)
    assert kernel.state(*names) == "ESTABLISHED"
    held[0].close()
    assert end.read_to_end() == (b"", SEEN[type(mode)])


def test_child_that_closes_leaves_the_parents_dialling_alone(peer: Peer) -> None:
    connector = to(peer, reconnect=budget(attempts=1), timeout=3 * TIMEOUT)
    with full(peer), InThread(connector.connect) as call:
        wait_until_dialling(peer.address)
        kernel.wait_until_blocked(call.thread)
        before = dialling(peer.address)
        in_child(connector.close)
        assert dialling(peer.address) == before
        assert not call.future.done()
        accept_all(peer)  # The next SYN, after a second, finds room.
        sock = call.future.result(TIMEOUT)
        assert isinstance(sock, SafeSocket)
        assert_works(sock, peer.accept())
    connector.close()


@pytest.mark.parametrize("act", [child_closes, child_connects])
def test_child_does_not_make_the_parents_close_abortive(
    peer: Peer, act: Callable[[list[Any]], None]
) -> None:
    """SO_LINGER would be set for both."""
    connector = to(peer, local_address=(a_loopback_host(), 40000), abort_previous=True)
    sock = connector.connect()
    end = peer.accept()
    with Gate() as gate:

        def child() -> None:
            with contextlib.suppress(ReconnectError):  # The parent has the port.
                act([connector])
            gate.open()

        with forked(child):
            gate.wait()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
    assert_works(sock, end)
    connector.close()
    assert end.read_to_end() == (b"", EOF)


# Addresses --------------------------------------------------------------------------------------


def a_loopback_host() -> str:
    """Nobody else's: all of 127.0.0.0/8 is this host."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"


class Hosts:
    """/etc/hosts, for one thread and those that it starts: in a mount namespace of their own."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1)

    def say(self, *addresses: str) -> None:
        self._file.write_text("".join(f"{address} many.test\n" for address in addresses))

    def run(self, call: Callable[[], Result]) -> Result:
        return self._thread.submit(call).result(3 * TIMEOUT)

    def mount(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        new_namespace, bind, private_and_below = 0x20000, 0x1000, 0x44000
        failed = (
            libc.unshare(new_namespace)
            or libc.mount(None, b"/", None, private_and_below, None)
            or libc.mount(bytes(self._file), b"/etc/hosts", None, bind, None)
        )
        if failed:
            raise OSError(ctypes.get_errno(), "no mount namespace")

    def close(self) -> None:
        self._thread.shutdown()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    one = Hosts(tmp_path / "hosts")
    try:
        one.say()
        try:
            one.run(one.mount)
        except PermissionError as error:
            pytest.skip(f"a hosts file of its own takes root: {error}")
        yield one
    finally:
        one.close()


def many(peer: Peer, **options: Any) -> Connector:
    """To all addresses of the name, on the port of *peer*."""
    return Connector(("many.test", peer.address[1]), **{"reconnect": budget(attempts=1)} | options)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_connects_to_a_name(peer: Peer, host: str) -> None:
    connector = Connector((host, peer.address[1]), reconnect=budget())
    with connector, connected(connector, peer) as (sock, end):
        assert_works(sock, end)


def test_finds_the_address_that_answers(hosts: Hosts, peer46: Peer) -> None:
    """The name has both families, and the peer just one of them."""
    hosts.say("127.0.0.1", "::1")
    with many(peer46) as connector:
        sock = hosts.run(connector.connect)
        assert sock.getpeername()[:2] == peer46.address
        assert_works(sock, peer46.accept())


def test_addresses_are_tried_one_after_the_other(hosts: Hosts) -> None:
    """The first does not answer and has its timeout, the second refuses."""
    hosts.say("127.0.0.2", "127.0.0.3", "127.0.0.4")
    first, _, last = hosts.run(partial(resolved, "many.test"))
    with (
        Peer(host=last) as peer,
        Peer(host=first, port=peer.address[1]) as silent,
        full(silent),
        many(peer, timeout=0.4) as connector,
    ):
        began = time.monotonic()
        sock = hosts.run(connector.connect)
        assert time.monotonic() - began >= 0.4
        assert not dialling(silent.address)
        assert sock.getpeername() == peer.address
        assert_works(sock, peer.accept())


def resolved(name: str) -> list[str]:
    found = socket.getaddrinfo(name, 1, socket.AF_INET, socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def test_error_of_the_last_address_has_notes_of_the_others(hosts: Hosts) -> None:
    hosts.say("127.0.0.2", "127.0.0.3")
    with Peer() as peer:
        connector = many(peer)
    with connector, pytest.raises(ReconnectError) as caught:
        hosts.run(connector.connect)
    (error,) = caught.value.attempts
    assert isinstance(error, ConnectionRefusedError)
    notes = " ".join(error.__notes__)
    assert "127.0.0.2" in notes
    assert "127.0.0.3" in notes


def test_name_is_resolved_afresh_for_every_attempt(hosts: Hosts, peer: Peer) -> None:
    answers = iter([(), ("127.0.0.3",), ("127.0.0.1",)])

    def move(_state: tenacity.RetryCallState) -> float:
        hosts.say(*next(answers))
        return 0.0

    hosts.say("127.0.0.2")
    with many(peer, reconnect=budget(wait=move)) as connector:
        sock = hosts.run(connector.connect)
        assert_works(sock, peer.accept())
    assert next(answers, None) is None


def test_close_is_not_followed_by_the_next_address(hosts: Hosts, peer: Peer) -> None:
    hosts.say("127.0.0.1", "127.0.0.2")
    connector = many(peer, timeout=3 * TIMEOUT)
    with (
        Peer(host="127.0.0.2", port=peer.address[1]) as other,
        full(peer, other),
        InThread(lambda: hosts.run(partial(use_connect, connector))) as call,
    ):
        wait_until(lambda: dialling(peer.address) or dialling(other.address), "SYN_SENT")
        connector.close()
        assert call.error() is None


def test_fixed_local_port_over_ipv6() -> None:
    port = random.randrange(10000, 30000)
    with (
        Peer(socket.AF_INET6) as peer,
        to(peer, local_address=("::1", port), policy=Policy(Abort())) as connector,
    ):
        for _ in range(3):
            with connected(connector, peer) as (sock, end):
                assert sock.getsockname()[:2] == ("::1", port)
                assert_works(sock, end)


# abort_previous ---------------------------------------------------------------------------------


def fixed(peer: Peer, **options: Any) -> Connector:
    local = (a_loopback_host(), 40000)
    return to(peer, **{"local_address": local, "abort_previous": True} | options)


@pytest.mark.parametrize("mode", MODES[:3], ids=lambda mode: type(mode).__name__)
def test_abort_previous_resets_the_connection_when_its_port_is_needed(
    peer: Peer, mode: CloseMode
) -> None:
    with fixed(peer, policy=Policy(mode)) as connector:
        for number in range(4):
            sock = connector.connect()
            assert_works(sock, peer.accept())
            if number:
                assert peer.ends[-2].read_to_end() == (b"", RESET)
            assert kernel.state_of(sock) == "ESTABLISHED"
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
    assert peer.ends[-1].read_to_end() == (b"", EOF)


def test_abort_previous_resets_at_the_end_of_a_turn_and_not_at_the_end_of_the_loop(
    peer: Peer,
) -> None:
    connector = fixed(peer)
    for _ in connector:
        peer.accept()
        if len(peer.ends) == 3:
            break
    assert [end.read_to_end()[1] for end in peer.ends] == [RESET, RESET, EOF]
    connector.close()


def test_abort_previous_resets_what_the_peer_has_half_closed(peer: Peer) -> None:
    with fixed(peer) as connector:
        sock = connector.connect()
        end = peer.accept()
        end.half_close()
        with connector.connect():
            assert sock.fileno() == -1
            assert end.read_to_end() == (b"", RESET)


LEFT_IN_THE_MIDDLE = """
import gc, sys
from safesock import Connector, Policy

def interrupt(frame, event, arg):
    # Between the beginning of the time for on_connect, and on_connect.
    global kept
    own = frame.f_code.co_name == "__enter__" and frame.f_locals.get("self")
    if event == "return" and getattr(getattr(own, "gen", None), "__name__", "") == "_cut_at":
        sys.settrace(None)
        kept = [own]
        raise KeyboardInterrupt
    return interrupt

connector = Connector(
    ("127.0.0.1", int(sys.argv[1])), on_connect=lambda sock: None, policy=Policy(watch=False)
)
sys.settrace(interrupt)
try:
    connector.connect()
except KeyboardInterrupt:
    print("struck", kept[0].gen.__name__)
# It is collected when the interpreter is on its way out, and no other thread runs any more.
gc.disable()
kept.append(kept)
del kept
"""


def test_what_an_interrupt_has_left_does_not_hold_up_the_exit(peer: Peer) -> None:
    assert run_script(LEFT_IN_THE_MIDDLE, peer.address[1]) == "struck _cut_at\n"


STORM = """
import gc, random, signal, sys, time
from safesock import Connector, Policy, Reconnect
from tenacity import wait_none

def interrupt(*_):
    raise KeyboardInterrupt

def use(connector):
    for _ in range(20):
        connector.connect().recv(10)

def loop(connector):
    for turn, sock in enumerate(connector):
        sock.recv(10)
        if turn == 20:
            return

def keep(connector):
    global line
    line = line or connector.socket()
    for _ in range(20):
        line.recv(10)

line = None
act = {"connect": use, "iteration": loop, "socket": keep}[sys.argv[2]]
reconnect = Reconnect(attempts=10**6, deadline=3600, wait=wait_none())
connector = Connector(
    ("127.0.0.1", int(sys.argv[1])),
    reconnect=reconnect,
    on_connect=lambda sock: sock.recv(1),
    policy=Policy(watch=False),
)
# Python drops what is raised in a finalizer, and says so.
sys.unraisablehook = lambda _: None
signal.signal(signal.SIGALRM, interrupt)
struck, end = 0, time.monotonic() + 4
while time.monotonic() < end:
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 4e-3))
            act(connector)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        struck += 1
    except ConnectionError:
        pass
assert struck > 20, struck
act(connector)
connector.close()
print("as good as ever")
"""


@pytest.mark.campaign
@pytest.mark.parametrize("how", ["connect", "iteration", "socket"])
def test_after_a_storm_of_interrupts_it_is_as_good_as_ever(peer: Peer, how: str) -> None:
    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = peer.listener.accept()
                with sock:
                    sock.sendall(b"hello")

    with InThread(serve):
        try:
            printed = run_script(STORM, peer.address[1], how)
        finally:
            peer.listener.shutdown(socket.SHUT_RDWR)
    assert printed == "as good as ever\n"


def test_abort_previous_resets_nothing_where_there_is_no_next(peer: Peer) -> None:
    """The budget is used up: the port is not needed, and the policy holds."""
    with fixed(peer, reconnect=budget(attempts=1)) as connector:
        sock = connector.connect()
        end = peer.accept()
        with pytest.raises(ReconnectError):
            connector.connect()
        assert end.read_to_end() == (b"", EOF)
        assert sock.fileno() == -1


def close_the_socket(connector: Connector, sock: SafeSocket) -> None:
    del connector
    sock.close()


def close_the_connector(connector: Connector, _sock: SafeSocket) -> None:
    connector.close()


def leave_the_connector(connector: Connector, _sock: SafeSocket) -> None:
    with connector:
        pass


@pytest.mark.parametrize("act", [close_the_socket, close_the_connector, leave_the_connector])
def test_abort_previous_leaves_other_ends_to_the_policy(
    peer: Peer, act: Callable[[Connector, SafeSocket], None]
) -> None:
    connector = fixed(peer)
    act(connector, connector.connect())
    assert peer.accept().read_to_end() == (b"", EOF)
    connector.close()


@pytest.mark.parametrize("leave", LEAVE)
def test_abort_previous_leaves_the_end_of_a_loop_to_the_policy(
    peer: Peer, leave: Callable[[Connector, Peer], None]
) -> None:
    connector = fixed(peer)
    leave(connector, peer)
    assert peer.ends[-1].read_to_end() == (b"", EOF)
    connector.close()


@pytest.mark.parametrize("local", [None, ("", 0), ("127.0.0.1", 0)])
def test_abort_previous_without_a_fixed_port_changes_nothing(peer: Peer, local: Any) -> None:
    with to(peer, local_address=local, abort_previous=True) as connector:
        kept = [connector.connect() for _ in range(3)]
        assert [sock.fileno() >= 0 for sock in kept] == [False, False, True]
    assert [end.read_to_end()[1] for end in drain_backlog(peer)] == [EOF] * 3


def test_fixed_port_without_abort_previous_changes_nothing(peer: Peer) -> None:
    with fixed(peer, abort_previous=False) as connector:
        kept = [connector.connect() for _ in range(2)]
        assert [sock.fileno() >= 0 for sock in kept] == [False, True]
    assert [end.read_to_end()[1] for end in drain_backlog(peer)] == [EOF] * 2


# Wrong arguments --------------------------------------------------------------------------------

PAIR = 'takes a pair of host and port, such as ("example.org", 443)'
LOCAL_PAIR = 'local_address takes a pair of host and port, such as ("", 40000)'


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"address": "localhost"}, TypeError, PAIR),
        ({"address": b"localhost"}, TypeError, PAIR),
        ({"address": None}, TypeError, PAIR),
        ({"address": 80}, TypeError, PAIR),
        ({"address": ()}, TypeError, PAIR),
        ({"address": ("localhost",)}, TypeError, PAIR),
        ({"address": ("localhost", 80, 0)}, TypeError, PAIR),
        ({"address": ("::1", 80, 0, 0)}, TypeError, PAIR),
        ({"address": (None, 80)}, TypeError, PAIR),
        ({"address": ("localhost", "99999")}, ValueError, "a port from 1 to 65535"),
        ({"address": ("localhost", "-1")}, ValueError, "a port from 1 to 65535"),
        ({"address": ("a..b", 80)}, ValueError, "the host to connect to"),
        ({"address": ("a" * 64, 80)}, ValueError, "the host to connect to"),
        ({"address": ("a\0b", 80)}, ValueError, "the host to connect to"),
        ({"local_address": ("localhost", 40000)}, ValueError, "an IP address of this host"),
        ({"address": (b"localhost", 80)}, TypeError, PAIR),
        ({"address": (80, "localhost")}, TypeError, PAIR),
        ({"address": ("localhost", True)}, TypeError, "address takes a port"),
        ({"address": ("localhost", None)}, TypeError, "address takes a port"),
        ({"address": ("localhost", 80.5)}, TypeError, "address takes a port"),
        ({"address": ("localhost", b"80")}, TypeError, "address takes a port"),
        ({"address": ("localhost", 0)}, ValueError, "a port from 1 to 65535: not 0"),
        ({"address": ("localhost", -1)}, ValueError, "a port from 1 to 65535: not -1"),
        ({"address": ("localhost", 65536)}, ValueError, "a port from 1 to 65535: not 65536"),
        ({"address": ("", 80)}, ValueError, "address takes"),
        ({"local_address": 40000}, TypeError, LOCAL_PAIR),
        ({"local_address": ""}, TypeError, LOCAL_PAIR),
        ({"local_address": ()}, TypeError, LOCAL_PAIR),
        ({"local_address": (None, 40000)}, TypeError, LOCAL_PAIR),
        ({"local_address": ("",)}, TypeError, LOCAL_PAIR),
        ({"local_address": ("", 40000, 0)}, TypeError, LOCAL_PAIR),
        ({"local_address": ("", "40000")}, TypeError, "local_address takes a port number"),
        ({"local_address": ("", None)}, TypeError, "local_address takes a port number"),
        ({"local_address": ("", False)}, TypeError, "local_address takes a port number"),
        ({"local_address": ("", -1)}, ValueError, "local_address takes a port from 0 to 65535"),
        ({"local_address": ("", 65536)}, ValueError, "local_address takes a port from 0 to 65535"),
        ({"policy": Abort()}, TypeError, "policy takes a safesock.Policy or None"),
        ({"policy": Policy}, TypeError, "policy takes a safesock.Policy or None"),
        ({"policy": "abort"}, TypeError, "policy takes a safesock.Policy or None"),
        ({"reconnect": 8}, TypeError, "reconnect takes a safesock.Reconnect or None"),
        ({"reconnect": Reconnect}, TypeError, "reconnect takes a safesock.Reconnect or None"),
        ({"reconnect": False}, TypeError, "reconnect takes a safesock.Reconnect or None"),
        ({"timeout": "10"}, TypeError, "timeout takes a number of seconds"),
        ({"timeout": True}, TypeError, "timeout takes a number of seconds"),
        ({"timeout": 0}, ValueError, "timeout takes seconds above 0"),
        ({"timeout": -1}, ValueError, "timeout takes seconds"),
        ({"timeout": float("nan")}, ValueError, "timeout takes seconds"),
        ({"timeout": float("inf")}, ValueError, "timeout takes seconds"),
        ({"ssl_context": True}, TypeError, "ssl_context takes an ssl.SSLContext or None"),
        ({"server_hostname": "localhost"}, ValueError, "it takes an ssl_context too"),
        ({"on_connect": "login"}, TypeError, "on_connect takes a function of sock"),
        ({"policy": Drain(1)}, TypeError, "such as Policy(close=Drain(timeout=1"),
        ({"abort_previous": "yes"}, TypeError, "abort_previous takes True or False"),
        ({"abort_previous": None}, TypeError, "abort_previous takes True or False"),
        ({"abort_previous": 1}, TypeError, "abort_previous takes True or False"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_where_they_are_made(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    arguments = {"address": ("localhost", 80)} | options
    with pytest.raises(kind, match=re.escape(words)):
        Connector(**arguments)


def test_all_but_the_address_go_by_keyword() -> None:
    with pytest.raises(TypeError):
        Connector(("localhost", 80), ("", 40000))  # type: ignore[call-arg]


# repr -------------------------------------------------------------------------------------------


def test_repr_shows_the_address_and_the_live_connection(peer: Peer) -> None:
    connector = to(peer)
    beginning = f"<safesock.Connector to {peer.address}"
    assert repr(connector) == f"{beginning}, connection=None>"
    with connected(connector, peer) as (sock, end):
        assert repr(connector) == f"{beginning}, connection={sock!r}>"
        assert "state=ESTABLISHED" in repr(connector)
        end.fin()
        assert sock.recv(1) == b""
        assert "lost by FIN" in repr(connector)
    connector.close()
    assert "closed" in repr(connector)
    del sock
    assert repr(connector).startswith(beginning)
