"""The fixed local port on this host: who holds it, and that the error names nobody else."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kernel
import netns
import pytest
import tenacity
from kernel import wait_until
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd
from process import Gate, Script, forked

from safesock import (
    Abort,
    Connector,
    Graceful,
    LocalPortBusyError,
    Policy,
    PortHolder,
    Reconnect,
    ReconnectError,
    SafeSocket,
    create_connection,
)
from safesock._destination import Destination
from safesock._dial import Dialler
from safesock._holders import holders

HOST, OTHER_HOST = "127.0.0.1", "127.0.0.2"
HOSTS = {socket.AF_INET: HOST, socket.AF_INET6: "::1"}
MAPPED = "::ffff:127.0.0.1"
CANNOT_BIND = ("bind", errno.EADDRINUSE)
CANNOT_CONNECT = ("connect", errno.EADDRNOTAVAIL)
ONCE = Reconnect(attempts=1, deadline=TIMEOUT)

Address = tuple[str, int]
Dial = Callable[[Address, Address, Policy | None], SafeSocket]

pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


@pytest.fixture(scope="module", autouse=True)
def the_watcher_runs() -> None:
    """Its descriptors are opened once and for all: they are none that a test leaves."""
    with Peer() as one:
        create_connection(one.address).close()


@pytest.fixture
def port() -> int:
    """A port that nobody uses: none of those that the kernel gives out by itself."""
    for port in random.sample(range(10000, 32000), 100):
        try:
            with socket.socket() as one, socket.socket(socket.AF_INET6) as other:
                one.bind(("", port))
                other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                other.bind(("", port))
        except OSError:
            continue
        return port
    raise AssertionError("no port is free")


# Ways to dial ------------------------------------------------------------------------------------


def by_function(address: Address, local: Address, policy: Policy | None = None) -> SafeSocket:
    return create_connection(address, TIMEOUT, local, policy=policy)


def by_connector(address: Address, local: Address, policy: Policy | None = None) -> SafeSocket:
    return Connector(address, local_address=local, policy=policy, reconnect=ONCE).connect()


both_ways = pytest.mark.parametrize("dial", [by_function, by_connector])


def refused(
    dial: Dial, address: Address, local: Address, policy: Policy | None = None
) -> LocalPortBusyError:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - what it is, is checked below
        dial(address, local, policy)
    error: BaseException = caught.value
    if dial is by_connector:
        assert isinstance(error, ReconnectError)
        assert len(error.attempts) == 1
        assert error.__cause__ is error.attempts[0]
        error = error.attempts[0]
    assert type(error) is LocalPortBusyError
    assert error.local == local
    assert error.peer[:2] == address
    return error


def refusal(error: LocalPortBusyError) -> tuple[str, int | None]:
    return error.call, error.errno


# Holders ----------------------------------------------------------------------------------------


def bound(local: Address, *, reuse: bool, family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        sock.bind(local)
    except OSError:
        sock.close()
        raise
    return sock


def connected(
    peer: Peer, local: Address, *, reuse: bool = True, family: int = socket.AF_INET, host: str = ""
) -> tuple[socket.socket, PeerEnd]:
    """A plain socket, connected from that port, and the other end."""
    sock = bound(local, reuse=reuse, family=family)
    try:
        sock.settimeout(TIMEOUT)
        sock.connect((host or peer.address[0], peer.address[1]))
        return sock, peer.accept()
    except OSError:
        sock.close()
        raise


def command_of(pid: int) -> str:
    return Path("/proc", str(pid), "comm").read_text(encoding="utf-8").strip()


def own(state: str, local: Address, peer: Address | None, sock: socket.socket) -> PortHolder:
    """This process."""
    pid = os.getpid()
    return PortHolder(state, local, peer, pid, command_of(pid), sock.fileno())


def loses(sock: socket.socket, end: PeerEnd) -> None:
    end.fin()
    wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT", "the FIN arrives")


LISTENER = """
import os, socket, sys
open("/proc/self/comm", "w").write("the holder")
family, host, port = socket.AddressFamily(int(sys.argv[1])), sys.argv[2], int(sys.argv[3])
with socket.create_server((host, port), family=family) as listener:
    print(os.getpid(), listener.fileno(), flush=True)
    input()
