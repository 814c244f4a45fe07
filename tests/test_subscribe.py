"""Subscribing to events: who is called, in which thread, and what a subscriber may do."""

from __future__ import annotations

import functools
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import kernel
import pytest
from kernel import wait_until
from listening import Listener, listening
from peer import EOF, TIMEOUT, Peer
from process import in_child, run_script

import safesock
from safesock import Policy, _hub, _watch, create_connection, subscribe
from safesock.events import Closed, Connected, Connecting, Event, Lost, Released


@pytest.fixture(autouse=True)
def nobody_is_left_subscribed() -> Iterator[None]:
    yield
    assert not _hub._subscribers


@pytest.fixture
def told(peer: Peer) -> Iterator[Listener]:
    with listening(peer.address) as listener:
        yield listener


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What sys.unraisablehook was told."""
    found: list[Any] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda about: found.append((about.exc_value, repr(about.object)))
    )
    return found


# The handle -------------------------------------------------------------------------------------


def test_remove_ends_it_and_may_be_called_again(peer: Peer) -> None:
    events: list[Event] = []
    handle = subscribe(events.append)
    assert repr(handle) == "<safesock.Subscription of list.append, in force>"
    create_connection(peer.address).close()
    assert len(events) == 3
    for _ in range(2):
        handle.remove()
        create_connection(peer.address).close()
    assert len(events) == 3
    assert repr(handle).endswith(", removed>")
    with pytest.raises(RuntimeError, match="subscribe again"), handle:
        pass


def test_it_is_a_context_manager(peer: Peer) -> None:
    events: list[Event] = []
    with subscribe(events.append) as handle, handle:
        create_connection(peer.address).close()
    create_connection(peer.address).close()
    assert len(events) == 3


def test_who_subscribes_twice_is_called_twice(peer: Peer) -> None:
    events: list[Event] = []
    with subscribe(events.append):
        with subscribe(events.append):
            create_connection(peer.address).close()
        assert len(events) == 6
        create_connection(peer.address).close()
    assert len(events) == 9


@pytest.mark.parametrize("wrong", [None, 1, "print"])
def test_what_is_no_function_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="subscribe takes a plain function"):
        subscribe(wrong)


async def coroutine(_: Event) -> None: ...


def generator(_: Event) -> Iterator[None]:
    yield


async def asynchronous_generator(_: Event) -> AsyncIterator[None]:
    yield


class WithCoroutine:
    async def __call__(self, _: Event) -> None: ...


@pytest.mark.parametrize(
    "wrong",
    [
        coroutine,
        functools.partial(coroutine),
        generator,
        asynchronous_generator,
        WithCoroutine(),
        functools.partial(WithCoroutine()),
    ],
    ids=lambda one: getattr(one, "__name__", type(one).__name__),
)
def test_what_would_not_run_when_it_is_called_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="subscribe takes a plain function"):
        subscribe(wrong)


def test_what_happened_before_it_is_not_told_though_it_is_told_later(
    peer: Peer, told: Listener
) -> None:
    sock = create_connection(peer.address)
    with pytest.warns(ResourceWarning):
        del sock
    late: list[Event] = []
    with subscribe(late.append):
        told.wait_for(Closed)
        create_connection(peer.address).close()
    assert [type(event) for event in late] == [Connecting, Connected, Closed]


def test_threads_subscribe_and_remove_at_once() -> None:
    def churn() -> None:
        for _ in range(300):
            with subscribe(print):
                pass

    threads = [threading.Thread(target=churn) for _ in range(4)]
    with subscribe(print) as mine:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert _hub._subscribers == (mine,)


# What a subscriber raises ------------------------------------------------------------------------


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1), Odd()])
def test_what_a_callback_raises_is_told_and_changes_nothing(
    peer: Peer, told: Listener, unraisable: list[Any], error: BaseException
) -> None:
    def fail(_: Event) -> None:
        raise error

    with subscribe(fail), subscribe(told):
        with create_connection(peer.address) as sock:
            peer.accept().fin()
            assert sock.recv(1) == b""
        assert sock.close_report is not None
    assert told.kinds() == [
        kind for kind in ("Connecting", "Connected", "Lost", "Closed") for _ in range(2)
    ]
    assert [one for one, _ in unraisable] == 4 * [error]
    assert "fail, in force>: the others are told" in unraisable[0][1]


def test_what_a_callback_raises_does_not_stop_the_watcher(
    peer: Peer, told: Listener, unraisable: list[Any]
) -> None:
    def fail(event: Event) -> None:
        if isinstance(event, Released):
            raise ValueError

    with subscribe(fail):
        for count in (1, 2):
            with peer.connected(Policy(grace=0.0)) as (_, end):
                end.half_close()
                assert end.read_to_end() == (b"", EOF)
                told.wait_for(Released, count)
                wait_until(lambda count=count: len(unraisable) == count)  # type: ignore[misc]


# What a subscriber does ---------------------------------------------------------------------------


def test_it_may_close_the_connection_that_it_is_told_of(peer: Peer, told: Listener) -> None:
    socks: list[socket.socket] = []
    order: list[str] = []

    def close(event: Event) -> None:
        order.append(f"{type(event).__name__} begins")
        if isinstance(event, (Lost, Closed)):
            socks[0].close()
            assert socks[0].fileno() == -1
        order.append("ends")

    with subscribe(close):
        socks.append(create_connection(peer.address, policy=Policy(on_loss="keep")))
        peer.accept().fin()
        assert socks[0].recv(1) == b""
    assert told.kinds() == ["Connecting", "Connected", "Lost", "Closed"]
    assert order[-4:] == ["Lost begins", "ends", "Closed begins", "ends"]


def test_it_may_close_what_the_watcher_has_noticed(peer: Peer, told: Listener) -> None:
    with create_connection(peer.address, policy=Policy(grace=0.0)) as sock:

        def close(event: Event) -> None:
            if isinstance(event, Lost):
                sock.close()

        with subscribe(close):
            end = peer.accept()
            end.half_close()
            assert end.read_to_end() == (b"", EOF)
            told.wait_for(Closed)
    assert told.kinds() == ["Connecting", "Connected", "Lost", "Released", "Closed"]


def test_it_is_told_of_connections_that_it_makes(peer: Peer) -> None:
    kinds: list[str] = []

    def connect(event: Event) -> None:
        kinds.append(type(event).__name__)
        if isinstance(event, Lost) and len(kinds) < 5:
            create_connection(peer.address).close()

    with subscribe(connect), peer.connected() as (sock, end):
        end.fin()
        assert sock.recv(1) == b""
    inner = ["Connecting", "Connected", "Closed"]
    assert kinds == ["Connecting", "Connected", "Lost", *inner, "Closed"]


def test_it_may_subscribe_and_remove(peer: Peer, told: Listener) -> None:
    handles: list[safesock.Subscription] = []
    late: list[str] = []

    def change(event: Event) -> None:
        if isinstance(event, Connected):
            handles.pop().remove()
            handles.append(subscribe(lambda event: late.append(type(event).__name__)))

    def never(event: Event) -> None:
        assert not isinstance(event, (Connected, Closed)), "it has been removed just before"

    with subscribe(change):
        handles.append(subscribe(never))
        create_connection(peer.address).close()
        handles.pop().remove()
    assert late == ["Closed"]
    assert told.kinds() == ["Connecting", "Connected", "Closed"]


def test_one_that_blocks_does_not_hold_up_the_watcher(peer: Peer) -> None:
    """Nor closes in other threads, of that very connection."""
    go_on, entered = threading.Event(), threading.Event()

    def block(event: Event) -> None:
        if isinstance(event, Lost) and not entered.is_set():
            entered.set()
            assert go_on.wait(TIMEOUT)

    with listening(peer.address) as told, subscribe(block):
        try:
            with peer.connected(Policy(grace=0.0)) as (first, end):
                end.half_close()
                assert entered.wait(TIMEOUT)
                with peer.connected(Policy(grace=0.0)) as (_, other):
                    other.half_close()
                    assert other.read_to_end() == (b"", EOF)
                first.close()
                assert first.close_report is not None
                number = first.close_report.connection
            assert "Closed" not in told.kinds(number), "it would be told before its loss"
        finally:
            go_on.set()
        told.wait_for(Closed, 2)
        assert told.kinds(number) == ["Connecting", "Connected", "Lost", "Released", "Closed"]


# Threads of ours ----------------------------------------------------------------------------------


def test_the_watchers_thread_stays_unknown(peer: Peer, told: Listener) -> None:
    """`logging` asks threading for the thread at hand, which makes it known for ever."""
    with peer.connected(Policy(grace=0.0)) as (_, end):
        end.half_close()
        told.wait_for(Released)
    assert _watch._watcher is not None
    assert _watch._watcher._thread not in {thread.ident for thread in threading.enumerate()}
    wait_until(lambda: "safesock-events" not in {one.name for one in threading.enumerate()})


def test_where_the_collector_strikes_no_thread_is_waited_for(
    peer: Peer, told: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`threading` waits until one has begun, for which a lock may be missing that is held here."""
    starters = []
    start = threading.Thread.start

    def watched(self: threading.Thread) -> None:
        starters.append(threading.get_ident())
        start(self)

    monkeypatch.setattr(threading.Thread, "start", watched)
    sock = create_connection(peer.address)
    with pytest.warns(ResourceWarning):
        del sock
    told.wait_for(Closed)
    assert starters
    assert threading.get_ident() not in starters


