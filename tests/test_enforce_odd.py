"""`enforce` with sockets that are out of the ordinary: what each call tells is what it tells on a
plain socket in the same state, and whatever else is in the class stays there."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import socket
import ssl
import sys
import time
import unittest.mock
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import kernel
import pytest
import trio
from command import PROGRAM, in_pipe
from kernel import wait_until
from listening import listening
from peer import EOF, Peer, PeerEnd
from process import run_script
from tls_client import fin_only, goodbye_notify_and_fin, notify_and_fin
from tls_peer import TlsEnd, TlsPeer, done

import safesock
from safesock import Abort, Policy, SafeSocket, enforce

RELEASE = Policy(on_loss="release", grace=0.05)
# What tests of programs put mocks in the place of.
MOCKED = [(os, name) for name in ("close", "fstat", "getpid", "read", "write")]
MOCKED += [(time, "monotonic")]


def told(call: Callable[..., object], *arguments: Any) -> object:
    """What it gives, or the kind of error that it raises, and its errno."""
    try:
        return call(*arguments)
    except Exception as error:
        return type(error), getattr(error, "errno", None)


def is_ended(sock: socket.socket) -> bool:
    return kernel.state_of(sock) not in ("ESTABLISHED", "CLOSE_WAIT")


@contextlib.contextmanager
def half_closed(
    peer: Peer, enforced: bool, kind: type[socket.socket] = socket.socket, policy: Policy = RELEASE
) -> Iterator[tuple[Any, PeerEnd]]:
    """Its peer has said "bye" and half-closed; with *enforced*, the watcher has been there too."""
    with enforce(policy) if enforced else contextlib.nullcontext(), kind() as sock:
        sock.connect(peer.address)
        end = peer.accept()
        end.say(b"bye")
        end.half_close()
        wait_until(lambda: kernel.state_of(sock) != "ESTABLISHED")
        if enforced:
            wait_until(lambda: is_ended(sock))
        yield sock, end


def shut(sock: Any) -> list[object]:
    return [
        told(sock.shutdown, socket.SHUT_WR),
        told(sock.send, b"x"),
        told(sock.shutdown, socket.SHUT_RD),
    ]


def connect_again(sock: Any) -> list[object]:
    return [told(sock.connect, ("127.0.0.1", 1)), sock.connect_ex(("127.0.0.1", 1))]


USES: list[Callable[[Any], object]] = [
    shut,
    connect_again,
    lambda sock: told(sock.bind, ("127.0.0.1", 0)),
    lambda sock: told(sock.listen),
    lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    lambda sock: sock.getpeername() == sock.getpeername(),
    lambda sock: type(sock).__qualname__,
    lambda sock: (repr(sock).replace(str(sock.getsockname()[1]), ""), isinstance(sock, Odd)),
    lambda sock: [told(sock.send, b"") for _ in range(3)],
]


class Odd(socket.socket):
    """Somebody's own, which cannot be hashed, and says wrong things of itself."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


@pytest.mark.parametrize("use", USES)
def test_each_use_tells_what_it_tells_on_a_plain_socket(
    peer: Peer, use: Callable[[Any], object]
) -> None:
    outcomes = []
    for enforced in (False, True):
        with half_closed(peer, enforced, Odd) as (sock, _):
            outcomes.append(use(sock))
    assert outcomes[0] == outcomes[1]


def test_an_aborted_socket_cannot_be_used_again(peer: Peer) -> None:
    """To the kernel it is a new one, as nothing was unread."""
    with (
        enforce(Policy(Abort(), on_loss="release", grace=0.05)),
        socket.create_connection(peer.address) as sock,
    ):
        peer.accept().half_close()
        wait_until(lambda: is_ended(sock))
        assert connect_again(sock) == [(OSError, errno.EISCONN), errno.EISCONN]
        assert told(sock.listen) == (OSError, errno.EINVAL)
        assert told(sock.bind, ("127.0.0.1", 0)) == (OSError, errno.EINVAL)


def test_only_what_fits_the_send_buffer_seems_to_be_sent(peer: Peer) -> None:
    size = 64 * 2**20
    with half_closed(peer, True) as (sock, _):
        assert 0 < sock.send(bytes(size)) < size
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")
    with half_closed(peer, True) as (sock, _), pytest.raises(BrokenPipeError):
        sock.sendall(bytes(size))


