"""Losing a connection, in every call that can meet it, judged by what a plain socket does."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kernel
import pytest
from calls import (
    ANYWHERE,
    CALLS,
    DATA,
    MODES,
    READS,
    SENDS,
    SIZE,
    WRITES,
    Call,
    answer,
    fill,
    opened,
    reader,
    sendfile,
)
from peer import EOF, TIMEOUT, Peer, PeerEnd

import safesock
from safesock import Cause, Policy, SafeSocket

each_read = pytest.mark.parametrize("name", READS)
each_write = pytest.mark.parametrize("name", WRITES)
each_call = pytest.mark.parametrize("name", CALLS)
each_way = pytest.mark.parametrize("way", ["FIN", "RST"])
ON_LOSS = ["close", "release", "keep"]
each_on_loss = pytest.mark.parametrize("on_loss", ON_LOSS)


# The ways a connection is made and lost ------------------------------------------------------


@pytest.fixture
def connect(peer: Peer) -> Iterator[Callable[..., tuple[socket.socket, PeerEnd]]]:
    """Makes a connection: a plain one for the policy None. Those that are left are closed."""
    with contextlib.ExitStack() as stack:

        def make(policy: Policy | None) -> tuple[socket.socket, PeerEnd]:
            sock: socket.socket
            if policy is None:
                sock = socket.create_connection(peer.address, TIMEOUT)
            else:
                sock = safesock.create_connection(peer.address, TIMEOUT, policy=policy)
            stack.enter_context(sock)
            return sock, peer.accept()

        yield make


Connect = Callable[[Policy | None], tuple[socket.socket, PeerEnd]]


def policy_of(on_loss: Any) -> Policy:
    # Without the watcher: these tests are about what the calls do.
    return Policy(on_loss=on_loss, watch=False)


def governed(sock: socket.socket) -> SafeSocket:
    assert isinstance(sock, SafeSocket)
    return sock


def arrived(sock: socket.socket, state: str) -> None:
    kernel.wait_until(lambda: kernel.state_of(sock) == state, f"the socket is in {state}")


def readable(sock: socket.socket, count: int) -> None:
    kernel.wait_until(lambda: kernel.unread(sock) == count, f"{count} bytes are here")


def lose(sock: socket.socket, end: PeerEnd, way: str) -> None:
    """The peer goes, and its segment has arrived here."""
    if way == "FIN":
        end.fin()
        arrived(sock, "CLOSE_WAIT")
    else:
        end.rst()
        arrived(sock, "CLOSE")


def meet(call: Call, sock: socket.socket, end: PeerEnd, way: str, name: str) -> list[Any]:
    """Loses the connection; what the call says, up to the time that it tells of the loss."""
    lose(sock, end, way)
    answers = []
    if way == "FIN" and name in WRITES:
        # The first one seems to succeed: the peer's RST is its answer.
        answers.append(answer(call, sock))
        arrived(sock, "CLOSE")
    return [*answers, answer(call, sock)]


class Stranger:
    """A file of somebody else's that gets the number of a descriptor that was closed."""

    def __init__(self, path: Path, fd: int) -> None:
        self.fd = fd
        self.path = path
        path.write_bytes(b"not yours")
        assert fd not in kernel.descriptors()
        file = os.open(path, os.O_RDWR)
        if file != fd:
            os.dup2(file, fd)
            os.close(file)

    def check(self) -> None:
        """It is open, and nobody has read or written it."""
        assert os.lseek(self.fd, 0, os.SEEK_CUR) == 0
        assert self.path.read_bytes() == b"not yours"
        assert os.path.samestat(os.fstat(self.fd), os.stat(self.path))


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Callable[[int], Stranger]]:
    taken: list[Stranger] = []

    def take(fd: int) -> Stranger:
        taken.append(Stranger(tmp_path / str(len(taken)), fd))
        return taken[-1]

    yield take
    for one in taken:
        os.close(one.fd)


def assert_silent(sock: socket.socket) -> None:
    """Contract 1, after the loss: reading gives nothing, sending a broken pipe, and never EBADF."""
    assert {name: answer(read.call, sock) for name, read in READS.items()} == {
        name: read.at_end for name, read in READS.items()
    }
    broken = (BrokenPipeError, errno.EPIPE, f"[Errno {errno.EPIPE}] {os.strerror(errno.EPIPE)}")
    assert {name: answer(call, sock) for name, call in WRITES.items()} == dict.fromkeys(
        WRITES, broken
    )


def nothing_left(local: Any, remote: Any) -> None:
    kernel.wait_until(
        lambda: kernel.state(local, remote) in (None, "TIME_WAIT"), "the connection is gone"
    )


