"""Bytes never cross connections: what was sent, read and counted, against what the peer has.

The peer cuts connections wherever it is told to. Both sides write bytes that say where they belong,
the client by call and offset, the peer by connection and offset. A connection begins with a number
that the client gives it (in `on_connect`), as one that is cut at once may be nobody's.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import pytest
import tenacity
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd
from tls_peer import NAME, Certificates

from safesock import (
    Abort,
    Cause,
    CloseReport,
    Connector,
    Drain,
    Graceful,
    Loss,
    Policy,
    Reconnect,
    SafeSocket,
)

HERE = "127.9.8.8"  # A loopback address of our own: nobody else is on its ports.
AT_ONCE = Reconnect(attempts=1000, deadline=TIMEOUT, wait=tenacity.wait_none(), stable_after=1e-9)
CHUNK = 16384
NUMBER = struct.Struct(">I")
# Seconds without progress after which the peer cuts: the client may be waiting for it.
IDLE = 0.02
MOST = 120_000
CERTIFICATES = Certificates()


def marked(owner: int, size: int) -> bytes:
    """Bytes that say whose they are, and where in the whole."""
    words = range(-(-size // 8))
    return struct.pack(f">{2 * len(words)}I", *(n for at in words for n in (owner, at)))[:size]


# The peer ------------------------------------------------------------------------------------

Way = Literal["half-close", "fin", "rst", "close", "notify", "half a record"]
PLAIN_WAYS: list[Way] = ["half-close", "fin", "rst", "close"]
TLS_WAYS: list[Way] = ["fin", "rst", "notify", "half a record"]
IN_ORDER: frozenset[Way] = frozenset({"half-close", "fin", "notify"})


class Cut(NamedTuple):
    """How the peer treats one connection: after so many bytes it ends it."""

    says: int
    reads: int
    way: Way


class Seen(NamedTuple):
    """What the peer knows of a connection: the number of bytes that it said, all that its kernel
    got (with TLS, what it has decrypted), and how it ended, if that was not its own doing."""

    cut: Cut
    said: int
    got: bytes
    ended: str | None


class CuttingPeer:
    """Serves one connection after the other, in a thread of its own."""

    def __init__(self, cuts: list[Cut], context: ssl.SSLContext | None = None) -> None:
        self.peer = Peer(receive_buffer=CHUNK)
        self._seen: dict[int, Seen] = {}
        self._cuts = itertools.cycle(cuts)
        self._context = context
        self._finished = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def finish(self) -> dict[int, Seen]:
        """What it has seen, by the number of the connection, once all have ended."""
        self._finished.set()
        if self._error is None:
            socket.create_connection(self.peer.address, TIMEOUT).close()  # Wakes it.
            self._thread.join(2 * TIMEOUT)
        if self._error is not None:
            raise self._error
        return self._seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # Where it has ended, so has the listener.
            self.peer.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(2 * TIMEOUT)
        self.peer.close()
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while True:
                one = _Serving(self.peer.accept())
                if one.begin(self._context):
                    self._seen[one.number] = one.serve(next(self._cuts))
                elif self._finished.is_set():
                    return
        except BaseException as error:
            self._error = error
            self.peer.listener.close()


class _Serving:
    """One connection of the peer."""

    def __init__(self, end: PeerEnd) -> None:
        self.end = end
        self.sock = end.sock
        self.tls = False
        self.number = 0
        self.said = 0
        self.got = bytearray()
        self.ended: str | None = None

    def begin(self, context: ssl.SSLContext | None) -> bool:
        """Whether there is somebody who says the number of the connection."""
        try:
            if context is not None:
                self.tls = True
                self.sock = context.wrap_socket(self.sock, server_side=True)
                self.end = PeerEnd(self.sock)
            self.got += self.end.read(NUMBER.size)
        except (AssertionError, ConnectionError, ssl.SSLError):
            self.end.close()
            return False
        (self.number,) = NUMBER.unpack(self.got)
        return True

    def serve(self, cut: Cut) -> Seen:
        self.sock.setblocking(False)
        words = marked(self.number, cut.says)
        try:
            while not self.ended and (self.said < cut.says or len(self.got) < cut.reads):
                if not self._read(cut.reads) | self._say(words) and not self._wait(cut):
                    break
            self.sock.settimeout(TIMEOUT)
            if not self.ended:
                self._cut(cut.way)
        except TimeoutError:
            raise
        except OSError:
            # The client has reset it: also where there is nothing left to shut down.
            self.ended = RESET
            if not self.tls:
                self.got += self.end.read_to_end()[0]
        self.sock.close()
        return Seen(cut, self.said, bytes(self.got), self.ended)

    def _read(self, most: int) -> bool:
        if len(self.got) >= most:
            return False
        try:
            data = self.sock.recv(min(CHUNK, most - len(self.got)))
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        if not data:
            self.ended = EOF
        self.got += data
        return True

    def _say(self, words: bytes) -> bool:
        if self.said >= len(words):
            return False
        try:
            self.said += self.sock.send(words[self.said : self.said + CHUNK])
        except (BlockingIOError, ssl.SSLWantWriteError):
            return False
        return True

    def _wait(self, cut: Cut) -> bool:
        readers = [self.sock] if len(self.got) < cut.reads else []
        writers = [self.sock] if self.said < cut.says else []
        return any(select.select(readers, writers, [], IDLE))

    def _cut(self, way: Way) -> None:
        if way == "half-close":
            self.end.half_close()
            self._read_to_end()
        elif way == "fin":
            # As close(2), but for what is unread: new data is answered with RST, and not taken.
            self.sock.shutdown(socket.SHUT_RDWR)
            if not self.tls:
                self.got += self.end.read_to_end()[0]
        elif way == "notify":
            assert isinstance(self.sock, ssl.SSLSocket)
            self.sock.setblocking(False)
            with contextlib.suppress(ssl.SSLError):
                self.sock.unwrap()
        elif way == "half a record":
            socket.socket.send(self.sock, b"\x17\x03\x03\x00\x50half")
        elif way == "rst" or self.tls:
            self._reset(unread=False)
        else:
            self._reset(unread=True)

    def _read_to_end(self) -> None:
        data, self.ended = self.end.read_to_end()
        self.got += data

    def _reset(self, *, unread: bool) -> None:
        """RST: by SO_LINGER, or by closing with bytes unread."""
        if not self.tls:
            # So that what it has got is all that it will ever have got.
            stop_receiving(self.sock)
            self.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                data = self.sock.recv(1 << 22, socket.MSG_PEEK)
                self.got += data
                if data and unread:
                    self.sock.close()
                    return
        self.end.rst()


def stop_receiving(sock: socket.socket) -> None:
    """A filter (SO_ATTACH_FILTER) that drops all that comes in, so that nothing is acknowledged."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0), 8)
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    sock.setsockopt(socket.SOL_SOCKET, 26, program)