class WithName(socket.socket):
    """It has an attribute of a name that safesock's sockets have."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connection = "its own"


class WithNameInClass(socket.socket):
    """So has this."""

    _connection = "its own"


class Final(socket.socket):
    """Nothing can be derived from it."""

    def __init_subclass__(cls) -> None:
        raise TypeError("not to be derived from")


@pytest.mark.parametrize("kind", [WithName, WithNameInClass, Final])
def test_a_class_that_cannot_be_changed_is_released_as_it_is(
    peer: Peer, kind: type[socket.socket]
) -> None:
    with half_closed(peer, True, kind) as (sock, _):
        assert type(sock) is kind
        assert getattr(sock, "_connection", "its own") == "its own"
        assert (sock.recv(3), sock.recv(3)) == (b"bye", b"")


def test_a_class_that_was_made_for_one_connection_is_collected(peer: Peer) -> None:
    class Own(socket.socket):
        pass

    with half_closed(peer, True, Own) as (sock, _):
        assert type(sock) is not Own
        kinds = [weakref.ref(kind) for kind in type(sock).__mro__[:2]]
    del sock, Own
    gc.collect()
    assert [kind() for kind in kinds] == [None, None]


def test_an_error_that_is_kept_does_not_keep_the_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with enforce(RELEASE):
        sock = socket.socket()
        ref = weakref.ref(sock)
        kept = []
        try:
            sock.connect(address)
        except OSError as error:
            kept.append(error.with_traceback(error.__traceback__.tb_next))  # type: ignore[union-attr]
        sock.close()
        del sock
        assert kept[0].__traceback__ is not None
        assert ref() is None


def test_a_number_that_was_closed_by_os_close_is_a_strangers(peer: Peer) -> None:
    with enforce(RELEASE) as enforcement, socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(peer.address)
        peer.accept()
        client = socket.socket()
        fd = sock.fileno()
        os.close(fd)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted, client:
            assert accepted.fileno() == fd
            client.shutdown(socket.SHUT_WR)
            other = socket.create_connection(peer.address)
            with other:
                peer.accept().half_close()
                wait_until(lambda: enforcement.report().released == 1)
            assert kernel.state_of(accepted) == "CLOSE_WAIT"
        sock.detach()


def test_a_connect_that_goes_on_while_ssl_takes_the_socket(
    peer: Peer, context: ssl.SSLContext
) -> None:
    with enforce(RELEASE) as enforcement, socket.socket() as plain:
        plain.setblocking(False)
        plain.connect_ex(peer.address)
        with context.wrap_socket(
            plain, server_hostname="localhost", do_handshake_on_connect=False
        ) as sock:
            peer.accept().half_close()
            wait_until(lambda: enforcement.report().released == 1)
            assert is_ended(sock)


def test_connections_go_over_to_the_enforcement_that_stays(peer: Peer) -> None:
    with enforce(RELEASE) as outer:
        inner = enforce(Policy(on_loss="release", grace=3600))
        with socket.create_connection(peer.address):
            inner.remove()
            peer.accept().half_close()
            wait_until(lambda: outer.report().released == 1)
        assert inner.report().released == 0
        with pytest.raises(RuntimeError, match="has been removed"), inner:
            pass


def test_what_somebody_has_put_into_the_class_is_called_and_stays(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def counted(name: str) -> Any:
        plain = getattr(socket.socket, name)

        def call(self: socket.socket, *arguments: Any) -> Any:
            calls.append(name)
            return plain(self, *arguments)

        return call

    monkeypatch.setattr(socket.socket, "connect", before := counted("connect"))
    enforcement = enforce(RELEASE)
    monkeypatch.setattr(socket.socket, "connect_ex", after := counted("connect_ex"))
    try:
        for way in ("connect", "connect_ex"):
            with socket.socket() as sock:
                getattr(sock, way)(peer.address)
        assert calls == ["connect", "connect_ex"]
        assert enforcement.report().seen == 2
        with enforce(RELEASE) as again, socket.socket() as sock:
            sock.connect_ex(peer.address)
            assert again.report().seen == 1
    finally:
        enforcement.remove()
    assert vars(socket.socket)["connect"] is before
    assert vars(socket.socket)["connect_ex"] is after
    monkeypatch.undo()
    del socket.socket.connect_ex  # Ours, that it has put back.


def test_what_somebody_puts_back_when_it_is_over_does_nothing(peer: Peer) -> None:
    with enforce(RELEASE):
        ours = socket.socket.connect_ex
    with pytest.MonkeyPatch.context() as patch, listening(peer.address) as told:
        patch.setattr(socket.socket, "connect_ex", ours)
        with socket.socket() as sock:
            sock.connect_ex(peer.address)
        with enforce(RELEASE) as again, socket.socket() as sock:
            sock.connect_ex(peer.address)
        assert told.kinds() == ["Connecting", "Connected", "Closed"]
        assert again.report().seen == 1


REPLACED = """\
import socket, sys
plain = socket.socket