# The call that meets the loss ------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "on_loss"),
    [("blocking", "close"), ("non-blocking", "close"), *itertools.product(["timeout"], ON_LOSS)],
)
@each_way
@each_call
def test_the_call_that_meets_the_loss_answers_as_on_a_plain_socket(
    connect: Connect, name: str, way: str, mode: str, on_loss: str
) -> None:
    if name == "sendfile" and mode == "non-blocking":
        mode = "timeout"  # It refuses the other.
    call, answers = CALLS[name], []
    for policy in (None, policy_of(on_loss)):
        sock, end = connect(policy)
        sock.settimeout(MODES[mode])
        fd, local, remote = sock.fileno(), sock.getsockname(), sock.getpeername()
        answers.append(meet(call, sock, end, way, name))
    assert answers[0] == answers[1]

    loss = governed(sock).loss
    assert loss is not None
    assert loss.cause is (Cause.RST if way == "RST" or name in WRITES else Cause.FIN)
    assert (loss.local, loss.peer) == (local, remote)
    assert (sock.getsockname(), sock.getpeername()) == (local, remote)
    if on_loss == "close":
        assert sock.fileno() == -1
        assert fd not in kernel.descriptors()
        nothing_left(local, remote)
    else:
        assert sock.fileno() == fd
        assert fd in kernel.descriptors()
    if on_loss == "release":
        nothing_left(local, remote)
    if on_loss == "keep" and loss.cause is Cause.FIN:
        assert kernel.state_of(sock) == "CLOSE_WAIT"


