"""The sweep of `enforce`: connections of libraries that are not Python stay in CLOSE_WAIT no more,
and whatever else the process has is left as it is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import resource
import select
import socket
from collections.abc import Iterator
from typing import Any

import kernel
import pytest
from kernel import wait_until
from peer import EOF, RESET, Peer
from process import Gate, Script, forked, in_child, run_script

from safesock import Abort, Graceful, Policy, SafeSocket, create_connection, enforce
from safesock._enforce import Report
from safesock._kernel import Raw
from safesock._policy import CloseMode
from safesock._spare import Spare

RELEASE = Policy(on_loss="release", grace=0.05)
KEEP = Policy(on_loss="keep", grace=0.05)


@contextlib.contextmanager
def of_a_library(address: Any) -> Iterator[Any]:
    """A connection that is not one of socket.socket, as a library in C has it."""
    with contextlib.closing(Raw()) as sock:
        sock.connect(address)
        yield sock


def state(sock: Any) -> str:
    info = Raw.getsockopt(sock, socket.IPPROTO_TCP, socket.TCP_INFO, 8)
    return kernel.STATES[info[0]]


def wait_for_close_wait(*socks: Any) -> None:
    for sock in socks:
        wait_until(lambda one=sock: state(one) == "CLOSE_WAIT")  # type: ignore[misc]


def wait_for_the_end(sock: Any) -> None:
    wait_until(lambda: state(sock) not in ("ESTABLISHED", "CLOSE_WAIT"))


def sweep_past(peer: Peer) -> None:
    """Until a sweep has ended a connection: it has seen those that were stale before."""
    with of_a_library(peer.address) as sock:
        end = peer.accept()
        end.half_close()
        assert end.read_to_end() == (b"", EOF)
        wait_for_the_end(sock)


def threads() -> list[str]:
    return os.listdir("/proc/self/task")


# What it ends -----------------------------------------------------------------------------------


def test_it_ends_what_was_made_before(peer: Peer) -> None:
    before = threads()
    with socket.create_connection(peer.address) as sock:
        end = peer.accept()
        end.half_close()
        wait_for_close_wait(sock)
        with enforce(RELEASE, sweep=0.1) as enforcement:
            assert end.read_to_end() == (b"", EOF)
            wait_until(lambda: enforcement.report().released == 1)
            assert sock.fileno() >= 0
            assert sock.recv(1) == b""
    wait_until(lambda: set(threads()) <= set(before), "its thread ends")


@pytest.mark.usefixtures("nothing_is_left_open")
def test_its_descriptors_are_closed_after_it(peer: Peer) -> None:
    before = kernel.descriptors()
    with enforce(RELEASE, sweep=0.1):
        sweep_past(peer)
    peer.ends.pop().close()
    wait_until(lambda: kernel.left_open(before) == [])


def test_it_goes_on_in_a_forked_child(peer: Peer) -> None:
    def child() -> None:
        with of_a_library(peer.address) as sock:
            assert select.select([sock], [], [], 20)[0]
            wait_for_the_end(sock)

    with enforce(RELEASE, sweep=0.1), forked(child):
        end = peer.accept()
        end.half_close()
        assert end.read_to_end() == (b"", EOF)


def test_an_abort_behind_unread_bytes_counts_once(peer: Peer) -> None:
    abort = Policy(Abort(), on_loss="release", grace=0.05)
    with of_a_library(peer.address) as sock, enforce(abort, sweep=0.1) as enforcement:
        end = peer.accept()
        end.say(b"bye")
        end.half_close()
        assert end.read_to_end() == (b"", RESET)
        wait_until(lambda: state(sock) == "CLOSE")
        assert sock.recv(100) == b"bye"
        wait_until(lambda: enforcement.report().aborted == 1)


# What it leaves alone ---------------------------------------------------------------------------


def test_what_this_side_has_accepted_is_left_alone_after_its_listener_has_been_closed(
    peer: Peer,
) -> None:
    with contextlib.ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            clients = [SafeSocket(), SafeSocket()]
            for client in clients:
                client.connect(listener.getsockname())
            accepted = [stack.enter_context(listener.accept()[0]) for _ in clients]
        accepted[0].sendall(b"hello")
        assert clients[0].recv(5) == b"hello"
        for client in clients:
            stack.enter_context(client)
            socket.socket.shutdown(client, socket.SHUT_WR)
        wait_for_close_wait(*accepted)
        with enforce(RELEASE, sweep=0.1) as enforcement:
            sweep_past(peer)
            assert [state(one) for one in accepted] == ["CLOSE_WAIT", "CLOSE_WAIT"]
            assert enforcement.report().missed == 0


@pytest.mark.parametrize("duplicated", [False, True], ids=["", "a duplicate"])
def test_what_safesock_governs_is_left_to_its_policy(peer: Peer, duplicated: bool) -> None:
    with (
        enforce(Policy(on_loss="release", grace=3600), sweep=0.1) as enforcement,
        create_connection(peer.address, policy=KEEP) as kept,
        socket.create_connection(peer.address) as with_a_long_grace,
        contextlib.ExitStack() as stack,
    ):
        for sock in (kept, with_a_long_grace):
            peer.accept().half_close()
            if duplicated:
                stack.callback(os.close, os.dup(sock.fileno()))
        wait_for_close_wait(kept, with_a_long_grace)
        sweep_past(peer)
        assert (state(kept), state(with_a_long_grace)) == ("CLOSE_WAIT", "CLOSE_WAIT")
        wait_until(lambda: enforcement.report().released == 1)
        assert enforcement.report().missed == 0


def test_there_is_none_where_the_policy_is_to_keep_connections() -> None:
    before = threads()
    with enforce(KEEP, sweep=0.1):
        assert set(threads()) <= set(before)


def flags(*descriptors: Any) -> list[int]:
    return [fcntl.fcntl(one, fcntl.F_GETFL) for one in descriptors]


def test_a_default_timeout_makes_nothing_of_others_non_blocking(peer: Peer) -> None:
    pipe = os.pipe()
    left, right = socket.socketpair()
    with left, right, of_a_library(peer.address) as sock, os.fdopen(pipe[0]), os.fdopen(pipe[1]):
        peer.accept().half_close()
        wait_for_close_wait(sock)
        others = (*pipe, left, right, peer.listener, sock)
        before = flags(*others)
        socket.setdefaulttimeout(5)
        try:
            with enforce(RELEASE) as enforcement:
                wait_until(lambda: enforcement.report().missed == 1)
            with enforce(RELEASE, sweep=0.1):
                wait_for_the_end(sock)
        finally:
            socket.setdefaulttimeout(None)
        assert flags(*others) == before


# At the limit of descriptors ----------------------------------------------------------------------


def is_full() -> bool:
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno == errno.EMFILE
    return False


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(kernel.descriptors()) + 20, limits[1]))
    taken = []
    try:
        while not is_full():
            taken.append(os.dup(0))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(("mode", "seen"), [(Graceful(), EOF), (Abort(), RESET)], ids=str)
def test_it_ends_connections_where_no_descriptor_is_left(
    peer: Peer, mode: CloseMode, seen: str
) -> None:
    def child() -> None:
        with (
            enforce(Policy(mode, on_loss="release", grace=0.05), sweep=0.1) as enforcement,
            of_a_library(peer.address) as one,
            of_a_library(peer.address) as other,
            no_descriptor_left(),
        ):
            full.open()
            wait_for_the_end(one)
            wait_for_the_end(other)
            wait_until(lambda: ended(enforcement.report()) == 2)
            assert is_full()  # What it took for that it has given back to itself.

    def ended(report: Report) -> int:
        return report.released + report.aborted

    with Gate() as full, forked(child):
        ends = [peer.accept(), peer.accept()]
        full.wait()
        for end in ends:
            end.half_close()
            assert end.read_to_end() == (b"", seen)


def test_a_report_counts_where_no_descriptor_is_left(peer: Peer) -> None:
    def child() -> None:
        with enforce(RELEASE) as enforcement, of_a_library(peer.address) as sock:
            wait_for_close_wait(sock)
            with no_descriptor_left():
                wait_until(lambda: enforcement.report().missed == 1)

    with forked(child):
        peer.accept().half_close()


def test_what_could_not_be_done_is_told_once_and_done_later(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child() -> None:
        complaints: list[Any] = []
        monkeypatch.setattr("sys.unraisablehook", complaints.append)
        with of_a_library(peer.address) as sock:
            wait_for_close_wait(sock)
            with no_descriptor_left():
                # It comes too late to keep a descriptor for itself.
                enforcement = enforce(RELEASE, sweep=0.1)
                wait_until(lambda: complaints)
            with enforcement:
                wait_for_the_end(sock)
            assert [one.exc_value.errno for one in complaints] == [errno.EMFILE]

    with forked(child):
        peer.accept().half_close()


def test_an_abort_imports_nothing_where_no_descriptor_is_left(peer: Peer) -> None:
    text = """