@pytest.mark.parametrize("last", ["del sock", ""], ids=["just before", "in it"])
def test_what_is_collected_as_the_interpreter_ends_is_told(last: str) -> None:
    text = f"""
import safesock, warnings
from safesock.testing import ScriptedPeer
warnings.simplefilter("ignore")
def show(event, print=print, type=type):
    print(type(event).__name__)
safesock.subscribe(show)
with ScriptedPeer() as peer:
    sock = safesock.create_connection(peer.address)
    peer.accept()
{last}
"""
    assert run_script(text).split() == ["Connecting", "Connected", "Closed"]


# Processes ----------------------------------------------------------------------------------------


def test_a_child_inherits_the_subscribers(peer: Peer, told: Listener) -> None:
    def child() -> None:
        create_connection(peer.address).close()
        assert told.kinds() == ["Connecting", "Connected", "Closed"]

    in_child(child)
    assert told.kinds() == []


@pytest.mark.parametrize("on_loss", ["close", "release", "keep"])
def test_a_child_tells_nothing_of_its_parents_connection(
    peer: Peer, told: Listener, on_loss: Any
) -> None:
    with peer.connected(Policy(on_loss=on_loss)) as (sock, end):

        def child() -> None:
            sock.close()
            assert told.kinds() == ["Connecting", "Connected"]

        in_child(child)
        sock.sendall(b"alive")
        assert end.read(5) == b"alive"
        assert told.kinds() == ["Connecting", "Connected"]
    assert told.kinds() == ["Connecting", "Connected", "Closed"]