# The client ------------------------------------------------------------------------------------


class Record:
    """What the client knows of one connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        # All that may have been accepted, in order, and how much has been for certain.
        self.tried = bytearray(NUMBER.pack(number))
        self.accepted = NUMBER.size
        self.read = bytearray()
        self.read_to_end = False
        self.ends: list[Loss | CloseReport] = []


class Client:
    """Reads and writes as it is told, over as many connections as it takes."""

    def __init__(self, address: tuple[str, int], way: str, **options: Any) -> None:
        self.connector = Connector(
            address, reconnect=AT_ONCE, on_connect=self._say_number, **options
        )
        self.records: list[Record] = []
        self._numbers = itertools.count(1)
        # Of the connection that was made last.
        self.record = Record(0)
        self._way = way
        self._turns = iter(self.connector)
        self._calls = 0
        self._sock = self._next()

    def do(self, action: str, size: int) -> None:
        if action == "next":
            if self._way != "socket":
                self._go_on()
            return
        lost = self._sock.fileno() < 0
        if lost and self._way != "socket":
            self._check_silence()
            self._go_on()
            lost = False
        before = self.record
        getattr(self, f"_{action}")(size)
        assert (self.record is not before) is lost, "it dials after a loss, and only then"
        if lost:
            self.records.append(self.record)
        if self._sock.fileno() < 0:
            assert self._sock.loss is not None
            self.record.ends.append(self._sock.loss)

    def finish(self) -> None:
        self._sock.close()
        self._note_end(self._sock, self.record)
        self.connector.close()
        assert list(self._turns) == []

    def _say_number(self, sock: SafeSocket) -> None:
        record = Record(next(self._numbers))
        sock.sendall(record.tried)
        sock.settimeout(TIMEOUT)
        self.record = record

    def _next(self) -> SafeSocket:
        if self._way == "socket":
            sock = self.connector.socket()
        elif self._way == "connect":
            sock = self.connector.connect()
        else:
            sock = next(self._turns)
        self.records.append(self.record)
        return sock

    def _go_on(self) -> None:
        """The next connection, whether this one is lost or not."""
        sock, record = self._sock, self.record
        self._sock = self._next()
        assert sock.fileno() == -1
        self._note_end(sock, record)

    def _note_end(self, sock: SafeSocket, record: Record) -> None:
        record.ends += [one for one in (sock.loss, sock.close_report) if one]

    def _check_silence(self) -> None:
        assert self._sock.recv(100) == b""
        with pytest.raises(BrokenPipeError):
            self._sock.send(b"into nothing")

    def _chunk(self, size: int) -> bytes:
        self._calls += 1
        return marked(self._calls, size)

    def _send(self, size: int) -> None:
        self._write(self._chunk(size), lambda data: self._sock.send(data))

    def _sendmsg(self, size: int) -> None:
        data = self._chunk(size)
        self._write(data, lambda data: self._sock.sendmsg([data[:7], data[7:]]))

    def _sendall(self, size: int) -> None:
        def sendall(data: bytes) -> int:
            self._sock.sendall(data)
            return len(data)

        self._write(self._chunk(size), sendall)

    def _file_write(self, size: int) -> None:
        def write(data: bytes) -> int:
            with contextlib.ExitStack() as stack:
                file = self._sock.makefile("wb")
                stack.callback(quietly, file.close)
                file.write(data)
                file.flush()
            return len(data)

        self._write(self._chunk(size), write)

    def _write(self, data: bytes, call: Callable[[bytes], int]) -> None:
        try:
            count = call(data)
        except (ConnectionError, ssl.SSLError):
            self.record.tried += data
            assert self._sock.fileno() == -1
        else:
            self.record.tried += data[:count]
            self.record.accepted += count

    def _recv(self, size: int) -> None:
        self._take(lambda: self._sock.recv(size), size)

    def _recv_into(self, size: int) -> None:
        def recv_into() -> bytes:
            buffer = bytearray(size)
            return bytes(buffer[: self._sock.recv_into(buffer)])

        self._take(recv_into, size)

    def _file_read(self, size: int) -> None:
        def read() -> bytes:
            with self._sock.makefile("rb", 0) as file:
                return file.read(size) or b""

        self._take(read, size)

    def _file_read_all(self, _: int) -> None:
        def read() -> bytes:
            with self._sock.makefile("rb") as file:
                return file.read()

        self._take(read, MOST)
        assert self._sock.fileno() == -1

    def _take(self, call: Callable[[], bytes], size: int) -> None:
        try:
            data = call()
        except (ConnectionError, ssl.SSLError):
            assert self._sock.fileno() == -1
        else:
            assert len(data) <= size
            self.record.read += data
            self.record.read_to_end = self._sock.fileno() == -1


def quietly(call: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        call()


# Both, compared ------------------------------------------------------------------------------


def check(record: Record, seen: Seen, policy: Policy, *, tls: bool) -> None:
    """What this connection's two sides know agrees."""
    said = marked(record.number, seen.said)
    assert said.startswith(record.read)
    assert record.ends
    lost_by_fin = record.ends[0].cause is Cause.FIN
    if record.read_to_end and lost_by_fin and seen.cut.way in IN_ORDER:
        assert record.read == said
    assert record.tried.startswith(seen.got)
    if tls:
        return  # The counts are of the wire.
    for end in record.ends:
        assert end.sent is not None
        assert end.unacknowledged is not None
        assert record.accepted <= end.sent <= len(record.tried)
        # What the peer's kernel did not get has not been acknowledged.
        assert end.sent - end.unacknowledged <= len(seen.got) <= end.sent
        if seen.ended == EOF:
            assert len(seen.got) == end.sent
    if seen.cut.way == "half-close" and lost_by_fin and not isinstance(policy.close, Abort):
        assert seen.ended == EOF


