"""Transports: protocols find what asyncio's own give them, and connections end by their policy."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import kernel
import pytest
from loops import LOOPS, Loop
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd
from tls_peer import NAME, Certificates, TlsPeer

import safesock.asyncio
from safesock import Abort, Cause, Drain, Graceful, Linger, LocalPortBusyError, Policy
from safesock.asyncio import create_connection, wrap_transport

pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


@pytest.fixture(autouse=True, scope="module")
def the_watcher_runs() -> None:
    """Its descriptors are opened once and for all, and so are uvloop's: they are none that a test
    leaves."""
    with Peer() as one:
        safesock.create_connection(one.address).close()
    for name in LOOPS:
        Loop(name).run(asyncio.sleep(0))


class Log:
    """What was called, and with what; data joined."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()
        self.stays = False
        self.within: dict[str, Callable[[], object]] = {}
        self.transport: Any = None

    def note(self, what: Any) -> None:
        if isinstance(what, bytes) and self.calls and isinstance(self.calls[-1], bytes):
            self.calls[-1] += what
        else:
            self.calls.append(what)
        self.changed.set()

    def call(self, name: str) -> None:
        if name in self.within:
            self.within[name]()

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not reached():
                self.changed.clear()
                await self.changed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.note("made")
        self.call("connection_made")

    def eof_received(self) -> bool:
        self.note("eof")
        self.call("eof_received")
        return self.stays

    def pause_writing(self) -> None:
        self.note("pause")

    def resume_writing(self) -> None:
        self.note("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.note(("lost", type(error)))
        self.lost.set_result(None)
        self.call("connection_lost")


class Plain(Log, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self.note(data)
        self.call("data_received")


class Buffered(Log, asyncio.BufferedProtocol):
    def __init__(self) -> None:
        super().__init__()
        self.room = bytearray(1000)

    def get_buffer(self, _: int) -> bytearray:
        self.call("get_buffer")
        return self.room

    def buffer_updated(self, nbytes: int) -> None:
        self.note(bytes(self.room[:nbytes]))
        self.call("data_received")


Kind = type[Plain] | type[Buffered]
kinds = pytest.mark.parametrize("kind", [Plain, Buffered], ids=["Protocol", "BufferedProtocol"])
NONE = ("lost", type(None))


async def connected(
    kind: Any, peer: Peer, policy: Policy | None = None, **options: Any
) -> tuple[Any, Any, PeerEnd]:
    log: Any
    made, log = await create_connection(kind, *peer.address, policy=policy, **options)
    return made, log, await asyncio.to_thread(peer.accept)


def ran(loop: Loop, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop.run(main())


# As asyncio's -----------------------------------------------------------------------------------


@kinds
def test_what_came_before_a_reset_is_given_first(loop: Loop, peer: Peer, kind: Kind) -> None:
    """The loop sees both at once."""

    async def main() -> None:
        transport, log, end = await connected(kind, peer, Policy(watch=False))
        end.sock.sendall(bytes(5000))
        end.rst()
        kernel.wait_until(lambda: kernel.state_of(transport._sock) == "CLOSE")
        async with asyncio.timeout(TIMEOUT):
            await log.lost
        assert log.calls == ["made", bytes(5000), ("lost", ConnectionResetError)]

    ran(loop, main)


@kinds
def test_calls_come_in_order_and_the_end_once(loop: Loop, peer: Peer, kind: Kind) -> None:
    async def main() -> None:
        transport, log, end = await connected(kind, peer)
        assert isinstance(transport, asyncio.Transport)
        assert transport.get_extra_info("peername") == peer.address
        assert transport.get_extra_info("sockname") == end.sock.getpeername()
        assert transport.get_extra_info("socket").fileno() >= 0
        its_own = transport.get_protocol() is log
        assert its_own
        transport.write(b"one ")
        transport.writelines([bytearray(b"two "), memoryview(b"three")])
        assert await asyncio.to_thread(end.read, 13) == b"one two three"
        end.say(b"x" * 5000)
        end.fin()
        await log.lost
        assert log.calls == ["made", b"x" * 5000, "eof", NONE]
        assert transport.is_closing()
        transport.close()
        transport.abort()

    ran(loop, main)


@kinds
@pytest.mark.parametrize("how", ["close", "abort"])
def test_closing_ends_it_once(loop: Loop, peer: Peer, kind: Kind, how: str) -> None:
    async def main() -> None:
        transport, log, end = await connected(kind, peer)
        getattr(transport, how)()
        transport.close()
        await log.lost
        assert log.calls == ["made", NONE]
        ending = EOF if how == "close" else RESET
        assert await asyncio.to_thread(end.read_to_end) == (b"", ending)

    ran(loop, main)


@kinds
def test_a_reset_is_told(loop: Loop, peer: Peer, kind: Kind) -> None:
    async def main() -> None:
        transport, log, end = await connected(kind, peer)
        end.rst()
        await log.lost
        assert log.calls == ["made", ("lost", ConnectionResetError)]
        assert transport.loss is not None
        assert transport.loss.cause is Cause.RST

    ran(loop, main)


@kinds
def test_the_protocol_may_be_another_kind_from_now_on(loop: Loop, peer: Peer, kind: Kind) -> None:
    async def main() -> None:
        transport, log, end = await connected(kind, peer)
        end.say(b"first")
        await log.until(lambda: log.calls[-1] == b"first")
        other: Any = Buffered() if kind is Plain else Plain()
        transport.set_protocol(other)
        end.say(b"second")
        await other.until(lambda: other.calls == [b"second"])
        end.fin()
        await other.lost
        assert other.calls == [b"second", "eof", NONE]
        assert log.calls == ["made", b"first"]

    ran(loop, main)


@kinds
@pytest.mark.parametrize("place", ["data_received", "eof_received", "connection_made"])
def test_closing_within_a_call(loop: Loop, peer: Peer, kind: Kind, place: str) -> None:
    async def main() -> None:
        def make() -> Any:
            log = kind()
            log.within[place] = lambda: log.transport.close()
            return log

        _, log, end = await connected(make, peer)
        if place != "connection_made":
            end.say(b"x")
            end.half_close()
        await log.lost
        assert await asyncio.to_thread(end.read_to_end) == (b"", EOF)
        assert log.calls.count(NONE) == 1

    ran(loop, main)


@kinds
@pytest.mark.parametrize("place", ["data_received", "eof_received"])
def test_a_protocol_that_fails_is_complained_of_and_closed(
    loop: Loop, peer: Peer, kind: Kind, place: str
) -> None:
    async def main() -> None:
        _, log, end = await connected(kind, peer)
        log.within[place] = lambda: 1 / 0
        end.say(b"x")
        end.half_close()
        await log.lost
        assert await asyncio.to_thread(end.read_to_end) == (b"", EOF)
        assert isinstance(log.calls[-1], tuple)
        (complaint,) = loop.complaints
        assert isinstance(complaint["exception"], ZeroDivisionError)
        loop.complaints.clear()

    ran(loop, main)


def test_what_a_failure_cuts_off_does_not_look_complete(loop: Loop) -> None:
    async def main() -> None:
        with Peer(receive_buffer=4096) as peer:
            transport, log, end = await connected(Plain, peer)
            log.within["data_received"] = lambda: 1 / 0
            transport.write(bytes(8_000_000))  # More than the kernel takes.
            end.say(b"x")
            await log.lost
            assert (await asyncio.to_thread(end.read_to_end))[1] == RESET
            assert transport.close_report.reset
            loop.complaints.clear()

    ran(loop, main)


def test_what_a_closed_loop_leaves_unsent_does_not_look_complete() -> None:
    with Peer(receive_buffer=4096) as peer:
        loop = asyncio.SelectorEventLoop()
        made: list[Any] = [
            loop.run_until_complete(create_connection(asyncio.Protocol, *peer.address))[0]
        ]
        made[0].write(bytes(8_000_000))  # More than the kernel takes.
        loop.close()
        with pytest.warns(ResourceWarning):
            made.clear()
        assert peer.accept().read_to_end()[1] == RESET


def test_reading_can_be_paused(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        transport, log, end = await connected(Plain, peer)
        assert transport.is_reading()
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        end.say(b"x")
        await asyncio.to_thread(
            kernel.wait_until, lambda: kernel.unread(transport._sock) == 1, "it has come"
        )
        assert log.calls == ["made"]
        transport.resume_reading()
        transport.resume_reading()
        await log.until(lambda: log.calls == ["made", b"x"])
        transport.close()
        await log.lost

    ran(loop, main)


def test_writing_is_paused_and_resumed_at_the_water_marks(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        transport, log, end = await connected(Plain, peer)
        transport.set_write_buffer_limits(high=100_000, low=10_000)
        assert transport.get_write_buffer_limits() == (10_000, 100_000)
        sent = bytearray()
        block = bytearray(range(250)) * 1000
        while "pause" not in log.calls:
            transport.write(block)
            sent += block
            block[0] = (block[0] + 1) % 256  # What has been written does not change any more.
        assert transport.get_write_buffer_size() > 100_000
        transport.write(memoryview(b"wide").cast("I"))
        sent += b"wide"
        transport.close()
        data, ending = await asyncio.to_thread(end.read_to_end)
        assert (data == sent, ending) == (True, EOF)
        await log.lost
        assert log.calls == ["made", "pause", "resume", NONE]
        assert transport.loss is None

    ran(loop, main)


def test_a_half_close_comes_after_what_was_written(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        transport, log, end = await connected(Plain, peer)
        assert transport.can_write_eof()
        transport.write(bytes(4_000_000))
        transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            transport.write(b"more")
        data, ending = await asyncio.to_thread(end.read_to_end)
        assert (len(data), ending) == (4_000_000, EOF)
        end.say(b"answer")
        end.fin()
        await log.lost
        assert log.calls[-3:] == [b"answer", "eof", NONE]

    ran(loop, main)


@pytest.mark.parametrize("data", ["text", 5, None, [b"x"]], ids=repr)
def test_only_bytes_can_be_written(loop: Loop, peer: Peer, data: Any) -> None:
    async def main() -> None:
        transport, log, _ = await connected(Plain, peer)
        with pytest.raises(TypeError, match="bytes-like"):
            transport.write(data)
        transport.close()
        await log.lost

    ran(loop, main)


# By its policy -----------------------------------------------------------------------------------


def test_keep_leaves_it_half_open(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        transport, log, end = await connected(Plain, peer, Policy(on_loss="keep"))
        log.stays = True
        end.half_close()
        await log.until(lambda: log.calls == ["made", "eof"])
        transport.write(b"still here")
        assert await asyncio.to_thread(end.read, 10) == b"still here"
        assert transport.loss is not None
        transport.close()
        await log.lost
        assert await asyncio.to_thread(end.read_to_end) == (b"", EOF)

    ran(loop, main)


def test_what_is_not_sent_at_the_end_of_file_is_counted(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        transport, log, end = await connected(Plain, peer)
        size = 10_000_000  # More than the kernel takes; the peer reads none of it.
        transport.write(bytes(size))
        assert transport.get_write_buffer_size() > 0
        end.half_close()
        await log.lost
        assert log.calls == ["made", "pause", "eof", NONE]
        assert transport.loss is not None
        assert transport.loss.sent == size
        # What the kernel has, the peer may still get: it is in order, and then comes FIN.
        assert transport.loss.unacknowledged is not None
        assert 0 < transport.loss.unacknowledged <= size
        data, _ = await asyncio.to_thread(end.read_to_end)
        assert len(data) < size

    ran(loop, main)


def test_abort_drops_what_is_not_sent(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        transport, log, end = await connected(Plain, peer, Policy(Abort()))
        transport.write(bytes(10_000_000))
        transport.close()
        await log.lost
        assert (await asyncio.to_thread(end.read_to_end))[1] == RESET
        report = transport.close_report
        assert report is not None
        assert report.reset
        assert report.sent == 10_000_000

    ran(loop, main)


@pytest.mark.parametrize("mode", [Drain(0.2), Linger(1)], ids=repr)
def test_a_close_that_takes_time_does_not_hold_the_loop(loop: Loop, peer: Peer, mode: Any) -> None:
    """The peer neither reads nor closes, so that both wait for as long as they may."""

    async def main() -> None:
        transport, log, end = await connected(Plain, peer, Policy(mode))
        transport.write(bytes(10_000_000))  # More than the kernels take.
        transport.close()
        ticks = 0
        while not log.lost.done():
            await asyncio.sleep(0)
            ticks += 1
        assert ticks > 10
        assert transport.close_report is not None
        assert (await asyncio.to_thread(end.read_to_end))[1] == RESET
        await no_closers()

    ran(loop, main)


def fails() -> asyncio.Protocol:
    raise ZeroDivisionError


async def no_closers() -> None:
    def gone() -> bool:
        return not [one for one in threading.enumerate() if one.name == "safesock-closer"]

    await asyncio.to_thread(kernel.wait_until, gone, "the closing thread has ended")


@pytest.mark.parametrize("mode", [Graceful(), Drain(5), Linger(5)], ids=repr)
def test_what_was_written_arrives(loop: Loop, peer: Peer, mode: Any) -> None:
    async def main() -> None:
        transport, log, end = await connected(Plain, peer, Policy(mode))
        end.say(b"unread")
        transport.pause_reading()
        transport.write(bytes(5_000_000))
        transport.close()
        data, ending = await asyncio.to_thread(end.read_to_end)
        assert (len(data), ending) == (5_000_000, EOF)
        end.fin()
        await log.lost
        assert transport.loss is None
        await no_closers()

    ran(loop, main)


def test_a_fin_is_answered_while_reading_is_paused(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        transport, log, end = await connected(Plain, peer, Policy(grace=0.05))
        transport.pause_reading()
        end.say(b"unread")
        end.half_close()
        assert await asyncio.to_thread(end.read_to_end) == (b"", EOF)
        assert log.calls == ["made"]
        transport.resume_reading()
        await log.lost
        assert log.calls == ["made", b"unread", "eof", NONE]

    ran(loop, main)


@pytest.mark.parametrize("mode", [Graceful(), Abort()], ids=repr)
def test_one_that_nobody_has_any_more_ends_by_its_policy(loop: Loop, peer: Peer, mode: Any) -> None:
    async def main() -> None:
        transport, log, end = await connected(Plain, peer, Policy(mode))
        transport.pause_reading()  # The loop has it no more.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del transport, log
            gc.collect()
        assert any("unclosed transport" in str(one.message) for one in caught)
        ending = RESET if mode == Abort() else EOF
        assert await asyncio.to_thread(end.read_to_end) == (b"", ending)

    ran(loop, main)


# create_connection --------------------------------------------------------------------------------


def test_a_busy_local_port_is_named(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as holder,
            pytest.raises(LocalPortBusyError) as caught,
        ):
            await create_connection(Plain, *peer.address, local_addr=holder.getsockname())
        assert [one.state for one in caught.value.holders] == ["LISTEN"]

    ran(loop, main)


@pytest.mark.parametrize("delay", [None, 0.0, 5.0])
def test_the_first_address_that_answers_is_taken(loop: Loop, peer: Peer, delay: Any) -> None:
    """localhost is ::1 too, where nobody listens, or a race between the two."""

    async def main() -> None:
        transport, log = await create_connection(
            Plain, "localhost", peer.address[1], happy_eyeballs_delay=delay
        )
        assert transport.get_extra_info("peername") == peer.address
        transport.close()
        await log.lost

    ran(loop, main)


def test_all_errors_are_told(loop: Loop) -> None:
    async def main() -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            with pytest.raises(ExceptionGroup) as caught:
                await create_connection(Plain, *nobody.getsockname(), all_errors=True)
            assert isinstance(caught.value.exceptions[0], ConnectionRefusedError)
            with pytest.raises(ConnectionRefusedError):
                await create_connection(Plain, *nobody.getsockname())

    ran(loop, main)


def test_a_connected_socket_is_taken_over(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        plain = socket.create_connection(peer.address)
        transport, log = await create_connection(Plain, sock=plain, policy=Policy(Abort()))
        end = await asyncio.to_thread(peer.accept)
        assert plain.fileno() == -1
        transport.close()
        await log.lost
        assert await asyncio.to_thread(end.read_to_end) == (b"", RESET)

    ran(loop, main)


def test_a_protocol_that_cannot_be_made_leaves_nothing(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await create_connection(fails, *peer.address)
        end = await asyncio.to_thread(peer.accept)
        assert await asyncio.to_thread(end.read_to_end) == (b"", EOF)

    ran(loop, main)


WRONG: list[dict[str, Any]] = [
    {},
    {"host": "localhost", "port": 1, "sock": object()},
    {"host": "localhost", "port": 1, "server_hostname": "x"},
    {"port": 1, "ssl": True},
    {"host": "localhost", "port": 1, "ssl_handshake_timeout": 1},
    {"host": "localhost", "port": 1, "ssl_shutdown_timeout": 1},
]


@pytest.mark.parametrize("options", WRONG, ids=range(len(WRONG)))
def test_wrong_arguments_raise_what_they_raise_in_asyncio(options: dict[str, Any]) -> None:
    async def main() -> None:
        messages = []
        for create in (asyncio.get_running_loop().create_connection, create_connection):
            with pytest.raises((ValueError, TypeError)) as caught:
                await create(asyncio.Protocol, **options)
            messages.append((type(caught.value), str(caught.value)))
        assert messages[0] == messages[1] or "sock" in options

    asyncio.run(main())


# wrap_transport --------------------------------------------------------------------------------


@kinds
def test_a_transport_of_the_loop_is_taken_over(loop: Loop, peer: Peer, kind: Any) -> None:
    async def main() -> None:
        old, log = await asyncio.get_running_loop().create_connection(kind, *peer.address)
        end = await asyncio.to_thread(peer.accept)
        end.say(b"before ")
        await log.until(lambda: log.calls == ["made", b"before "])
        new = wrap_transport(old, Policy(Abort()))
        new.write(b"from the new one")
        assert await asyncio.to_thread(end.read, 16) == b"from the new one"
        assert old.is_closing()
        end.say(b"and after")
        await log.until(lambda: log.calls == ["made", b"before and after"])
        new.close()
        await log.lost
        assert log.calls == ["made", b"before and after", NONE]
        assert await asyncio.to_thread(end.read_to_end) == (b"", RESET)

    ran(loop, main)


def test_a_paused_transport_stays_paused(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        old, log = await asyncio.get_running_loop().create_connection(Plain, *peer.address)
        end = await asyncio.to_thread(peer.accept)
        old.pause_reading()
        end.say(b"x")
        new = wrap_transport(old)
        assert not new.is_reading()
        new.resume_reading()
        await log.until(lambda: log.calls == ["made", b"x"])
        new.close()
        await log.lost

    ran(loop, main)


def test_what_cannot_be_taken_over_stays_as_it_was(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=r"asyncio\.Transport"):
            wrap_transport(object())  # type: ignore[arg-type]
        transport, log, end = await connected(Plain, peer)
        with pytest.raises(ValueError, match="is a SafeTransport"):
            wrap_transport(transport)
        transport.close()
        await log.lost
        writer: Any
        _, writer = await asyncio.open_connection(*peer.address)
        await asyncio.to_thread(peer.accept)
        with pytest.raises(TypeError, match="open_connection"):
            wrap_transport(writer.transport)
        writer.close()
        await writer.wait_closed()
        old, log = await asyncio.get_running_loop().create_connection(Plain, *peer.address)
        end = await asyncio.to_thread(peer.accept)
        while not old.get_write_buffer_size():
            old.write(bytes(100_000))
        with pytest.raises(ValueError, match="send what has been written"):
            wrap_transport(old)
        old.abort()
        await log.lost
        with pytest.raises(ValueError, match="closing"):
            wrap_transport(old)
        end.close()

    ran(loop, main)


class Proactor(asyncio.SelectorEventLoop):
    """As on Windows by default: it waits for what has been begun, not for descriptors."""

    add_reader = asyncio.AbstractEventLoop.add_reader


def test_a_loop_that_cannot_wait_for_descriptors_is_refused(peer: Peer) -> None:
    async def main() -> None:
        words = "takes a loop with add_reader: not Proactor; on Windows, asyncio.SelectorEventLoop"
        with pytest.raises(NotImplementedError, match=words):
            await create_connection(asyncio.Protocol, *peer.address)
        with pytest.raises(NotImplementedError, match=words):
            await safesock.asyncio.open_connection(*peer.address)
        with pytest.raises(NotImplementedError, match=words):
            await safesock.asyncio.Connector(peer.address).connect()
        with pytest.raises(NotImplementedError, match=words):
            wrap_transport(asyncio.Transport())

    with asyncio.Runner(loop_factory=Proactor) as runner:
        runner.run(main())


@contextlib.contextmanager
def no_more_threads() -> Iterator[None]:
    """The next one would want more memory for its stack than there is in the world."""
    size = threading.stack_size(1 << 47)
    try:
        with pytest.raises(RuntimeError):
            threading.Thread(target=print).start()
        yield
    finally:
        threading.stack_size(size)


@pytest.mark.parametrize("mode", [Drain(60), Linger(60)], ids=["Drain", "Linger"])
@pytest.mark.parametrize("how", ["close", "fin"])
def test_where_there_is_no_thread_to_wait_in_it_ends_at_once(
    loop: Loop, peer: Peer, mode: safesock.CloseMode, how: str
) -> None:
    async def main() -> None:
        transport, log, end = await connected(Plain, peer, Policy(mode))
        with no_more_threads():
            if how == "fin":
                end.half_close()
            else:
                transport.close()
            assert "lost" not in str(log.calls)  # As ever, it is told by the loop.
            async with asyncio.timeout(TIMEOUT):
                await log.lost
        assert transport.get_extra_info("socket").fileno() == -1
        assert end.read_to_end() == (b"", EOF)
        assert log.calls[-1] == NONE

    ran(loop, main)


def test_tls_loses_nothing_when_reading_goes_on_just_before_the_end_is_told(
    loop: Loop, certificates: Certificates
) -> None:
    """The end has come while reading was paused, and the protocol is to be told of it soon."""

    async def main() -> None:
        with TlsPeer(certificates.server()) as peer:
            shaking = peer.begin(peer.accept_and_shake)
            context = certificates.client()
            transport, log = await create_connection(
                Plain, *peer.address, ssl=context, server_hostname=NAME
            )
            end = await asyncio.wrap_future(shaking)
            transport.pause_reading()
            end.say(b"unread")
            end.fin()
            async with asyncio.timeout(TIMEOUT):
                while transport.close_report is None:
                    await asyncio.sleep(0)
                transport.resume_reading()
                await log.lost
            assert log.calls == ["made", b"unread", "eof", NONE]

    ran(loop, main)


def test_what_tls_cuts_off_when_its_shutdown_takes_too_long_does_not_look_complete(
    loop: Loop, certificates: Certificates
) -> None:
    async def main() -> None:
        with TlsPeer(certificates.server()) as peer:
            shaking = peer.begin(peer.accept_and_shake)
            how: Any = {"ssl": certificates.client(), "ssl_shutdown_timeout": 0.05}
            transport, log = await create_connection(
                Plain, *peer.address, server_hostname=NAME, **how
            )
            end = await asyncio.wrap_future(shaking)
            transport.write(bytes(32_000_000))  # More than the kernel takes.
            transport.close()
            async with asyncio.timeout(TIMEOUT):
                await log.lost
            assert (await asyncio.to_thread(end.read_to_end))[1] == RESET
            assert transport.close_report is not None
            assert transport.close_report.reset

    ran(loop, main)


@pytest.mark.parametrize("mode", [Graceful(), Abort()], ids=["Graceful", "Abort"])
def test_what_was_not_sent_when_the_connection_was_released_is_counted(
    loop: Loop, mode: safesock.CloseMode
) -> None:
    size = 8_000_000  # More than the kernel takes.

    async def main() -> None:
        with Peer(receive_buffer=4096) as peer:
            policy = Policy(mode, on_loss="release", watch=False)
            reader, writer = await safesock.asyncio.open_connection(*peer.address, policy=policy)
            writer.write(bytes(size))
            peer.accept().half_close()
            assert await reader.read() == b""
            writer.close()
            async with asyncio.timeout(TIMEOUT):
                await writer.transport._wait_ended()
            report = writer.close_report
            assert report is not None
            assert report.sent == size
            assert report.unacknowledged is not None
            assert 0 < report.unacknowledged < size

    ran(loop, main)
