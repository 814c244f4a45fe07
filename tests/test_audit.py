"""`safesock.audit`, compared with what the kernel says of real connections."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

import kernel
import pytest
from netns import Network
from peer import TIMEOUT, Peer
from process import Script, run_script

import safesock
from safesock import Audit, HeldConnection, Policy, _kernel_diag, _proc
from safesock._audit import audit_host
from safesock._kernel import TcpState

# Connects to each port it is given; "lost" waits until its connection has been reset.
HOLDER = """
import socket, sys
socks = [socket.create_connection((host, int(port)), 20) for host, port in
         (one.rsplit("@", 1) for one in sys.argv[1:])]
others = socket.socketpair(), socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
print(*(sock.fileno() for sock in socks), flush=True)
input()
"""
# Becomes another user. All is imported before, as that one may not read it; and what was root is
# not its new user's to look into, unless it says so.
AS_NOBODY = """
import ctypes, os, socket, sys, safesock
from safesock import _audit
safesock.audit(), "127.0.0.1".encode("idna")
os.setgroups([]), os.setgid(65534), os.setuid(65534)
assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE
"""
STRANGER = f"""
{AS_NOBODY}
try:
    safesock.audit(int(sys.argv[1]))
except PermissionError as error:
    print(error)
whole = _audit.audit_host(unowned=True)
local, peer = (("127.0.0.1", int(port)) for port in sys.argv[2:])
print([(one.pid, one.fd) for one in whole if (one.local, one.peer) == (local, peer)])
print(any(one.pid is None for one in _audit.audit_host(unowned=False)), *whole.notes)
"""
AGES = f"""
{AS_NOBODY}
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.recv(1)
pid = os.fork()
if pid == 0:
    input()
    os._exit(0)