"""


@contextlib.contextmanager
def listening_elsewhere(local: Address, family: int = socket.AF_INET) -> Iterator[PortHolder]:
    """Another process that listens there."""
    with Script(LISTENER, int(family), *local) as script:
        pid, descriptor = map(int, script.read_line().split())
        yield PortHolder("LISTEN", local, None, pid, "the holder", descriptor)
        script.go_on()
        script.join()


# Who holds it ------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("family", HOSTS, ids=["IPv4", "IPv6"])
def test_a_listening_socket_of_another_process_is_named(
    dial: Dial, port: int, family: socket.AddressFamily
) -> None:
    host = HOSTS[family]
    with Peer(family) as peer, listening_elsewhere((host, port), family) as holder:
        error = refused(dial, peer.address, (host, port))
        assert refusal(error) == CANNOT_BIND
        assert error.holders == (holder,)
        assert not error.passes
        assert f"of process {holder.pid} (the holder), descriptor {holder.descriptor}" in str(error)
        assert str(port) in str(error)
        copied = pickle.loads(pickle.dumps(error))
        assert (str(copied), copied.holders) == (str(error), error.holders)


V4, V6 = socket.AF_INET, socket.AF_INET6


@both_ways
@pytest.mark.parametrize(
    ("peer_is", "asked", "family", "listens_on"),
    [
        (V4, HOST, V4, "0.0.0.0"),
        (V4, "", V4, "0.0.0.0"),
        (V4, "", V4, HOST),
        (V4, HOST, V6, "::"),
        (V4, "", V6, "::"),
        (V6, "::1", V6, "::"),
        (V6, "", V6, "::"),
        (V6, "", V6, "::1"),
        (V6, "", V4, HOST),
        (V6, "::", V4, "0.0.0.0"),
    ],
)
def test_all_addresses_of_this_host_have_their_part_in_each_of_them(
    dial: Dial,
    port: int,
    peer_is: socket.AddressFamily,
    asked: str,
    family: socket.AddressFamily,
    listens_on: str,
) -> None:
    """A socket bound to all IPv6 addresses is so to all IPv4 addresses as well."""
    with Peer(peer_is) as peer, bound((listens_on, port), reuse=True, family=family) as listener:
        listener.listen()
        error = refused(dial, peer.address, (asked, port))
        assert refusal(error) == CANNOT_BIND
        assert error.holders == (own("LISTEN", (listens_on, port), None, listener),)


@both_ways
def test_a_connection_is_named_where_no_local_host_is_given(
    dial: Dial, peer46: Peer, port: int
) -> None:
    local = (peer46.address[0], port)
    leaked, end = connected(peer46, local, family=peer46.listener.family)
    with leaked:
        loses(leaked, end)
        error = refused(dial, peer46.address, ("", port))
        assert refusal(error) == CANNOT_CONNECT
        assert error.holders == (own("CLOSE_WAIT", local, peer46.address, leaked),)


@both_ways
@pytest.mark.parametrize("state", ["CLOSE_WAIT", "ESTABLISHED", "FIN_WAIT2"])
@pytest.mark.parametrize("reuse", [True, False])
def test_our_own_connection_is_named(
    dial: Dial, peer46: Peer, port: int, state: str, reuse: bool
) -> None:
    """Without SO_REUSEADDR on the first socket too, bind refuses; with it, connect does."""
    local = (peer46.address[0], port)
    family = peer46.listener.family
    leaked, end = connected(peer46, local, reuse=reuse, family=family)
    with leaked:
        if state == "CLOSE_WAIT":
            loses(leaked, end)
        elif state == "FIN_WAIT2":
            leaked.shutdown(socket.SHUT_WR)
            wait_until(lambda: kernel.state_of(leaked) == state, "the FIN is acknowledged")
        error = refused(dial, peer46.address, local)
        assert refusal(error) == (CANNOT_CONNECT if reuse else CANNOT_BIND)
        assert error.holders == (own(state, local, peer46.address, leaked),)
        assert not error.passes
        assert error.seconds_left is None
        if state != "CLOSE_WAIT":
            end.rst()  # Who closes first would hold the port.
    with dial(peer46.address, local, Policy(Abort())) as sock:
        assert sock.getsockname()[:2] == local


@both_ways
def test_a_governed_connection_that_has_not_ended_is_named(
    dial: Dial, peer: Peer, port: int
) -> None:
    local = (HOST, port)
    with by_function(peer.address, local, Policy(Abort())) as sock:
        error = refused(dial, peer.address, local)
        assert refusal(error) == CANNOT_CONNECT
        assert error.holders == (own("ESTABLISHED", local, peer.address, sock),)
    dial(peer.address, local, Policy(Abort())).close()


@both_ways
@pytest.mark.parametrize("here", [False, True], ids=["child", "child and parent"])
def test_a_forked_child_that_holds_a_connection_is_named(
    dial: Dial, peer: Peer, port: int, here: bool
) -> None:
    local = (HOST, port)
    with Gate() as gate, Gate() as ready, contextlib.ExitStack() as stack:
        sock, end = connected(peer, local)
        stack.enter_context(sock)
        descriptor = sock.fileno()
        pids: list[int] = []

        def child() -> None:
            end.close()  # A duplicate, as all that is open.
            ready.open()
            gate.wait()

        with forked(child):
            try:
                ready.wait()
                if not here:
                    sock.close()
                loses_elsewhere(local, peer, end)
                error = refused(dial, peer.address, local)
                pids += children()
            finally:
                gate.open()
    assert refusal(error) == CANNOT_CONNECT
    assert [holder.state for holder in error.holders] == ["CLOSE_WAIT"] * (1 + here)
    expected = ([(os.getpid(), descriptor)] if here else []) + [(pids[0], descriptor)]
    assert [(holder.pid, holder.descriptor) for holder in error.holders] == expected
    assert not error.passes
    dial(peer.address, local, Policy(Abort())).close()


def loses_elsewhere(local: Address, peer: Peer, end: PeerEnd) -> None:
    end.fin()
    wait_until(lambda: kernel.state(local, peer.address) == "CLOSE_WAIT", "the FIN arrives")


def children() -> list[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in path.read_text(encoding="ascii").split()]


ANOTHER_USER = """
import json, os, sys
import safesock
host, port, local = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def refused():
    reconnect = safesock.Reconnect(attempts=1)
    connector = safesock.Connector((host, port), local_address=(host, local), reconnect=reconnect)
    try:
        connector.connect()
    except safesock.ReconnectError as failure:
        return failure.attempts[0]