import os, resource, sys, time
import safesock, _socket

abort = safesock.Policy(safesock.Abort(), on_loss="release", grace=0.05)
enforcement = safesock.enforce(abort, sweep=0.1)
sock = _socket.socket()
sock.connect((sys.argv[1], int(sys.argv[2])))
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
try:
    while True:
        os.dup(0)
except OSError:
    print("full", flush=True)
while not enforcement.report().aborted:
    time.sleep(0.01)
"""
    with Script(text, *peer.address) as script:
        end = peer.accept()
        assert script.read_line() == "full"
        end.half_close()
        assert end.read_to_end() == (b"", RESET)
        script.join()


def test_the_spare_numbers_are_left_to_those_who_have_got_them_since() -> None:
    def child() -> None:
        read, write = os.pipe()
        spare = Spare()
        spare.keep()
        low, high = spare._file, spare._second
        for fd in (low, high):
            os.dup2(read, fd)  # As after a close of all descriptors.
        with (
            no_descriptor_left(),
            pytest.raises(OSError, match="Too many open files"),
            spare.duplicate(write),
        ):
            pass
        spare.keep()
        assert not {spare._file, spare._second} & {low, high}
        spare.close()
        for fd in (low, high):
            assert os.fstat(fd).st_ino == os.fstat(read).st_ino

    in_child(child)


# Among the program's own threads ------------------------------------------------------------------

# Native, also under gevent: nothing green comes to its turn meanwhile.
SLEEP = "from time import sleep\n"
BEGIN = """
import signal, socket, sys, threading, _socket
import safesock
from safesock._kernel import TcpState, tcp_state