(found,) = safesock.audit(pid)
print(found.pid == pid, found.fd == sock.fileno(), found.state, found.age is not None, flush=True)
os.waitpid(pid, 0)
"""


def held(found: Audit, sock: socket.socket | int) -> HeldConnection:
    """The one of this descriptor."""
    fd = sock if isinstance(sock, int) else sock.fileno()
    (one,) = (one for one in found if one.fd == fd)
    return one


def is_held(found: Audit, sock: socket.socket) -> bool:
    return sock.fileno() in {one.fd for one in found}


@contextlib.contextmanager
def holding(*addresses: tuple[str, int]) -> Iterator[tuple[Script, list[int]]]:
    """Another process with a connection to each of these, and its descriptors."""
    with Script(HOLDER, *(f"{host}@{port}" for host, port in addresses)) as script:
        yield script, [int(fd) for fd in script.read_line().split()]


def wait_for_state(script: Script, peer: Peer, state: str) -> None:
    port = peer.address[1]
    kernel.wait_until(
        lambda: set(kernel.states_of_process(script.pid, port).values()) == {state},
        f"the other process is in {state}",
    )


def arrived(sock: socket.socket, state: str) -> None:
    kernel.wait_until(lambda: kernel.state_of(sock) == state, f"the socket is in {state}")


def wait_until_found(sock: socket.socket, age: float) -> None:
    kernel.wait_until(lambda: held(safesock.audit(), sock).is_found(age), "it gets older")


@pytest.fixture
def sock(peer46: Peer) -> Iterator[socket.socket]:
    with socket.create_connection(peer46.address, TIMEOUT) as one:
        peer46.accept()
        yield one


# This process ---------------------------------------------------------------------------------


def test_a_connection_is_told_with_descriptor_state_and_addresses(
    sock: socket.socket, peer46: Peer
) -> None:
    one = held(safesock.audit(), sock)
    assert (one.pid, one.state, one.age) == (os.getpid(), "ESTABLISHED", None)
    assert one.local == sock.getsockname()[:2]
    assert one.peer == peer46.address
    assert one.inode == os.fstat(sock.fileno()).st_ino
    assert not one.accepted
    assert not one.lost
    assert not one.is_found()


def test_close_wait_is_found_with_its_age_and_what_is_unread(
    sock: socket.socket, peer46: Peer
) -> None:
    peer46.ends[0].say(b"bye")
    peer46.ends[0].fin()
    arrived(sock, "CLOSE_WAIT")
    one = held(safesock.audit(), sock)
    assert (one.state, one.unread, one.unacknowledged) == ("CLOSE_WAIT", 3, 0)
    assert one.age is not None
    assert one.is_found()
    assert not one.is_found(3600)
    wait_until_found(sock, one.age)
    assert held(safesock.audit(os.getpid()), sock).state == "CLOSE_WAIT"


def test_the_accepted_side_is_known_by_the_port_that_is_listened_on(peer: Peer) -> None:
    with peer.connected() as (sock, end):
        assert held(safesock.audit(), end.sock).accepted
        assert not held(safesock.audit(), sock).accepted


def test_what_is_no_connection_is_left_out(peer: Peer) -> None:
    left, right = socket.socketpair()
    with left, right, socket.socket() as fresh, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        found = safesock.audit()
        for one in (left, right, fresh, datagrams, peer.listener):
            assert not is_held(found, one)


def test_a_connect_that_was_refused_is_nothing_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    with socket.socket() as sock:
        with pytest.raises(ConnectionRefusedError):
            sock.connect(address)
        assert not is_held(safesock.audit(), sock)


def test_a_connection_that_was_reset_is_lost_and_found(sock: socket.socket, peer46: Peer) -> None:
    peer46.ends[0].rst()
    arrived(sock, "CLOSE")
    one = held(safesock.audit(), sock)
    assert (one.state, one.lost, one.peer, one.age) == ("CLOSE", True, None, None)
    assert one.is_found(3600)


def test_so_is_one_that_was_accepted(sock: socket.socket, peer46: Peer) -> None:
    accepted = peer46.ends[0].sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    arrived(accepted, "CLOSE")
    assert held(safesock.audit(), accepted).lost


def test_what_was_shut_down_and_is_over_is_not_lost(sock: socket.socket, peer46: Peer) -> None:
    peer46.ends[0].fin()
    arrived(sock, "CLOSE_WAIT")
    sock.shutdown(socket.SHUT_RDWR)
    arrived(sock, "CLOSE")
    one = held(safesock.audit(), sock)
    assert (one.state, one.lost, one.is_found()) == ("CLOSE", False, False)


def test_what_enforce_has_ended_is_not_found(peer: Peer) -> None:
    policy = Policy(on_loss="release", grace=0.0)
    with safesock.enforce(policy), socket.create_connection(peer.address, TIMEOUT) as sock:
        peer.accept().fin()
        arrived(sock, "CLOSE")
        assert not held(safesock.audit(), sock).is_found()


def test_what_safesock_watches_has_its_policy_and_its_peer_when_lost(peer: Peer) -> None:
    policy = Policy(on_loss="keep")
    with peer.connected(policy) as (sock, end), socket.create_connection(peer.address) as plain:
        found = safesock.audit()
        assert (held(found, sock).policy, held(found, sock).made) == (policy, ())
        assert held(found, plain).policy is None
        end.rst()
        arrived(sock, "CLOSE")
        assert held(safesock.audit(), sock).peer == peer.address


def test_so_has_a_plain_socket_under_enforce(peer: Peer) -> None:
    policy = Policy(on_loss="release", grace=5.0)
    with safesock.enforce(policy), socket.create_connection(peer.address, TIMEOUT) as sock:
        assert held(safesock.audit(), sock).policy == policy


def test_where_it_was_made_is_told_while_tracemalloc_runs(peer: Peer) -> None:
    tracemalloc.start(10)
    try:
        with peer.connected() as (sock, _):
            made = held(safesock.audit(), sock).made
    finally:
        tracemalloc.stop()
    assert any(line.startswith(f"{peer.connected.__code__.co_filename}:") for line in made), made


def test_sock_diag_and_tcp_info_agree_on_age_and_queues(sock: socket.socket, peer46: Peer) -> None:
    peer46.ends[0].say(b"four")
    peer46.ends[0].half_close()
    arrived(sock, "CLOSE_WAIT")
    inode = os.fstat(sock.fileno()).st_ino
    before = held(safesock.audit(), sock)
    row = _kernel_diag.connections({inode})[inode]
    after = held(safesock.audit(), sock)
    assert before.age is not None
    assert row.age is not None
    assert after.age is not None
    assert before.age <= row.age <= after.age
    for one in (row, _proc.connections(os.getpid())[0][inode]):
        assert (one.state, one.unread, one.unacknowledged) == (TcpState.CLOSE_WAIT, 4, 0)
        assert (one.local, one.peer) == (sock.getsockname()[:2], peer46.address)
    assert sock.recv(4) == b"four"
    assert sock.recv(4) == b""
    assert _kernel_diag.connections({inode})[inode].unread == 0


def test_the_audit_is_a_value_that_can_be_iterated_over(peer: Peer) -> None:
    with peer.connected():
        found = safesock.audit()
    assert pickle.loads(pickle.dumps(found)) == found
    assert len(found) == len(list(found)) == len(found.connections)
    assert found[0] is found.connections[0]
    assert found.notes == ()


def test_the_oldest_comes_first(peer: Peer) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(peer.address)) for _ in range(3)]
        ends = {end.sock.getpeername(): end for end in (peer.accept() for _ in socks)}
        for sock in (socks[1], socks[0]):
            ends[sock.getsockname()].half_close()
            arrived(sock, "CLOSE_WAIT")
            wait_until_found(sock, 0.01)
        fds = [one.fd for one in safesock.audit()]
        order = [fds.index(sock.fileno()) for sock in (socks[1], socks[0], socks[2])]
        assert order == sorted(order)


@pytest.mark.parametrize(("pid", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError)])
def test_what_is_no_process_number_is_refused(pid: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="takes the number of a process, or None: not"):
        safesock.audit(pid)


def test_importing_safesock_imports_nothing_of_it() -> None:
    text = "import sys, safesock; print(*(name for name in sys.modules if 'audit' in name))"
    assert subprocess.check_output([sys.executable, "-c", text], text=True) == "\n"


# Other processes ------------------------------------------------------------------------------


def test_another_process_is_told_with_the_ages(peer46: Peer) -> None:
    with holding(peer46.address) as (script, (fd,)):
        peer46.accept().fin()
        wait_for_state(script, peer46, "CLOSE_WAIT")
        found = safesock.audit(script.pid)
        assert len(found) == 1
        assert (found[0].pid, found[0].fd, found[0].state) == (script.pid, fd, "CLOSE_WAIT")
        assert found[0].peer == peer46.address
        assert found[0].age is not None
        assert found.notes == ()


def test_what_another_process_has_lost_is_found_by_its_descriptor(peer: Peer) -> None:
    with holding(peer.address, peer.address) as (script, fds):
        ends = peer.accept(), peer.accept()
        ends[0].rst()
        kernel.wait_until(lambda: any(one.lost for one in safesock.audit(script.pid)), "it is lost")
        found = safesock.audit(script.pid)
        assert sorted(one.fd or 0 for one in found) == sorted(fds)
        assert sorted(one.state for one in found) == ["CLOSE", "ESTABLISHED"]
        assert len(found.found()) == 1


def test_a_process_that_has_ended_is_told_so() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with pytest.raises(ProcessLookupError, match=f"there is no process {ended.pid}"):
        safesock.audit(ended.pid)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing the user takes root")


@needs_root
def test_another_users_process_is_not_ours_to_read(peer: Peer) -> None:
    with peer.connected() as (sock, _):
        ports = sock.getsockname()[1], sock.getpeername()[1]
        said = run_script(STRANGER, os.getpid(), *ports).splitlines()
    assert said[0].startswith(f"[Errno 1] the descriptors of process {os.getpid()} are not ours")
    assert said[1] == "[(None, None)]"
    assert said[2].startswith("False the descriptors of ")
    assert said[2].endswith(" their connections are shown without process and descriptor")


@needs_root
def test_the_ages_are_known_without_privileges(peer: Peer) -> None:
    with Script(AGES, peer.address[1]) as script:
        peer.accept().fin()
        assert script.read_line() == "True True CLOSE_WAIT True"
        script.go_on()
        script.join()


def test_a_process_in_another_network_namespace_is_told_too(network: Network) -> None:
    with contextlib.ExitStack() as stack:
        with network.client.entered():
            peer = stack.enter_context(Peer())
            address = peer.address
            script, (fd,) = stack.enter_context(holding(peer.address))
            peer.accept().fin()
            wait_for_state(script, peer, "CLOSE_WAIT")
            from_inside = safesock.audit(script.pid)
        found = safesock.audit(script.pid)
        whole = audit_host(unowned=True)
    for one in (*found, *from_inside):
        assert (one.fd, one.state, one.peer) == (fd, "CLOSE_WAIT", address)
        assert one.age is not None
    assert len(found) == len(from_inside) == 1
    assert (script.pid, fd) in {(one.pid, one.fd) for one in whole}