error = refused()  # And whatever is imported is imported.
assert all(holder.pid == os.getppid() for holder in error.holders)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
error = refused()
names = safesock.PortHolder.__slots__
holders = [{name: getattr(one, name) for name in names} for one in error.holders]
print(json.dumps([error.call, error.errno, error.passes, holders, str(error)]))
"""


@pytest.mark.parametrize("state", ["LISTEN", "CLOSE_WAIT", "ESTABLISHED"])
def test_of_a_process_of_another_user_only_the_state_is_named(
    peer: Peer, port: int, state: str
) -> None:
    if reason := netns.why_not():
        pytest.skip(reason)
    local = (HOST, port)
    with contextlib.ExitStack() as stack:
        if state == "LISTEN":
            sock = stack.enter_context(bound(local, reuse=True))
            sock.listen()
        else:
            sock, end = connected(peer, local)
            stack.enter_context(sock)
            if state == "CLOSE_WAIT":
                loses(sock, end)
        with Script(ANOTHER_USER, *peer.address, port) as script:
            call, number, passes, holders, text = json.loads(script.join())
    assert (call, number) == (CANNOT_BIND if state == "LISTEN" else CANNOT_CONNECT)
    assert holders == [
        {
            "state": state,
            "local": list(local),
            "peer": None if state == "LISTEN" else list(peer.address),
            "pid": None,
            "command": None,
            "descriptor": None,
            "seconds_left": None,
        }
    ]
    assert not passes
    assert state in text
    assert "process" not in text


@both_ways
def test_our_own_socket_that_is_bound_and_nothing_else_is_named(
    dial: Dial, peer46: Peer, port: int
) -> None:
    local = (peer46.address[0], port)
    with bound(local, reuse=False, family=peer46.listener.family) as sock:
        error = refused(dial, peer46.address, local)
        assert refusal(error) == CANNOT_BIND
        assert error.holders == (own("CLOSE", local, None, sock),)
        assert not error.passes
    dial(peer46.address, local, Policy(Abort())).close()


@both_ways
def test_our_own_socket_that_was_reset_and_not_closed_is_named(
    dial: Dial, peer: Peer, port: int
) -> None:
    """No table has it any more, and it holds its port."""
    local = (HOST, port)
    leaked, end = connected(peer, local, reuse=False)
    with leaked:
        end.rst()
        wait_until(lambda: kernel.state_of(leaked) == "CLOSE", "the RST arrives")
        error = refused(dial, peer.address, local)
        assert refusal(error) == CANNOT_BIND
        assert error.holders == (own("CLOSE", local, None, leaked),)
    dial(peer.address, local, Policy(Abort())).close()


@both_ways
def test_a_bound_socket_of_another_process_is_not_guessed_at(
    dial: Dial, peer: Peer, port: int
) -> None:
    local = (HOST, port)
    with Gate() as gate, Gate() as ready:

        def child() -> None:
            with bound(local, reuse=False):
                ready.open()
                gate.wait()

        with forked(child):
            try:
                ready.wait()
                error = refused(dial, peer.address, local)
            finally:
                gate.open()
    assert refusal(error) == CANNOT_BIND
    assert error.holders == ()
    assert not error.passes
    dial(peer.address, local, Policy(Abort())).close()


# TIME_WAIT ---------------------------------------------------------------------------------------

# SO_REUSEADDR off, so that TIME_WAIT holds the port on loopback too.
PLAIN = Policy(Graceful(), reuse_address=False)


def time_wait(peer: Peer, local: Address) -> None:
    sock = by_function(peer.address, local, PLAIN)
    end = peer.accept()
    sock.close()
    assert end.read_to_end() == (b"", EOF)
    end.fin()
    wait_until(lambda: kernel.state(local, peer.address) == "TIME_WAIT", "TIME_WAIT")


def is_time_wait(error: LocalPortBusyError, local: Address, peer: Address) -> None:
    (holder,) = error.holders
    assert (holder.state, holder.local, holder.peer) == ("TIME_WAIT", local, peer)
    assert (holder.pid, holder.command, holder.descriptor) == (None, None, None)
    assert holder.seconds_left is not None
    assert 0 < holder.seconds_left <= 60
    assert error.passes
    assert error.seconds_left == holder.seconds_left
    assert f"for {holder.seconds_left:.0f} more seconds" in str(error)


def test_time_wait_is_named_with_the_seconds_left(peer46: Peer, port: int) -> None:
    local = (peer46.address[0], port)
    time_wait(peer46, local)

    def seconds_left() -> float:
        error = refused(by_function, peer46.address, local, PLAIN)
        assert refusal(error) == CANNOT_BIND
        is_time_wait(error, local, peer46.address)
        assert error.seconds_left is not None
        return error.seconds_left

    first = seconds_left()
    wait_until(lambda: seconds_left() < first, "the time passes")


def test_time_wait_is_not_waited_for_past_the_deadline(peer: Peer, port: int) -> None:
    """It is over at once, without attempts in vain: the kernel tells beforehand."""
    local = (HOST, port)
    time_wait(peer, local)
    reconnect = Reconnect(attempts=3, deadline=TIMEOUT, wait=tenacity.wait_none())
    connector = Connector(peer.address, local_address=local, policy=PLAIN, reconnect=reconnect)
    with pytest.raises(ReconnectError) as caught:
        connector.connect()
    (error,) = caught.value.attempts
    assert isinstance(error, LocalPortBusyError)
    assert refusal(error) == CANNOT_BIND
    is_time_wait(error, local, peer.address)
    assert error.seconds_left is not None
    # Had it been waited for up to the deadline, there would be less.
    assert error.seconds_left > 60 - TIMEOUT


def test_who_holds_the_port_is_told_where_the_wait_for_it_outlasts_the_deadline(
    peer: Peer, port: int
) -> None:
    """A sleep may take longer than it is to; "the deadline has passed" would say less."""
    local = (HOST, port)
    sock = by_function(peer.address, local, PLAIN)
    end = peer.accept()
    sock.close()
    assert end.read_to_end() == (b"", EOF)
    until = time.monotonic() + 3

    def oversleep(_: float) -> None:
        while time.monotonic() < until:
            threading.Event().wait(until - time.monotonic())

    dialler = Dialler(Destination(peer.address, local, PLAIN), oversleep, lambda: None)
    with pytest.raises(LocalPortBusyError) as caught:
        dialler.dial(until)
    assert caught.value.passes


# Connections that come and go, until it is killed.
CHURN = """
import socket, struct
print("ready", flush=True)
with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
    while True:
        pairs = [(socket.create_connection(listener.getsockname()), listener.accept()[0])
                 for _ in range(200)]
        for one, other in pairs:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
            other.close()