class Proxied(plain):
    def __init__(self, family=socket.AF_INET, type=socket.SOCK_STREAM, proto=0, fileno=None):
        if type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise ValueError(f"not a socket type: {type}")
        super().__init__(family, type, proto, fileno)

    def connect(self, address):
        super().connect(("127.0.0.1", int(sys.argv[1])))

def replace():
    socket.socket = Proxied

if sys.argv[2] == "before":
    replace()
import safesock
enforcement = safesock.enforce()
if sys.argv[2] == "after":
    replace()
sock = socket.socket()
sock.connect(("127.0.0.1", 1))
print(enforcement.report().seen)
sock.close()
enforcement.remove()
print(sorted(plain.__dict__.keys() & {"connect", "connect_ex", "getsockopt"}))
socket.socket().close()
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_class_that_stands_in_for_socket_stays_in_force(peer: Peer, when: str) -> None:
    assert run_script(REPLACED, peer.address[1], when) == "1\n[]\n"


class Gone(BaseException):
    """What gets out of everything."""


def test_the_watcher_outlives_what_others_raise(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", complaints.append)

    def only(_: Any) -> bool:
        if not complaints:
            raise Gone
        return True

    def connected() -> tuple[socket.socket, PeerEnd]:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(peer.address)
        return sock, peer.accept()

    with enforce(RELEASE, only=only):
        sock, _ = connected()
        with sock:
            wait_until(lambda: complaints)
        sock, end = connected()
        with sock:
            end.half_close()
            wait_until(lambda: is_ended(sock))
    assert [type(one.exc_value) for one in complaints] == [Gone]


def test_a_complaint_is_printed_and_nothing_else_fails(peer: Peer) -> None:
    text = (
        "import safesock, socket, sys; safesock.enforce(only=lambda peer: 1 / 0)\n"
        "socket.create_connection(('127.0.0.1', int(sys.argv[1]))).close(); print('connected')"
    )
    ended = in_pipe([sys.executable, "-c", text, str(peer.address[1])])
    assert ended.output == "connected\n"
    assert "enforce(only): the connection is left alone" in ended.errors
    assert "ZeroDivisionError" in ended.errors


CHURN = """\
import os, signal, socket, sys, threading, safesock
address = "127.0.0.1", int(sys.argv[1])
safesock.enforce()

def churn():
    while True:
        with safesock.enforce():
            pass

threading.Thread(target=churn, daemon=True).start()
for _ in range(60):
    child = os.fork()
    if not child:
        signal.alarm(30)
        with safesock.enforce():
            socket.create_connection(address).close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
print("well", flush=True)
os._exit(0)
"""


def test_a_child_is_forked_while_others_enforce(peer: Peer) -> None:
    assert run_script(CHURN, peer.address[1]) == "well\n"


def test_trios_other_methods_work_after_a_release(peer: Peer) -> None:
    async def main() -> None:
        sock = trio.socket.socket()
        with sock:
            await sock.connect(peer.address)
            peer.accept().half_close()
            plain: Any = sock._sock  # type: ignore[attr-defined]
            wait_until(lambda: is_ended(plain))
            assert await sock.sendmsg([b"a", b"b"]) == 2

    with enforce(RELEASE):
        trio.run(main)


@pytest.mark.parametrize("act", [notify_and_fin, fin_only, goodbye_notify_and_fin])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
@pytest.mark.parametrize("reads", [0, 1, 2])
def test_unwrap_tells_what_it_tells_without(
    tls: TlsPeer,
    context23: ssl.SSLContext,
    act: Callable[[TlsEnd], None],
    blocking: bool,
    reads: int,
) -> None:
    def outcome(wait: Callable[[socket.socket], object]) -> list[object]:
        future = tls.begin(tls.accept_and_shake)
        plain = socket.create_connection(tls.address)
        with context23.wrap_socket(plain, server_hostname="localhost") as sock:
            act(done(future))
            wait(sock)
            sock.setblocking(blocking)
            seen = [told(sock.recv, 100) for _ in range(reads)]
            unwrapped = told(sock.unwrap)
            return [*seen, unwrapped if isinstance(unwrapped, tuple) else type(unwrapped).__name__]

    without = outcome(lambda sock: wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT"))
    with enforce(RELEASE):
        assert outcome(lambda sock: wait_until(lambda: is_ended(sock))) == without


def test_a_handshake_after_the_end_tells_what_it_tells_without(
    peer: Peer, context23: ssl.SSLContext
) -> None:
    def outcome(ended: Callable[[socket.socket], bool]) -> object:
        with socket.create_connection(peer.address) as sock:
            peer.accept().fin()
            wait_until(lambda: ended(sock))
            return told(lambda: context23.wrap_socket(sock, server_hostname="localhost"))

    without = outcome(lambda sock: kernel.state_of(sock) == "CLOSE_WAIT")
    with enforce(RELEASE):
        assert outcome(is_ended) == without


def test_what_is_refused_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="watch=False"):
        enforce(Policy(on_loss="release", watch=False))


def test_a_handle_says_what_it_is() -> None:
    with enforce(RELEASE) as enforcement:
        assert repr(enforcement).startswith("<Enforcement in force, Policy(")
    assert "removed" in repr(enforcement)
    assert safesock.Report is type(enforcement.report())


SUBINTERPRETER = """\
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
one = interpreters.create()
text = '''
import socket
listener = socket.create_server(("127.0.0.1", 0))
with listener, socket.create_connection(listener.getsockname()) as sock:
    listener.accept()[0].close()
    assert sock.recv(1) == b""
'''
getattr(interpreters, "exec", getattr(interpreters, "run_string", None))(one, text)
interpreters.destroy(one)
print("well")
"""


def test_a_subinterpreter_is_left_alone() -> None:
    """It must not be left by a thread, or the process is aborted."""
    run = [*PROGRAM, "run", "--sweep", "1", "--"]
    ended = in_pipe([*run, sys.executable, "-W", "ignore", "-c", SUBINTERPRETER])
    assert (ended.status, ended.output, ended.errors) == (0, "well\n", "")


def test_connections_that_are_left_alone_again_close_as_before(peer: Peer) -> None:
    for then in (contextlib.nullcontext(), enforce(RELEASE)):
        with then:
            with enforce(Policy(Abort(), on_loss="release")):
                sock = socket.create_connection(peer.address)
            sock.sendall(b"last words")
            sock.close()
            assert peer.accept().read_to_end() == (b"last words", EOF)


def test_a_duplicate_goes_on_when_the_original_is_closed(peer: Peer) -> None:
    with enforce(Policy(on_loss="release", grace=3600)):
        sock = socket.create_connection(peer.address)
        end = peer.accept()
        end.half_close()
        wait_until(lambda: kernel.state_of(sock) == "CLOSE_WAIT")
        with sock.dup() as duplicate:
            sock.close()
            duplicate.sendall(b"answer")
        assert end.read_to_end() == (b"answer", EOF)


def test_a_connection_is_seen_once_whoever_finds_it_first(peer: Peer) -> None:
    """Its owner, who asks for SO_ERROR, and the watcher do so at the same moment."""
    with enforce(RELEASE) as enforcement:
        for _ in range(100):
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.connect_ex(peer.address)
                select.select([], [sock], [], 20)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                peer.accept().close()
        assert enforcement.report().seen == 100


def test_tls_of_a_class_that_cannot_be_changed_is_released(
    tls: TlsPeer, context: ssl.SSLContext
) -> None:
    with enforce(RELEASE) as enforcement:
        future = tls.begin(tls.accept_and_shake)
        plain = socket.create_connection(tls.address)
        with context.wrap_socket(plain, server_hostname="localhost") as sock:
            sock.policy = "its own"  # type: ignore[attr-defined]
            done(future).fin()
            wait_until(lambda: enforcement.report().released == 1)
            assert is_ended(sock)
            assert type(sock) is ssl.SSLSocket


def test_a_closed_socket_is_closed(peer: Peer) -> None:
    with half_closed(peer, True) as (sock, _):
        sock.close()
        assert connect_again(sock) == [(OSError, errno.EBADF), errno.EBADF]


def for_others(call: Callable[..., Any]) -> Callable[..., Any]:
    """A mock of *call* for safesock; for everybody else, what it was."""

    def replaced(*arguments: Any) -> Any:
        caller = sys._getframe(1).f_globals["__name__"]
        return unittest.mock.Mock() if caller.startswith("safesock") else call(*arguments)

    return replaced


@pytest.mark.parametrize("kind", [socket.socket, SafeSocket])
def test_mocks_of_system_calls_are_the_programs_own_affair(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, kind: type[socket.socket]
) -> None:
    for module, name in MOCKED:
        monkeypatch.setattr(module, name, for_others(getattr(module, name)))
    with half_closed(peer, True, kind) as (sock, end):
        assert sock.recv(9) == b"bye"
        sock.close()
        assert end.read_to_end() == (b"", EOF)