def test_a_loss_that_the_child_notices_is_told_in_the_child(peer: Peer, told: Listener) -> None:
    with peer.connected(Policy(on_loss="release", watch=False)) as (sock, end):

        def child() -> None:
            assert sock.recv(1) == b""
            sock.close()
            assert told.kinds() == ["Connecting", "Connected", "Lost"]

        end.half_close()
        in_child(child)
        assert told.kinds() == ["Connecting", "Connected"]
        assert kernel.state_of(sock) == "CLOSE_WAIT"


def test_a_child_that_wraps_is_the_owner(peer: Peer, told: Listener) -> None:
    with peer.connected() as (sock, end):

        def child() -> None:
            safesock.wrap(sock).close()
            assert told.kinds() == ["Connecting", "Connected", "Connected", "Closed"]
            assert told.events[-1].connection != told.events[0].connection

        in_child(child)
        assert end.read_to_end() == (b"", EOF)


def test_a_plain_socket_of_the_parents_under_enforce(peer: Peer, told: Listener) -> None:
    with safesock.enforce(), socket.create_connection(peer.address) as sock:

        def child() -> None:
            sock.close()
            assert told.kinds() == ["Connecting", "Connected"]

        in_child(child)
        assert told.kinds() == ["Connecting", "Connected"]
        sock.close()
        assert told.kinds() == ["Connecting", "Connected", "Closed"]


@pytest.mark.parametrize("noticed", [True, False], ids=["by the parent", "by the child"])
def test_a_child_forked_while_a_subscriber_is_called_tells_its_own(
    peer: Peer, noticed: bool
) -> None:
    """What its parent was about to tell is the parent's to tell."""
    inside, over = threading.Event(), threading.Event()

    def block(event: Event) -> None:
        if isinstance(event, Connected):
            inside.set()
            assert over.wait(TIMEOUT)

    with (
        safesock.SafeSocket(policy=Policy(on_loss="keep", watch=False)) as sock,
        listening(peer.address) as told,
        subscribe(block),
    ):
        connecting = threading.Thread(target=sock.connect, args=(peer.address,))
        connecting.start()
        assert inside.wait(TIMEOUT)
        peer.accept().half_close()
        if noticed:
            assert sock.recv(1) == b""  # To be told by the other thread.

        def child() -> None:
            before = len(told.events)
            assert sock.recv(1) == b""
            sock.close()
            assert told.kinds()[before:] == ([] if noticed else ["Lost"])

        in_child(child)
        over.set()
        connecting.join(TIMEOUT)
        assert told.kinds() == ["Connecting", "Connected", *(["Lost"] if noticed else [])]


# Nobody -------------------------------------------------------------------------------------------

SILENCE = """
import logging, sys, safesock
from safesock.testing import ScriptedPeer
with ScriptedPeer() as peer:
    sock = safesock.create_connection(peer.address, policy=safesock.Policy(grace=0.0))
    end = peer.accept()
    end.half_close()
    end.read_to_end()
    assert sock.recv(1) == b""
    sock.close()
    assert sock._connection.story is None
    with safesock.enforce():
        import socket
        socket.create_connection(peer.address).close()
assert "safesock.events" not in sys.modules
print("silent")
"""


def test_without_a_subscriber_no_event_is_made() -> None:
    assert run_script(SILENCE) == "silent\n"


def test_reads_and_writes_ask_nobody(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    with peer.connected() as (sock, end):
        monkeypatch.setattr(_hub, "is_heard", lambda *_: pytest.fail("on the hot path"))
        sock.sendall(b"question")
        assert sock.send(b"more") == 4
        assert end.read(12) == b"questionmore"
        end.say(b"answer")
        assert sock.recv(6) == b"answer"
        monkeypatch.undo()