"""


def test_each_holder_is_named_once_while_other_connections_come_and_go(peer: Peer) -> None:
    """The kernel's table is read in parts, and may have a row twice then."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(peer.address))
            peer.accept()
        for _ in range(2):
            assert stack.enter_context(Script(CHURN)).read_line() == "ready"
        for _ in range(40):
            found = holders(socket.AF_INET, peer.address)
            ends = [(one.local, one.peer, one.descriptor) for one in found]
            assert len(ends) == len(set(ends))


# Who does not hold it ----------------------------------------------------------------------------


def test_an_address_that_this_host_does_not_have_is_a_plain_error(peer: Peer, port: int) -> None:
    local = ("192.0.2.77", port)
    with bound(("", port), reuse=True) as sock:  # It has nothing to do with it.
        sock.listen()
        with pytest.raises(OSError, match="assign requested address") as caught:
            by_function(peer.address, local)
        assert type(caught.value) is OSError
        assert caught.value.errno == errno.EADDRNOTAVAIL
        with pytest.raises(ReconnectError) as given_up:
            by_connector(peer.address, local)
    (error,) = given_up.value.attempts
    assert type(error) is OSError
    assert error.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("port", [0], ids=["port 0"])
def test_without_a_fixed_port_an_error_is_a_plain_one(peer: Peer, port: int) -> None:
    with pytest.raises(OSError, match="assign requested address") as caught:
        by_function(peer.address, ("192.0.2.77", port))
    assert type(caught.value) is OSError