class Case(NamedTuple):
    """One run."""

    way: str
    policy: Policy
    cuts: list[Cut]
    actions: list[tuple[str, int]]
    one_port: bool = False


def free_address() -> tuple[str, int]:
    with socket.socket() as sock:
        sock.bind((HERE, 0))
        host, port = sock.getsockname()
        return host, port


def run(case: Case, tls: Certificates | None = None) -> None:
    policy = case.policy
    options: dict[str, Any] = {}
    if tls:
        options |= {"ssl_context": tls.client(), "server_hostname": NAME}
    if case.one_port:
        # What others leave undelivered may hold the port for long.
        policy = Policy(Abort(), watch=policy.watch, grace=policy.grace)
        options["local_address"] = free_address()
    with CuttingPeer(case.cuts, tls.server() if tls else None) as peer:
        client = Client(peer.peer.address, case.way, policy=policy, **options)
        try:
            for action in case.actions:
                client.do(*action)
        finally:
            client.finish()
        seen = peer.finish()
    for record in client.records:
        # A reset may be all that the peer has seen of a handshake.
        if not tls or record.number in seen:
            check(record, seen[record.number], policy, tls=tls is not None)


# The choices ------------------------------------------------------------------------------------

READS = ["recv", "recv_into", "file_read", "file_read_all"]
ACTIONS = ["send", "sendall", "file_write", "next", *READS]
sizes = st.one_of(st.integers(1, 100), st.sampled_from([1000, 8192, 8193, 65536, MOST]))
ways = st.sampled_from(["socket", "connect", "iterate"])
policies = st.builds(
    Policy,
    close=st.sampled_from([Graceful(), Abort(), Drain(0.05)]),
    watch=st.booleans(),
    grace=st.just(0.0),
)
byte_points = st.one_of(st.just(0), st.integers(0, 300), st.integers(0, MOST))