enforcement = safesock.enforce(safesock.Policy(on_loss="release", grace=0.05), sweep=0.1)
sock = _socket.socket()
sock.connect((sys.argv[1], int(sys.argv[2])))
"""
WAIT = """
while enforcement.report().released != 1:
    sleep(0.01)
assert tcp_state(sock) is not TcpState.CLOSE_WAIT
"""
GEVENT = "\nimport gevent.monkey; gevent.monkey.patch_all()\n"


@pytest.mark.parametrize(
    "text",
    [
        SLEEP + GEVENT + BEGIN + WAIT,
        SLEEP + "import safesock" + GEVENT + BEGIN + WAIT,
        SLEEP + BEGIN + GEVENT + WAIT,
    ],
    ids=["before", "after", "after enforce"],
)
def test_it_sweeps_beside_gevent(peer: Peer, text: str) -> None:
    with Script(text, *peer.address) as script:
        peer.accept().half_close()
        script.join()


def test_what_it_ends_beside_gevent_is_told(peer: Peer) -> None:
    listen = "import safesock\ntold = []\nsafesock.subscribe(told.append)\n"
    wait = "\nwhile not told:\n    sleep(0.01)\nprint(type(told[0]).__name__)\n"
    with Script(SLEEP + GEVENT + listen + BEGIN + WAIT + wait, *peer.address) as script:
        peer.accept().half_close()
        assert script.join() == "Released\n"


def test_it_sweeps_where_the_class_of_sockets_has_been_replaced(peer: Peer) -> None:
    replaced = SLEEP + BEGIN + "socket.socket = object\n" + WAIT
    with Script(replaced, *peer.address) as script:
        peer.accept().half_close()
        script.join()


def test_a_signal_that_the_program_blocks_and_waits_for_arrives(peer: Peer) -> None:
    text = """
import os
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
assert signal.sigtimedwait({signal.SIGTERM}, 20).si_signo == signal.SIGTERM
print(*(signal.Signals(one).name for one in signal.pthread_sigmask(signal.SIG_BLOCK, ())))
"""
    with Script(SLEEP + BEGIN + WAIT + text, *peer.address) as script:
        peer.accept().half_close()
        assert script.join() == "SIGTERM\n"  # The mask is as the program has made it.


def test_whoever_joins_all_threads_does_not_wait_for_it(peer: Peer) -> None:
    text = "for one in threading.enumerate()[1:]: one.join()\nprint(threading.active_count())"
    assert run_script(BEGIN + text, *peer.address) == "1\n"


# Arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "kind", "words"),
    [
        (0, ValueError, "above 0"),
        (-1, ValueError, "above 0"),
        (math.nan, ValueError, "above 0"),
        (1e-9, ValueError, "at least 0.1"),
        (1e9, ValueError, "from 0 to"),
        ("often", TypeError, "a number of seconds"),
    ],
)
def test_seconds_that_make_no_sense_are_refused_in_words(
    seconds: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=rf"enforce\(sweep\) takes .*{words}"):
        enforce(sweep=seconds)