@both_ways
def test_a_refused_connection_is_a_plain_error(dial: Dial, port: int) -> None:
    """Nobody listens: that is no matter of the local port."""
    with bound((HOST, 0), reuse=False) as silent:
        with pytest.raises(ConnectionError) as caught:
            dial(silent.getsockname(), (HOST, port), None)
        error: BaseException | None = caught.value
        if dial is by_connector:
            assert error is not None
            error = error.__cause__
        assert type(error) is ConnectionRefusedError


@both_ways
def test_connections_to_other_peers_are_not_named(dial: Dial, peer: Peer, port: int) -> None:
    """They share the port, and are no hindrance."""
    local = (HOST, port)
    with Peer() as other, contextlib.ExitStack() as stack:
        for one in (other, peer):
            sock, end = connected(one, local)
            stack.enter_context(sock)
            loses(sock, end)
        error = refused(dial, peer.address, local)
        assert refusal(error) == CANNOT_CONNECT
        assert error.holders == (own("CLOSE_WAIT", local, peer.address, sock),)


@both_ways
def test_connections_to_the_same_port_of_another_host_are_not_named(
    dial: Dial, peer: Peer, port: int
) -> None:
    local = (HOST, port)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(bound((OTHER_HOST, peer.address[1]), reuse=True))
        listener.listen()
        elsewhere = stack.enter_context(bound(local, reuse=True))
        elsewhere.connect((OTHER_HOST, peer.address[1]))
        sock, _ = connected(peer, local)
        stack.enter_context(sock)
        error = refused(dial, peer.address, local)
        assert error.holders == (own("ESTABLISHED", local, peer.address, sock),)


