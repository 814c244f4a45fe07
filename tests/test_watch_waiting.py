"""Sockets that no watcher can be made for wait for one, and disturb nobody meanwhile."""

from __future__ import annotations

import select

import kernel
import pytest
from kernel import wait_until
from peer import EOF, Peer
from process import Script

from safesock import SafeSocket, _watch

# No descriptor is left for a watcher, or no thread, until `recover` is called.
_BEGIN = """
import os, resource, socket, sys, threading, time, safesock
from safesock import Policy, SafeSocket, _watch
address = sys.argv[1], int(sys.argv[2])
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
def starve(spare):
    free = os.open("/", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, hard))
def recover():
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
def connected():
    sock = SafeSocket(policy=Policy(grace=0))
    sock.connect(address)
    return sock
def wait_until(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)
def tell(*what):
    print(*what, flush=True)
    input()
"""

_IDLE = """
starve(1)
sock = connected()
assert _watch._watcher is None
tell("made")
recover()
tell("free")
wait_until(lambda: sock.loss)
assert sock.loss.cause is safesock.Cause.FIN
assert sock.recv(10) == b""
sock.close()
"""

_CONNECTING = """
starve(1)
sock = SafeSocket(policy=Policy(grace=0))
sock.setblocking(False)
sock.connect_ex(address)
assert _watch._watcher is None
tell("made")
recover()
tell("free")
wait_until(lambda: sock.loss)
assert sock.loss.cause is safesock.Cause.FIN
sock.close()
"""

_ENFORCED = """
handle = safesock.enforce(Policy(on_loss="release", grace=0))
starve(1)
sock = socket.socket()
sock.connect(address)
assert _watch._watcher is None
tell("made")
recover()
tell("free")
sock.close()
handle.remove()
"""

# That its thread is too big for the machine is how the system says that there is none.
_NO_THREAD = """
threading.stack_size(1 << 46)
sock = connected()
assert _watch._watcher is None
assert not _watch._trying.locked()
threading.stack_size(0)
tell("made")
SafeSocket().close()
tell("free")
wait_until(lambda: sock.loss)
assert sock.loss.cause is safesock.Cause.FIN
sock.close()
"""


@pytest.mark.parametrize(
    "text",
    [_IDLE, _CONNECTING, _ENFORCED, _NO_THREAD],
    ids=["idle", "connecting", "enforced", "no thread"],
)
def test_socket_that_could_not_be_watched_is_watched_as_soon_as_it_can_be(
    peer: Peer, text: str
) -> None:
    with Script(_BEGIN + text, *peer.address) as script:
        end = peer.accept()
        local = end.sock.getpeername()
        assert script.read_line() == "made"
        end.half_close()
        wait_until(lambda: kernel.state(local, peer.address) == "CLOSE_WAIT", "the FIN arrives")
        script.go_on()
        assert script.read_line() == "free"
        assert end.read_to_end() == (b"", EOF)  # And its owner has made no call.
        wait_until(lambda: kernel.state(local, peer.address) in (None, "LAST_ACK"))
        script.go_on()
        script.join()


_GONE = """
starve(3)
given, closed, again = connected(), connected(), connected()
number, gone, used = given.detach(), closed.fileno(), again.fileno()
closed.close()
os.dup2(number, gone)  # A stranger's.
again.close()
again = connected()
assert again.fileno() == used
assert _watch._watcher is None
assert list(_watch._waiting) == [used]
recover()
wait_until(lambda: _watch.watched() == {used: again})
wait_until(lambda: not _watch._trying.locked())
tell("watched")
os.close(number)
os.close(gone)
again.close()
"""


def test_those_that_are_gone_before_there_is_a_watcher_are_left_alone(peer: Peer) -> None:
    with Script(_BEGIN + _GONE, *peer.address) as script:
        given, closed, before, again = (peer.accept() for _ in range(4))
        assert script.read_line() == "watched"
        for end in closed, before:
            assert end.read_to_end() == (b"", EOF)
        given.half_close()
        again.half_close()
        assert again.read_to_end() == (b"", EOF)
        assert kernel.state(given.sock.getpeername(), peer.address) == "CLOSE_WAIT"
        script.go_on()
        script.join()


_FORKED = """
starve(2)
ours = connected()
wait_until(_watch._trying.locked)
pid = os.fork()
if pid == 0:
    assert not _watch._waiting
    assert not _watch._trying.locked()
    theirs = connected()
    assert list(_watch._waiting) == [theirs.fileno()]
    recover()
    wait_until(lambda: _watch.watched() == {theirs.fileno(): theirs})
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert list(_watch._waiting) == [ours.fileno()]
recover()
wait_until(lambda: _watch.watched() == {ours.fileno(): ours})
ours.close()
"""


def test_a_forked_child_does_not_wait_with_its_parents_sockets(peer: Peer) -> None:
    with Script(_BEGIN + _FORKED, *peer.address) as script:
        script.join()


_NOBODY_LEFT = """
starve(1)
sock = connected() if sys.argv[3] == "closed" else socket.create_connection(address)
wait_until(_watch._trying.locked)
if sys.argv[3] == "closed":
    sock.close()
else:
    del sock
wait_until(lambda: not _watch._waiting and not _watch._trying.locked())
wait_until(lambda: len(os.listdir("/proc/self/task")) == 1)
assert _watch._watcher is None
"""


@pytest.mark.parametrize("how", ["closed", "a client's own, dropped"])
def test_once_nobody_waits_nobody_tries(peer: Peer, how: str) -> None:
    text = _NOBODY_LEFT
    if how != "closed":
        text = "import warnings\nwarnings.simplefilter('ignore')\nsafesock.enforce()\n" + text
    with Script(_BEGIN + text, *peer.address, how) as script:
        script.join()


def test_one_that_is_forgotten_at_the_last_moment_is_not_watched(peer: Peer) -> None:
    with peer.connected() as (sock, _), SafeSocket() as forgotten:
        watcher, fd = _watch._start(), forgotten.fileno()
        watcher.take(fd, _watch._entry(forgotten, select.EPOLLRDHUP))
        assert fd not in watcher._sockets
        watcher.take(sock.fileno(), _watch._entry(forgotten, select.EPOLLRDHUP))
        assert watcher._sockets[sock.fileno()]() is sock