def interrupted(call: Call, sock: socket.socket, event: Callable[[], None]) -> Any:
    """What a call in another thread says for which *event* happens while it waits."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(answer(call, sock)))
    thread.start()
    kernel.wait_until_blocked(thread)
    event()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    return answers[0]


@each_way
@each_read
def test_a_read_that_waits_when_the_loss_comes(connect: Connect, name: str, way: str) -> None:
    answers = []
    for policy in (None, policy_of("close")):
        sock, end = connect(policy)
        answers.append(interrupted(READS[name].call, sock, end.fin if way == "FIN" else end.rst))
    assert answers[0] == answers[1]
    loss = governed(sock).loss
    assert loss is not None
    assert loss.cause is Cause[way]
    assert sock.fileno() == -1


@pytest.mark.parametrize("name", ["send", "sendall", "sendmsg", "sendto", "file-wb", "sendfile"])
def test_a_write_that_waits_when_the_loss_comes(connect: Connect, name: str) -> None:
    answers = []
    for policy in (None, policy_of("close")):
        sock, end = connect(policy)
        fill(sock, end)
        answers.append(interrupted(WRITES[name], sock, end.rst))
    assert answers[0] == answers[1]
    loss = governed(sock).loss
    assert loss is not None
    assert loss.cause is Cause.RST
    assert sock.fileno() == -1


@pytest.mark.parametrize("way", ["FIN", "RST"])
def test_a_loss_over_both_address_families(peer46: Peer, way: str) -> None:
    with safesock.create_connection(peer46.address, TIMEOUT, policy=policy_of("close")) as sock:
        local, remote = sock.getsockname(), sock.getpeername()
        assert meet(CALLS["recv"], sock, peer46.accept(), way, "recv") in (
            [b""],
            [(ConnectionResetError, errno.ECONNRESET, "[Errno 104] Connection reset by peer")],
        )
        assert sock.loss is not None
        assert sock.loss.cause is Cause[way]
        assert (sock.getsockname(), sock.getpeername()) == (local, remote)
        nothing_left(local, remote)


# After the loss ------------------------------------------------------------


@each_way
@each_call
def test_after_the_loss_reads_are_empty_and_writes_a_broken_pipe(
    connect: Connect, stranger: Callable[[int], Stranger], name: str, way: str
) -> None:
    sock, end = connect(policy_of("close"))
    fd = sock.fileno()
    meet(CALLS[name], sock, end, way, name)
    file = stranger(fd)
    assert_silent(sock)
    assert sock.fileno() == -1
    file.check()
    sock.close()
    file.check()


@each_way
def test_after_the_loss_the_other_methods_know_nothing_of_ebadf(
    connect: Connect, stranger: Callable[[int], Stranger], way: str
) -> None:
    sock, end = connect(policy_of("close"))
    local, remote, fd = sock.getsockname(), sock.getpeername(), sock.fileno()
    meet(CALLS["recv"], sock, end, way, "recv")
    file = stranger(fd)
    for _ in range(2):
        assert (sock.getsockname(), sock.getpeername()) == (local, remote)
        sock.settimeout(3.0)
        assert sock.gettimeout() == 3.0
        sock.setblocking(False)
        assert sock.getblocking() is False
        sock.setblocking(True)
    option = (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    answers = [
        answer(sock.getsockopt, *option),
        answer(sock.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR),
        answer(sock.setsockopt, *option, 1),
        answer(sock.connect, remote),
        answer(sock.connect_ex, remote),
        answer(sock.shutdown, socket.SHUT_RDWR),
        answer(sock.shutdown, socket.SHUT_WR),
        answer(sock.bind, ("127.0.0.1", 0)),
        answer(sock.listen),
        answer(sock.accept),
        answer(sock.dup),
        answer(sock.get_inheritable),
        answer(sock.set_inheritable, False),
    ]
    assert not [said for said in answers if isinstance(said, tuple) and said[1] == errno.EBADF]
    assert_silent(sock)
    file.check()


@each_way
def test_shutdown_after_the_loss_answers_as_on_a_plain_socket(connect: Connect, way: str) -> None:
    """A client that shuts down before it closes must not fail for having read the end."""
    answers = []
    for policy in (None, policy_of("close"), policy_of("release"), policy_of("keep")):
        sock, end = connect(policy)
        meet(CALLS["recv"], sock, end, way, "recv")
        said = answer(sock.shutdown, socket.SHUT_RDWR)
        answers.append(said and said[:2])
        sock.close()
    assert answers == answers[:1] * 4


@each_on_loss
@each_way
def test_after_close_it_answers_as_a_plain_closed_socket(
    connect: Connect, way: str, on_loss: str
) -> None:
    answers = []
    for policy in (None, policy_of(on_loss)):
        sock, end = connect(policy)
        meet(CALLS["recv"], sock, end, way, "recv")
        sock.close()
        sock.close()
        # A file of a closed socket is refused elsewhere than a call on it.
        calls = {name: call for name, call in CALLS.items() if not name.startswith("file")}
        methods = {
            "getpeername": lambda sock: sock.getpeername(),
            "getsockname": lambda sock: sock.getsockname(),
            "getsockopt": lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
            "setsockopt": lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            "settimeout": lambda sock: sock.settimeout(1),
            "setblocking": lambda sock: sock.setblocking(True),
            "shutdown": lambda sock: sock.shutdown(socket.SHUT_RDWR),
            "connect": lambda sock: sock.connect(ANYWHERE),
            "dup": lambda sock: sock.dup(),
            "fileno": lambda sock: sock.fileno(),
        }
        answers.append({name: answer(call, sock) for name, call in {**calls, **methods}.items()})
    assert answers[0] == answers[1]
    assert answers[0]["recv"][:2] == (OSError, errno.EBADF)


@pytest.mark.parametrize("on_loss", ["release", "keep"])
@each_way
@pytest.mark.parametrize("write", SENDS)
@pytest.mark.parametrize("read", ["recv", "recv_into", "file-rb", "file-r-iteration"])
def test_with_the_descriptor_left_open_the_rest_is_as_on_a_plain_socket(
    connect: Connect, read: str, write: str, way: str, on_loss: str
) -> None:
    answers = []
    for policy in (None, policy_of(on_loss)):
        sock, end = connect(policy)
        end.say(b"the last words\n")
        said = [answer(sock.recv, SIZE), *meet(CALLS[read], sock, end, way, read)]
        said += [answer(READS[read].call, sock), answer(SENDS[write], sock)]
        arrived(sock, "CLOSE")
        for _ in range(2):
            said += [answer(READS[read].call, sock), answer(SENDS[write], sock)]
        answers.append(said)
    assert answers[0] == answers[1]


@each_way
def test_a_file_goes_on_after_the_loss_and_keeps_what_it_has_buffered(
    connect: Connect, stranger: Callable[[int], Stranger], way: str
) -> None:
    answers = []
    for policy in (None, policy_of("close")):
        sock, end = connect(policy)
        fd = sock.fileno()
        with opened(sock, "rb") as file:
            end.say(b"one\ntwo\nthree")
            said: list[Any] = [file.readline()]
            lose(sock, end, way)
            said.append(answer(file.readlines))
            if policy is not None:
                other = stranger(fd)
            said += [file.read(), file.readline(), list(file), file.closed]
            sock.close()
            said.append(file.read())
        answers.append(said)
    assert answers[0] == answers[1]
    other.check()


# Not losses ------------------------------------------------------------


def still_there(sock: socket.socket, end: PeerEnd) -> None:
    """The connection goes on, both ways."""
    assert governed(sock).loss is None
    sock.settimeout(TIMEOUT)
    end.say(b"on")
    assert sock.recv(2) == b"on"
    sock.sendall(b"and on")
    assert end.read(6) == b"and on"
    assert governed(sock).loss is None
    assert kernel.state_of(sock) == "ESTABLISHED"


DIRECT_READS = [name for name in READS if not name.startswith("file")]


@each_on_loss
@pytest.mark.parametrize("timeout", [0.0, 0.01])
@pytest.mark.parametrize("name", READS)
def test_a_read_without_input_is_no_loss(
    connect: Connect, name: str, timeout: float, on_loss: str
) -> None:
    answers = []
    for policy in (None, policy_of(on_loss)):
        sock, end = connect(policy)
        sock.settimeout(timeout)
        answers.append(answer(READS[name].call, sock))
    assert answers[0] == answers[1]
    still_there(sock, end)


@pytest.mark.parametrize("timeout", [0.0, 0.01])
@pytest.mark.parametrize("name", SENDS)
def test_a_write_without_room_is_no_loss(connect: Connect, name: str, timeout: float) -> None:
    answers = []
    for policy in (None, policy_of("close")):
        sock, end = connect(policy)
        sent = fill(sock, end)
        sock.settimeout(timeout)
        answers.append(answer(SENDS[name], sock))
    assert answers[0] == answers[1]
    end.read(sent)
    still_there(sock, end)


@pytest.mark.parametrize("name", DIRECT_READS)
def test_a_signal_during_a_read_is_no_loss(connect: Connect, name: str) -> None:
    """PEP 475: the handler runs, and the call goes on."""
    sock, end = connect(policy_of("close"))
    runs: list[None] = []

    def handler(*_: object) -> None:
        runs.append(None)
        if len(runs) == 3:
            end.say(b"x" * SIZE)

    with every_few_ms(handler):
        got = READS[name].call(sock)
    assert len(runs) >= 3
    assert got != READS[name].at_end
    still_there(sock, end)


@pytest.mark.parametrize("name", DIRECT_READS)
def test_an_exception_from_a_signal_handler_is_no_loss(connect: Connect, name: str) -> None:
    sock, end = connect(policy_of("close"))

    def handler(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise InterruptedError(errno.EINTR, "the handler's own")

    # Outside: the first signal may come before there is a read.
    with pytest.raises(InterruptedError, match="the handler's own"), every_few_ms(handler):
        READS[name].call(sock)
    still_there(sock, end)


@contextlib.contextmanager
def every_few_ms(handler: Callable[..., None]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


OF_NOTHING: dict[str, Call] = {
    "recv": lambda sock: sock.recv(0),
    "recv_into": lambda sock: sock.recv_into(bytearray()),
    "recvfrom": lambda sock: sock.recvfrom(0),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray()),
    "recvmsg": lambda sock: sock.recvmsg(0),
    "recvmsg_into": lambda sock: sock.recvmsg_into([]),
    "recvmsg_into-empty": lambda sock: sock.recvmsg_into([bytearray(), bytearray()]),
    "recvmsg_into-generator": lambda sock: sock.recvmsg_into(bytearray() for _ in range(2)),
    "send": lambda sock: sock.send(b""),
    "sendall": lambda sock: sock.sendall(b""),
    "sendmsg": lambda sock: sock.sendmsg([]),
    "sendmsg-empty": lambda sock: sock.sendmsg([b""]),
    "file-rb": reader(lambda file: file.read(0), "rb"),
    "file-rb-unbuffered": reader(lambda file: file.read(0), "rb", 0),
}


@pytest.mark.parametrize("behind", ["data", "FIN", "nothing"])
@pytest.mark.parametrize("name", OF_NOTHING)
def test_a_call_that_asks_for_nothing_is_no_loss(connect: Connect, name: str, behind: str) -> None:
    answers = []
    for policy in (None, policy_of("close")):
        sock, end = connect(policy)
        sock.settimeout(0.0)
        if behind == "data":
            end.say(b"x")
            readable(sock, 1)
        elif behind == "FIN":
            end.half_close()
            arrived(sock, "CLOSE_WAIT")
        answers.append(answer(OF_NOTHING[name], sock))
    assert answers[0] == answers[1]
    assert governed(sock).loss is None
    assert sock.fileno() >= 0
    assert answer(sock.recv, SIZE)[:1] == {"data": b"x", "FIN": b""}.get(behind, (BlockingIOError,))
    assert (governed(sock).loss is not None) is (behind == "FIN")


@pytest.mark.parametrize("name", ["recv_into", "recvfrom_into", "recvmsg_into"])
def test_a_read_into_part_of_a_buffer_meets_the_loss(connect: Connect, name: str) -> None:
    """Zero bytes asked for means the whole buffer; several buffers may be of any kind."""
    sock, end = connect(policy_of("close"))
    lose(sock, end, "FIN")
    buffer = bytearray(4)
    if name == "recvmsg_into":
        count = sock.recvmsg_into(memoryview(part) for part in (bytearray(), buffer))[0]
    elif name == "recv_into":
        count = sock.recv_into(buffer, 0)
    else:
        count = sock.recvfrom_into(memoryview(buffer), 0)[0]
    assert count == 0
    assert governed(sock).loss is not None


class Index:
    """Any such object is a number of bytes."""

    def __index__(self) -> int:
        return 4


FOUR: Any = Index()
BY_INDEX: dict[str, Call] = {
    "recv": lambda sock: sock.recv(FOUR),
    "recv_into": lambda sock: sock.recv_into(bytearray(4), FOUR),
    "recvfrom": lambda sock: sock.recvfrom(FOUR),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(4), FOUR),
    "recvmsg": lambda sock: sock.recvmsg(FOUR),
}


@pytest.mark.parametrize("name", BY_INDEX)
def test_a_read_of_an_index_meets_the_loss(connect: Connect, name: str) -> None:
    answers = []
    for policy in (None, policy_of("close")):
        sock, end = connect(policy)
        lose(sock, end, "FIN")
        answers.append(answer(BY_INDEX[name], sock))
    assert answers[0] == answers[1]
    assert governed(sock).loss is not None


def test_peeking_takes_nothing_and_is_no_loss_while_there_is_input(connect: Connect) -> None:
    sock, end = connect(policy_of("close"))
    end.say(b"last")
    lose(sock, end, "FIN")
    for _ in range(3):
        assert sock.recv(9, socket.MSG_PEEK) == b"last"
    assert governed(sock).loss is None
    assert sock.recv(9) == b"last"
    assert governed(sock).loss is None
    assert sock.recv(9) == b""
    assert governed(sock).loss is not None


@pytest.mark.parametrize("finished", [False, True], ids=["open", "after FIN"])
def test_urgent_data_is_read_aside_and_no_loss(connect: Connect, finished: bool) -> None:
    answers = []
    for policy in (None, policy_of("close")):
        sock, end = connect(policy)
        sock.settimeout(0)  # With a timeout, Python asks again and again.
        said = [answer(sock.recv, 1, socket.MSG_OOB)]  # There is none.
        end.sock.send(b"!", socket.MSG_OOB)
        select.select([], [], [sock], TIMEOUT)
        if finished:
            end.half_close()
            arrived(sock, "CLOSE_WAIT")
        for flags in (socket.MSG_OOB | socket.MSG_PEEK, socket.MSG_OOB, socket.MSG_OOB):
            said.append(answer(sock.recv, 1, flags))
        answers.append(said)
    assert answers[0] == answers[1]
    assert b"!" in answers[0]
    if not finished:
        still_there(sock, end)
    assert governed(sock).loss is None
    assert sock.fileno() >= 0


SO_TIMESTAMPING = 37
ON_ACKNOWLEDGEMENT = 1 << 9 | 1 << 4 | 1 << 11  # TX_ACK, SOFTWARE, OPT_TSONLY


def test_the_error_queue_is_read_aside_and_no_loss(connect: Connect) -> None:
    """A time stamp has no bytes, only ancillary data, which is not the end of the stream."""
    sock, end = connect(policy_of("close"))
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, ON_ACKNOWLEDGEMENT)
    sock.sendall(DATA)
    assert end.read(len(DATA)) == DATA
    end.say(b"last")
    end.half_close()
    arrived(sock, "CLOSE_WAIT")
    data, ancillary, _, _ = sock.recvmsg(SIZE, 1024, socket.MSG_ERRQUEUE)
    assert data == b""
    assert ancillary
    assert governed(sock).loss is None
    assert sock.recv(SIZE) == b"last"


def without_waiting(call: Call) -> Call:
    def at_once(sock: socket.socket) -> Any:
        sock.settimeout(0)
        return call(sock)

    return at_once


WRONG: dict[str, Call] = {
    "recv-negative": lambda sock: sock.recv(-1),
    "recv-type": lambda sock: sock.recv("1"),  # type: ignore[arg-type]
    "recv-no-argument": lambda sock: sock.recv(),  # type: ignore[call-arg]
    "recv_into-read-only": lambda sock: sock.recv_into(b"1234"),
    "recv_into-too-many": lambda sock: sock.recv_into(bytearray(1), 2),
    "recvfrom_into-too-many": lambda sock: sock.recvfrom_into(bytearray(1), 2),
    "recvmsg-negative": lambda sock: sock.recvmsg(-1),
    "recvmsg_into-read-only": lambda sock: sock.recvmsg_into([b"1234"]),
    "recvmsg_into-type": lambda sock: sock.recvmsg_into(4),  # type: ignore[arg-type]
    "recv-errqueue-without-any": without_waiting(lambda sock: sock.recv(1, socket.MSG_ERRQUEUE)),
    "send-text": lambda sock: sock.send("text"),  # type: ignore[arg-type]
    "sendall-text": lambda sock: sock.sendall("text"),  # type: ignore[arg-type]
    "sendmsg-text": lambda sock: sock.sendmsg(["text"]),  # type: ignore[list-item]
    "sendmsg-type": lambda sock: sock.sendmsg(4),  # type: ignore[arg-type]
    "sendto-no-address": lambda sock: sock.sendto(DATA),  # type: ignore[call-overload]
    "sendto-bad-address": lambda sock: sock.sendto(DATA, "nowhere"),
    "sendfile-text": lambda sock: sock.sendfile(io.StringIO("text")),  # type: ignore[arg-type]
    "sendfile-non-blocking": without_waiting(sendfile),
    "sendfile-count": lambda sock: sock.sendfile(io.BytesIO(b""), 0, -1),
    "setsockopt": lambda sock: sock.setsockopt(socket.IPPROTO_TCP, 9999, 1),
    "getsockopt": lambda sock: sock.getsockopt(socket.IPPROTO_TCP, 9999),
    "shutdown": lambda sock: sock.shutdown(99),
    "settimeout": lambda sock: sock.settimeout(-1),
    "connect-again": lambda sock: sock.connect(sock.getpeername()),
    "connect_ex-again": lambda sock: sock.connect_ex(sock.getpeername()),
    "bind": lambda sock: sock.bind(("127.0.0.1", 0)),
    "makefile": lambda sock: sock.makefile("x"),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("name", WRONG)
def test_a_programming_error_is_no_loss(connect: Connect, name: str) -> None:
    answers = []
    for policy in (None, policy_of("close")):
        sock, end = connect(policy)
        answers.append(answer(WRONG[name], sock))
    # The words may differ, as Python counts the arguments instead of C.
    plain, safe = (said[:2] if isinstance(said, tuple) else said for said in answers)
    assert plain == safe
    still_there(sock, end)


@each_call
def test_a_call_on_an_unconnected_socket_is_no_loss(name: str) -> None:
    answers = []
    for made in (socket.socket, SafeSocket):
        with made(socket.AF_INET, socket.SOCK_STREAM) as sock:
            answers.append(answer(CALLS[name], sock))
    assert answers[0] == answers[1]
    assert governed(sock).loss is None


@each_on_loss
def test_after_our_own_shut_rd_the_connection_goes_on(connect: Connect, on_loss: str) -> None:
    sock, end = connect(policy_of(on_loss))
    sock.shutdown(socket.SHUT_RD)
    for read in READS.values():
        assert answer(read.call, sock) == read.at_end
    assert governed(sock).loss is None
    sock.sendall(b"still sending")
    assert end.read(13) == b"still sending"
    lose(sock, end, "FIN")
    assert sock.recv(1) == b""
    assert governed(sock).loss is not None


@each_on_loss
def test_after_our_own_shut_wr_reading_goes_on_until_the_peer_closes(
    connect: Connect, on_loss: str
) -> None:
    answers = []
    for policy in (None, policy_of(on_loss)):
        sock, end = connect(policy)
        sock.sendall(b"all of it")
        sock.shutdown(socket.SHUT_WR)
        said = [answer(call, sock) for name, call in WRITES.items()]
        if policy is not None:
            assert governed(sock).loss is None
        assert end.read_to_end() == (b"all of it", EOF)
        end.say(b"the answer")
        said.append(sock.recv(4))
        if policy is not None:
            assert governed(sock).loss is None
        end.fin()
        said += [answer(READS["file-rb"].call, sock), answer(sock.recv, SIZE)]
        answers.append(said)
    assert answers[0] == answers[1]
    loss = governed(sock).loss
    assert loss is not None
    assert loss.cause is Cause.FIN
    assert (sock.fileno() == -1) is (on_loss == "close")


@each_on_loss
def test_a_write_after_both_fins_is_no_loss_while_there_is_input(
    connect: Connect, on_loss: str
) -> None:
    answers = []
    for policy in (None, policy_of(on_loss)):
        sock, end = connect(policy)
        sock.shutdown(socket.SHUT_WR)
        end.say(b"the answer")
        end.fin()
        arrived(sock, "CLOSE")
        said = [answer(call, sock) for call in SENDS.values()]
        answers.append([*said, sock.recv(SIZE), sock.recv(SIZE)])
    assert answers[0] == answers[1]
    assert answers[1][-2:] == [b"the answer", b""]
    loss = governed(sock).loss
    assert loss is not None
    assert (loss.cause, loss.unread) == (Cause.FIN, 0)


@each_on_loss
def test_after_our_own_shut_rdwr_only_the_peers_end_is_a_loss(
    connect: Connect, on_loss: str
) -> None:
    sock, end = connect(policy_of(on_loss))
    sock.shutdown(socket.SHUT_RDWR)
    assert sock.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        sock.send(b"x")
    assert governed(sock).loss is None
    end.fin()
    arrived(sock, "CLOSE")
    assert sock.recv(1) == b""
    assert governed(sock).loss is not None


def test_a_half_open_protocol_keeps_its_connection(connect: Connect) -> None:
    sock, end = connect(policy_of("keep"))
    end.half_close()
    assert sock.recv(1) == b""
    assert governed(sock).loss is not None
    sock.sendall(b"still listening?")
    assert end.read(16) == b"still listening?"
    assert kernel.state_of(sock) == "CLOSE_WAIT"
    sock.close()
    assert end.read_to_end() == (b"", EOF)


# on_loss="release" ------------------------------------------------------------------------------


def test_released_the_unread_bytes_stay_readable(connect: Connect) -> None:
    """A RST that a write meets, with input unread: the standard library leaves it to be read."""
    answers = []
    for policy in (None, policy_of("release")):
        sock, end = connect(policy)
        end.say(b"421 closing")
        readable(sock, 11)
        lose(sock, end, "RST")
        said = [answer(sock.send, DATA), sock.recv(3), answer(sock.recv, SIZE)]
        answers.append([*said, answer(sock.recv, SIZE), answer(sock.send, DATA)])
    assert answers[0] == answers[1]
    assert answers[1][1:3] == [b"421", b" closing"]
    loss = governed(sock).loss
    assert loss is not None
    assert loss.unread == len(b"421 closing")


def test_closed_the_unread_bytes_are_dropped_and_counted(connect: Connect) -> None:
    sock, end = connect(policy_of("close"))
    end.say(b"421 closing")
    readable(sock, 11)
    lose(sock, end, "RST")
    with pytest.raises(ConnectionResetError):
        sock.send(b"QUIT")
    loss = governed(sock).loss
    assert loss is not None
    assert loss.unread == len(b"421 closing")
    assert_silent(sock)


@pytest.mark.parametrize("name", WRITES)
def test_released_the_first_send_seems_to_succeed_and_is_counted(
    connect: Connect, name: str
) -> None:
    sock, end = connect(policy_of("release"))
    sock.sendall(b"before")
    assert end.read(6) == b"before"
    lose(sock, end, "FIN")
    assert sock.recv(1) == b""
    loss = governed(sock).loss
    assert loss is not None
    assert (loss.sent, loss.unacknowledged) == (6, 0)
    assert answer(WRITES[name], sock) in (None, len(DATA))
    after = governed(sock).loss
    assert after is not None
    assert (after.sent, after.unacknowledged) == (6 + len(DATA), len(DATA))
    assert answer(WRITES[name], sock)[0] is BrokenPipeError
    assert governed(sock).loss == after


def test_released_an_empty_send_is_not_the_one_that_seems_to_succeed(connect: Connect) -> None:
    sock, end = connect(policy_of("release"))
    end.fin()
    assert sock.recv(1) == b""
    assert [sock.send(b""), sock.send(b"abc")] == [0, 3]
    with pytest.raises(BrokenPipeError):
        sock.send(b"abc")


def test_released_after_our_own_shut_wr_no_send_is_let_through(connect: Connect) -> None:
    sock, end = connect(policy_of("release"))
    sock.shutdown(socket.SHUT_WR)
    end.fin()
    assert sock.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        sock.send(b"x")
    loss = governed(sock).loss
    assert loss is not None
    assert loss.unacknowledged == 0


def test_released_after_a_reset_no_send_is_let_through(connect: Connect) -> None:
    sock, end = connect(policy_of("release"))
    lose(sock, end, "RST")
    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    with pytest.raises(BrokenPipeError):
        sock.send(b"x")


# Connecting ------------------------------------------------------------


def start(peer: Peer, *, by: str, policy: Policy) -> SafeSocket:
    """A connect that goes on in the background."""
    sock = SafeSocket(socket.AF_INET, socket.SOCK_STREAM, policy=policy)
    sock.setblocking(False)
    if by == "connect":
        with pytest.raises(BlockingIOError):
            sock.connect(peer.address)
    else:
        assert sock.connect_ex(peer.address) == errno.EINPROGRESS
    return sock


def so_error(sock: SafeSocket, _: Peer) -> None:
    select.select([], [sock], [], TIMEOUT)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def again(sock: SafeSocket, peer: Peer) -> None:
    select.select([], [sock], [], TIMEOUT)
    assert sock.connect_ex(peer.address) in (0, errno.EISCONN)
    assert sock.connect_ex(peer.address) == errno.EISCONN


def straight_on(sock: SafeSocket, _: Peer) -> None:
    select.select([], [sock], [], TIMEOUT)


ENDS: dict[str, Callable[[SafeSocket, Peer], None]] = {
    "SO_ERROR": so_error,
    "connect_ex again": again,
    "nothing": straight_on,
}


@each_on_loss
@each_way
@pytest.mark.parametrize("by", ["connect", "connect_ex"])
@pytest.mark.parametrize("finish", ENDS)
@pytest.mark.parametrize("name", ["recv", "recv_into", "send", "sendmsg"])
def test_the_loss_of_a_connection_made_without_blocking(
    peer: Peer, name: str, finish: str, by: str, way: str, on_loss: str
) -> None:
    with start(peer, by=by, policy=policy_of(on_loss)) as sock:
        ENDS[finish](sock, peer)
        fd, local = sock.fileno(), sock.getsockname()
        meet(CALLS[name], sock, peer.accept(), way, name)
        assert sock.loss is not None
        assert sock.loss.peer == peer.address
        assert (sock.getsockname(), sock.getpeername()) == (local, peer.address)
        assert sock.fileno() == (-1 if on_loss == "close" else fd)
        if on_loss != "keep":
            nothing_left(local, peer.address)


def test_a_reset_before_so_error_is_asked_for(peer: Peer) -> None:
    """The connection was made and lost before its owner looked: SO_ERROR tells of it."""
    with start(peer, by="connect_ex", policy=policy_of("close")) as sock:
        lose(sock, peer.accept(), "RST")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        assert sock.loss is not None
        assert sock.loss.cause is Cause.RST
        assert sock.fileno() == -1
        assert_silent(sock)


@pytest.fixture
def nowhere() -> Iterator[tuple[str, int]]:
    """An address that refuses: bound, so that nobody else gets it, and not listening."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()