@both_ways
def test_the_same_connection_from_another_address_of_this_host_is_not_named(
    dial: Dial, peer: Peer, port: int
) -> None:
    local = (HOST, port)
    with contextlib.ExitStack() as stack:
        other, _ = connected(peer, (OTHER_HOST, port))
        stack.enter_context(other)
        sock, _ = connected(peer, local)
        stack.enter_context(sock)
        error = refused(dial, peer.address, local)
        assert refusal(error) == CANNOT_CONNECT
        assert error.holders == (own("ESTABLISHED", local, peer.address, sock),)


@both_ways
@pytest.mark.parametrize(("family", "elsewhere"), [(V4, OTHER_HOST), (V6, "::1")])
def test_what_listens_on_another_address_of_this_host_is_not_named(
    dial: Dial, peer: Peer, port: int, family: socket.AddressFamily, elsewhere: str
) -> None:
    local = (HOST, port)
    with (
        bound(local, reuse=True) as sock,
        bound((elsewhere, port), reuse=True, family=family) as other,
    ):
        sock.listen()
        other.listen()
        error = refused(dial, peer.address, local)
        assert refusal(error) == CANNOT_BIND
        assert error.holders == (own("LISTEN", local, None, sock),)


@both_ways
def test_our_bound_socket_is_named_beside_time_wait_on_another_address(
    dial: Dial, peer: Peer, port: int
) -> None:
    """What is waited for has to be what holds the port."""
    local = (HOST, port)
    time_wait(peer, (OTHER_HOST, port))
    with bound(local, reuse=False) as sock:
        error = refused(dial, peer.address, local)
        assert refusal(error) == CANNOT_BIND
        assert error.holders == (own("CLOSE", local, None, sock),)
        assert not error.passes


def test_other_ports_are_not_named_however_many_there_are(peer: Peer, port: int) -> None:
    """A table of some hundreds, and on the very port a dozen connections to others."""
    local = (HOST, port)
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(peer.address, TIMEOUT))
            peer.accept()
        for _ in range(12):
            other = stack.enter_context(Peer())
            stack.enter_context(connected(other, local)[0])
        for neighbour in (port + 1, port - 1):
            with contextlib.suppress(OSError):  # Somebody else's.
                stack.enter_context(connected(peer, (HOST, neighbour))[0])
        leaked, end = connected(peer, local)
        stack.enter_context(leaked)
        loses(leaked, end)
        for dial in (by_function, by_connector):
            error = refused(dial, peer.address, local)
            assert refusal(error) == CANNOT_CONNECT
            assert error.holders == (own("CLOSE_WAIT", local, peer.address, leaked),)


# IPv4-mapped addresses: one port, two kinds of sockets -------------------------------------------

FORMS = {"IPv4": (socket.AF_INET, HOST), "mapped": (socket.AF_INET6, MAPPED)}