def actions_of(names: list[str]) -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(st.tuples(st.sampled_from(names), sizes), min_size=10, max_size=30)


def cuts_by(ways: list[Way]) -> st.SearchStrategy[list[Cut]]:
    cut = st.builds(Cut, says=byte_points, reads=byte_points, way=st.sampled_from(ways))
    return st.lists(cut, min_size=1, max_size=5)


def runs(count: int, **choices: Any) -> settings:
    # What happens is up to two kernels' ends as well: there is nothing to be had from shrinking.
    phases = (Phase.explicit, Phase.generate)
    return settings(
        max_examples=count,
        phases=phases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **choices,
    )


plain_cases = st.builds(
    Case, ways, policies, cuts_by(PLAIN_WAYS), actions_of([*ACTIONS, "sendmsg"]), st.booleans()
)
tls_cases = st.builds(Case, ways, policies, cuts_by(TLS_WAYS), actions_of(ACTIONS))


@runs(30, derandomize=True)
@given(case=plain_cases)
def test_no_byte_is_sent_again_or_crosses_connections(case: Case) -> None:
    run(case)


@runs(15, derandomize=True)
@given(case=tls_cases)
def test_no_byte_is_sent_again_or_crosses_connections_with_tls(case: Case) -> None:
    run(case, CERTIFICATES)


@pytest.mark.campaign
@runs(100)
@given(case=plain_cases)
def test_no_byte_is_sent_again_or_crosses_connections_at_length(case: Case) -> None:
    run(case)


@pytest.mark.campaign
@runs(40)
@given(case=tls_cases)
def test_no_byte_is_sent_again_or_crosses_connections_with_tls_at_length(case: Case) -> None:
    run(case, CERTIFICATES)