def refused_by_so_error(sock: socket.socket, address: Any) -> Any:
    first = sock.connect_ex(address)
    select.select([], [sock], [], TIMEOUT)
    return first, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def refused_twice(sock: socket.socket, address: Any) -> Any:
    first = sock.connect_ex(address)
    select.select([], [sock], [], TIMEOUT)
    return first, sock.connect_ex(address)


def refused_and_read(sock: socket.socket, address: Any) -> Any:
    first = sock.connect_ex(address)
    select.select([], [sock], [], TIMEOUT)
    return first, answer(sock.recv, SIZE), answer(sock.recv, SIZE)


REFUSALS: dict[str, tuple[float | None, Callable[[socket.socket, Any], Any]]] = {
    "connect": (None, lambda sock, address: sock.connect(address)),
    "connect-timeout": (TIMEOUT, lambda sock, address: sock.connect(address)),
    "connect_ex": (None, lambda sock, address: sock.connect_ex(address)),
    "connect_ex-timeout": (TIMEOUT, lambda sock, address: sock.connect_ex(address)),
    "SO_ERROR": (0.0, refused_by_so_error),
    "connect_ex-again": (0.0, refused_twice),
    "straight-to-recv": (0.0, refused_and_read),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_connect_is_no_loss(peer: Peer, nowhere: tuple[str, int], name: str) -> None:
    timeout, attempt = REFUSALS[name]
    answers = []
    for made in (socket.socket, SafeSocket):
        with made(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            said = [answer(attempt, sock, nowhere)]
            if isinstance(sock, SafeSocket):
                assert sock.loss is None
                assert sock.fileno() >= 0
            # The same socket may try elsewhere.
            sock.settimeout(TIMEOUT)
            said.append(answer(sock.connect, peer.address))
            if (
                said[-1] is not None
            ):  # Linux: the one after a refusal in the background only clears it.
                said.append(answer(sock.connect, peer.address))
            end = peer.accept()
            end.fin()
            said.append(answer(sock.recv, SIZE))
        answers.append(said)
    assert answers[0] == answers[1]
    assert answers[1][-1] == b""
    loss = governed(sock).loss
    assert loss is not None
    assert loss.peer == peer.address


def test_a_refused_create_connection_leaves_nothing(nowhere: tuple[str, int]) -> None:
    before = kernel.descriptors()
    with pytest.raises(ConnectionRefusedError):
        safesock.create_connection(nowhere, TIMEOUT)
    assert kernel.left_open(before) == []


# repr -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_loss", "after"),
    [("close", "fd=-1"), ("release", "state=CLOSE,"), ("keep", "state=CLOSE_WAIT,")],
)
def test_repr_shows_the_live_state(connect: Connect, on_loss: str, after: str) -> None:
    sock, end = connect(policy_of(on_loss))
    assert f"fd={sock.fileno()}" in repr(sock)
    assert "state=ESTABLISHED" in repr(sock)
    assert "close=Graceful()" in repr(sock)
    lose(sock, end, "FIN")
    assert "state=CLOSE_WAIT" in repr(sock)
    assert "lost" not in repr(sock)
    assert sock.recv(1) == b""
    assert "lost by FIN" in repr(sock)
    kernel.wait_until(lambda: after in repr(sock), f"{after} in {sock!r}")
    sock.close()
    assert "[closed]" in repr(sock)
    assert "state=" not in repr(sock)
    assert "lost by FIN" in repr(sock)


def test_repr_works_before_the_constructor() -> None:
    assert "fd=-1" in repr(SafeSocket.__new__(SafeSocket))


def test_repr_shows_our_own_half_close(connect: Connect) -> None:
    sock, _ = connect(policy_of("close"))
    sock.shutdown(socket.SHUT_WR)
    kernel.wait_until(lambda: "state=FIN_WAIT2" in repr(sock))