@both_ways
@pytest.mark.parametrize("asks", FORMS)
@pytest.mark.parametrize("holds", FORMS)
def test_ipv4_mapped_addresses_are_the_same_connection(
    dial: Dial, peer: Peer, port: int, asks: str, holds: str
) -> None:
    (family, host), asked = FORMS[holds], FORMS[asks][1]
    leaked, end = connected(peer, (host, port), family=family, host=host)
    with leaked:
        loses(leaked, end)
        error = refused(dial, (asked, peer.address[1]), (asked, port))
        assert refusal(error) == CANNOT_CONNECT
        assert error.holders == (own("CLOSE_WAIT", (HOST, port), peer.address, leaked),)


@both_ways
@pytest.mark.parametrize("asks", FORMS)
@pytest.mark.parametrize("holds", FORMS)
@pytest.mark.parametrize("listens", [True, False])
def test_ipv4_mapped_addresses_are_the_same_port(
    dial: Dial, peer: Peer, port: int, asks: str, holds: str, listens: bool
) -> None:
    (family, host), asked = FORMS[holds], FORMS[asks][1]
    with bound((host, port), reuse=False, family=family) as sock:
        if listens:
            sock.listen()
        error = refused(dial, (asked, peer.address[1]), (asked, port))
        assert refusal(error) == CANNOT_BIND
        assert error.holders == (own("LISTEN" if listens else "CLOSE", (HOST, port), None, sock),)


# SO_REUSEADDR ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "expected"), [(None, True), (True, True), (False, False)], ids=str
)
def test_so_reuseaddr_is_set_on_every_socket(
    peer46: Peer, port: int, choice: bool | None, expected: bool
) -> None:
    seen: list[tuple[Any, bool]] = []

    def on_connect(sock: SafeSocket) -> None:
        option = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        seen.append((sock.getsockname()[:2], bool(option)))

    local = (peer46.address[0], port)
    with Connector(
        peer46.address,
        local_address=local,
        policy=Policy(Abort(), reuse_address=choice),
        reconnect=ONCE,
        on_connect=on_connect,
    ) as connector:
        for _ in range(5):
            sock = connector.connect()
            connector.confirm()
            assert sock.getsockname()[:2] == local
    assert seen == [(local, expected)] * 5


def test_so_reuseaddr_is_set_before_bind(peer46: Peer, port: int) -> None:
    """Else TIME_WAIT of the connection before would refuse it."""
    local = (peer46.address[0], port)
    with Connector(peer46.address, local_address=local, reconnect=ONCE) as connector:
        for _ in range(5):
            sock = connector.connect()
            connector.confirm()
            assert sock.getsockname()[:2] == local
            end = peer46.accept()
            sock.close()
            assert end.read_to_end() == (b"", EOF)
            end.fin()
            wait_until(lambda: kernel.state(local, peer46.address) == "TIME_WAIT", "TIME_WAIT")


@pytest.mark.parametrize("port", [0], ids=["port 0"])
def test_so_reuseaddr_is_left_alone_where_no_port_is_fixed(peer: Peer, port: int) -> None:
    with by_connector(peer.address, (HOST, port)) as sock:
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


# Coming back -------------------------------------------------------------------------------------


def test_a_port_that_gets_free_between_two_attempts_is_used(peer: Peer, port: int) -> None:
    local = (HOST, port)
    leaked, end = connected(peer, local)
    with leaked:
        loses(leaked, end)

        def let_go_after_two(state: tenacity.RetryCallState) -> float:
            if state.attempt_number == 2:
                leaked.close()
            return 0.0

        reconnect = Reconnect(attempts=5, deadline=TIMEOUT, wait=let_go_after_two)
        with Connector(peer.address, local_address=local, reconnect=reconnect) as connector:
            sock = connector.connect()
            assert sock.getsockname() == local
            assert leaked.fileno() == -1
            assert peer.accept().sock.getpeername() == local


