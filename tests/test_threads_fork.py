"""Forks amid all that threads do: every child works and ends, and the parent goes on."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from peer import TIMEOUT, Peer
from process import Script, in_child

import safesock
from safesock import Policy, _connection, _enforce, _hub, _story, _ward

_PROGRAM = """
import faulthandler, multiprocessing, os, signal, socket, sys, tenacity, threading, time, safesock
from safesock import Policy, Reconnect
forks = int(sys.argv[1])
faulthandler.enable()  # A child that is stuck is ended by SIGABRT, and tells where.
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
address = listener.getsockname()
stop, stop_serving = threading.Event(), threading.Event()
errors, told = [], []

def serve():
    while not stop_serving.is_set():
        end, _ = listener.accept()
        with end:
            try:
                end.sendall(b"x" * 100)
                end.shutdown(socket.SHUT_WR)
            except OSError:
                pass

def use():
    with safesock.create_connection(address, 30, policy=Policy(grace=0)) as sock:
        while sock.recv(50):
            pass
        assert sock.loss is not None

def wait():
    # Nobody reads: the watcher finds it.
    with safesock.create_connection(address, 30, policy=Policy(grace=0)) as sock:
        until = time.monotonic() + 60
        while sock.loss is None:
            assert time.monotonic() < until, "the watcher does not see it"
            time.sleep(0.001)

def plain():
    with socket.create_connection(address, 30) as sock:
        while sock.recv(50):
            pass

def dial():
    reconnect = Reconnect(attempts=3, deadline=60, wait=tenacity.wait_none(), stable_after=1e-6)
    connector = safesock.Connector(address, policy=Policy(grace=0), reconnect=reconnect)
    with connector, connector.socket() as sock:
        for _ in range(3):
            while sock.recv(50):
                pass

def churn(act):
    try:
        while not stop.is_set():
            act()
    except BaseException as error:
        errors.append(error)

def child():
    with safesock.subscribe(told.append):
        for act in (use, wait, plain, dial):
            act()
    assert told, "nothing is told"
    with safesock.enforce(sweep=30):
        plain()
    enforced.remove()
    for sock, _ in kept:
        sock.close()

def waited_for(pid, has_ended):
    until = time.monotonic() + 100
    while not has_ended():
        if time.monotonic() > until:
            os.kill(pid, signal.SIGABRT)
            until += 100
        time.sleep(0.01)

kept = []
keeper = socket.create_server(("127.0.0.1", 0))
for _ in range(5):
    sock = safesock.create_connection(keeper.getsockname(), 30)
    kept.append((sock, keeper.accept()[0]))
threads = [threading.Thread(target=churn, args=(act,)) for act in (use, wait, plain, dial) * 2]
server = threading.Thread(target=serve, daemon=True)
server.start()
enforced = safesock.enforce(sweep=1)
subscription = safesock.subscribe(lambda event: None)
for act in (use, wait, plain, dial):
    act()  # What Python imports for the first of all; a fork in an import hangs.
for thread in threads:
    thread.start()
context = multiprocessing.get_context("fork")
for number in range(forks):
    if number % 3 == 0:
        process = context.Process(target=child)
        process.start()
        waited_for(process.pid, lambda: not process.is_alive())
        assert process.exitcode == 0, f"multiprocessing: {process.exitcode}"
        continue
    pid = os.fork()
    if pid == 0:
        told.clear()
        child()
        if number % 3 == 1:
            os._exit(0)
        stop.set()
        sys.exit()
    ended = []
    waited_for(pid, lambda: ended.append(os.waitpid(pid, os.WNOHANG)) or ended[-1][0])
    assert ended[-1][1] == 0, ended[-1]
stop.set()
for thread in threads:
    thread.join(100)
    assert not thread.is_alive(), thread
assert errors == [], errors
for sock, end in kept:
    sock.sendall(b"question")
    assert end.recv(8) == b"question"
    end.sendall(b"answer")
    assert sock.recv(6) == b"answer"
    sock.close()
    end.close()
enforced.remove()
subscription.remove()
print("done")
stop_serving.set()
socket.create_connection(address, 30).close()
server.join(30)
listener.close()
keeper.close()
"""


def test_forks_of_a_program_with_threads() -> None:
    with Script(_PROGRAM, 3) as script:
        assert script.join() == "done\n"


@pytest.mark.campaign
def test_many_forks_of_a_program_with_threads() -> None:
    with Script(_PROGRAM, 60) as script:
        assert script.join() == "done\n"


# A lock that another thread holds ---------------------------------------------------------------


@contextlib.contextmanager
def held_by_a_thread(lock: Any) -> Iterator[None]:
    is_held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            is_held.set()
            over.wait(3 * TIMEOUT)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert is_held.wait(TIMEOUT)
        yield
    finally:
        over.set()
        thread.join(TIMEOUT)


@pytest.mark.parametrize(
    ("module", "name"),
    [(_story, "_lock"), (_hub, "_lock"), (_enforce, "_lock"), (_ward, "_claiming")],
    ids=lambda one: one.__name__ if isinstance(one, ModuleType) else one,
)
def test_a_lock_of_the_parents_is_open_in_the_child(
    peer: Peer, module: ModuleType, name: str
) -> None:
    def child() -> None:
        signal.alarm(int(TIMEOUT))
        told: list[object] = []
        with safesock.subscribe(told.append), safesock.enforce():
            safesock.create_connection(peer.address, TIMEOUT).close()
            with socket.create_connection(peer.address, TIMEOUT):
                pass
        assert told

    with safesock.subscribe(lambda _: None):
        safesock.create_connection(peer.address, TIMEOUT).close()  # What is imported once.
        with held_by_a_thread(getattr(module, name)):
            in_child(child)


def test_a_child_does_not_wait_for_who_is_at_a_connection_in_the_parent(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "_PATIENCE", 3 * TIMEOUT)

    def child() -> None:
        signal.alarm(int(TIMEOUT))
        sock.close()
        assert sock.fileno() == -1

    with peer.connected(Policy(watch=False)) as (sock, _):
        connection = sock._connection
        assert connection is not None
        with held_by_a_thread(connection._the_door().lock):
            in_child(child)