def test_the_previous_connection_does_not_hold_the_port(peer: Peer, port: int) -> None:
    """It is closed before the next is dialled, also where the peer had closed and nobody looked."""
    local = (HOST, port)
    with Connector(peer.address, local_address=local, reconnect=ONCE) as connector:
        for _ in range(5):
            sock = connector.connect()
            connector.confirm()
            loses(sock, peer.accept())
    assert kernel.connections(port).keys() == set()


# abort_previous ----------------------------------------------------------------------------------


def dials_again(connector: Connector, sock: SafeSocket) -> None:
    connector.confirm()
    with connector.connect():
        assert sock.fileno() == -1


def closes_the_connector(connector: Connector, _: SafeSocket) -> None:
    connector.close()


def closes_the_socket_and_dials_again(connector: Connector, sock: SafeSocket) -> None:
    sock.close()
    dials_again(connector, sock)


@pytest.mark.parametrize(
    ("act", "option", "fixed", "seen"),
    [
        (dials_again, True, True, RESET),
        (dials_again, True, False, EOF),
        (dials_again, False, False, EOF),
        (closes_the_connector, True, True, EOF),
        (closes_the_socket_and_dials_again, True, False, EOF),
    ],
)
def test_the_previous_connection_is_reset_only_where_its_port_is_needed(
    peer: Peer, port: int, act: Callable[..., None], option: bool, fixed: bool, seen: str
) -> None:
    local = (HOST, port) if fixed else (HOST, 0)
    with Connector(
        peer.address, local_address=local, reconnect=ONCE, abort_previous=option
    ) as connector:
        sock = connector.connect()
        end = peer.accept()
        act(connector, sock)
        assert end.read_to_end() == (b"", seen)
        report = sock.close_report
        assert report is not None
        assert report.reset is (seen == RESET)


def test_iteration_resets_each_connection_but_the_last(peer: Peer, port: int) -> None:
    local = (HOST, port)
    ends: list[PeerEnd] = []
    with Connector(
        peer.address, local_address=local, reconnect=ONCE, abort_previous=True
    ) as connector:
        for sock in connector:
            connector.confirm()
            assert sock.getsockname() == local
            ends.append(peer.accept())
            if len(ends) == 3:
                break
    assert [end.read_to_end() for end in ends] == [(b"", RESET), (b"", RESET), (b"", EOF)]


def test_ipv6_only_is_not_in_the_way_of_ipv4(peer: Peer, port: int) -> None:
    """A TIME_WAIT is waited for, whatever an IPv6 connection does on the same port number."""
    local = (HOST, port)
    time_wait(peer, local)
    with Peer(socket.AF_INET6) as other, socket.socket(socket.AF_INET6) as unrelated:
        unrelated.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        unrelated.bind(("::1", port))
        unrelated.connect(other.address)
        error = refused(by_function, peer.address, local, PLAIN)
    is_time_wait(error, local, peer.address)
    assert error.passes


def test_another_address_is_not_in_the_way_of_connect(peer: Peer, port: int) -> None:
    """Bound to any address: the one that the kernel takes towards the peer counts."""
    with (
        create_connection(peer.address, TIMEOUT, (OTHER_HOST, port)),
        create_connection(peer.address, TIMEOUT, (HOST, port)) as ours,
    ):
        with pytest.raises(LocalPortBusyError) as caught:
            create_connection(peer.address, TIMEOUT, ("", port))
        assert [holder.local for holder in caught.value.holders] == [ours.getsockname()]


def test_a_connection_with_itself_is_none() -> None:
    """The local port is that of the peer, where nobody listens: TCP lets the two ends be one."""
    here = HOST, random.randrange(10000, 30000)
    reconnect = Reconnect(attempts=2, wait=tenacity.wait_none())
    with (
        Connector(here, local_address=here, reconnect=reconnect) as connector,
        pytest.raises(ReconnectError) as caught,
    ):
        connector.connect()
    assert [type(error) for error in caught.value.attempts] == [ConnectionRefusedError] * 2
