"""The streams: they take the place of asyncio's, and their connections end properly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
import threading
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import kernel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel import wait_until
from loops import LOOPS, Loop
from peer import EOF, RESET, TIMEOUT, Peer, PeerEnd

from safesock import Abort, Cause, Drain, Graceful, Linger, Policy, create_connection
from safesock._policy import CloseMode
from safesock.asyncio import (
    SafeStreamReader,
    SafeStreamWriter,
    SafeTransport,
    open_connection,
)

MODES = [Graceful(), Drain(10), Linger(10), Abort()]
NEVER = 3600.0  # A grace that does not pass.
OPENERS: list[Callable[..., Any]] = [asyncio.open_connection, open_connection]
HAS_TUPLES = sys.version_info >= (3, 13)

by_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: type(mode).__name__)
pytestmark = pytest.mark.usefixtures("_nothing_is_left")


@pytest.fixture(scope="module")
def _all_that_stays_is_open() -> None:
    """The watcher and uvloop open descriptors once, before those are counted."""
    with Peer() as peer, create_connection(peer.address, TIMEOUT):
        for name in LOOPS:
            Loop(name).run(asyncio.sleep(0))


@pytest.fixture
def _nothing_is_left(_all_that_stays_is_open: None, nothing_is_left_open: None) -> Iterator[None]:
    yield
    assert nothing_is_left_open is None
    wait_until(lambda: not closers(), "the closing threads end")


def closers() -> list[threading.Thread]:
    """The threads in which safesock waits for what would block the loop."""
    return [thread for thread in threading.enumerate() if thread.name == "safesock-closer"]


def seen_by_peer(mode: CloseMode) -> str:
    return RESET if isinstance(mode, Abort) else EOF


async def until(condition: Callable[[], object], what: str) -> None:
    """For what nobody signals: looks again until it is so; the loop goes on meanwhile."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"not within {TIMEOUT} s: {what}"
        await asyncio.sleep(0.002)


def held(reader: asyncio.StreamReader) -> int:
    """The bytes that a reader holds."""
    if isinstance(reader, SafeStreamReader):
        return len(reader._chunk) - reader._pos + len(reader._store)
    return len(reader._buffer)  # type: ignore[attr-defined]


async def answer(call: Awaitable[object]) -> object:
    """What a call gave or raised, to be compared."""
    try:
        return await call
    except asyncio.IncompleteReadError as error:
        return type(error), str(error), error.partial, error.expected
    except asyncio.LimitOverrunError as error:
        return type(error), str(error), error.consumed
    except Exception as error:
        return type(error), str(error)


# The reader, beside asyncio's, fed by hand -------------------------------------------------------


class Flow(asyncio.Transport):
    """Notes whether reading is paused."""

    paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def play(
    kind: type[asyncio.StreamReader], limit: int, steps: list[tuple[Any, ...]], soon: bool
) -> list[object]:
    """All that can be seen of a reader of this *kind* while these steps are taken."""
    loop = asyncio.get_running_loop()
    reader, flow = kind(limit=limit, loop=loop), Flow()
    reader.set_transport(flow)
    seen: list[object] = []
    call: asyncio.Task[object] | None = None
    ended = False
    for name, *arguments in steps:
        if name in ("feed_data", "feed_eof", "set_exception"):
            if ended and name != "set_exception":
                continue
            ended = ended or name == "feed_eof"
            if soon:  # As a transport does: no task runs then.
                loop.call_soon(getattr(reader, name), *arguments)
            else:
                getattr(reader, name)(*arguments)
        elif call is None:
            call = loop.create_task(answer(getattr(reader, name)(*arguments)))
        await settle()
        if call is not None and call.done():
            seen.append((name, call.result()))
            call = None
        seen.append((held(reader), reader.at_eof(), flow.paused, str(reader.exception())))
    if not ended:
        reader.feed_eof()
    if call is not None:
        seen.append(await call)
    seen.append(await answer(reader.read()))
    seen.append((held(reader), reader.at_eof()))
    return seen


chunks = st.lists(st.sampled_from([b"a", b"b", b"\n", b"\r\n", b"ab" * 7, b"a" * 5000]), max_size=4)
separators: st.SearchStrategy[Any] = st.sampled_from([b"\n", b"\r\n", b"ab", b"aab", b"b\r", b""])
if HAS_TUPLES:
    separators |= st.lists(separators, max_size=3).map(tuple)
counts = st.sampled_from([-1, 0, 1, 2, 3, 9, 4095, 4096, 4097, 5001, 9000])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("feed_data"), chunks.map(b"".join)),
        st.tuples(st.just("feed_data"), chunks.map(b"".join)),
        st.tuples(st.just("readline")),
        st.tuples(st.just("__anext__")),
        st.tuples(st.just("readuntil"), separators),
        st.tuples(st.just("readexactly"), counts),
        st.tuples(st.just("read"), counts),
        st.tuples(st.just("feed_eof")),
        st.tuples(st.just("set_exception"), st.just(ConnectionResetError("gone"))),
    ),
    max_size=14,
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([1, 2, 3, 7, 20, 4096, 6000, 2**16]), steps, st.booleans())
def test_any_calls_on_any_chunks_give_what_asyncio_gives(
    limit: int, steps: list[tuple[Any, ...]], soon: bool
) -> None:
    async def main() -> None:
        theirs = await play(asyncio.StreamReader, limit, steps, soon)
        assert await play(SafeStreamReader, limit, steps, soon) == theirs

    asyncio.run(main())


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=12), st.data())
def test_a_cancelled_read_loses_nothing(parts: list[bytes], data: st.DataObject) -> None:
    async def main() -> None:
        reader = SafeStreamReader(limit=16, loop=asyncio.get_running_loop())
        reader.set_transport(Flow())
        for part in parts:
            name, argument = data.draw(
                st.sampled_from([("readexactly", 500), ("readuntil", b"\0\1\2"), ("read", -1)])
            )
            call = asyncio.create_task(getattr(reader, str(name))(argument))
            await settle()
            reader.feed_data(part)
            call.cancel()  # The data and the cancellation come in the same turn.
            with contextlib.suppress(asyncio.CancelledError, asyncio.LimitOverrunError):
                await call
        reader.feed_eof()
        assert await reader.read() == b"".join(parts)

    asyncio.run(main())


def test_a_second_reader_is_a_runtime_error_and_the_first_goes_on(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        async with opened(peer) as (reader, _, end):
            first = asyncio.create_task(reader.readexactly(3))
            await settle()
            for second in (
                reader.read(1),
                reader.read(),
                reader.readline(),
                reader.readexactly(1),
                reader.readuntil(b"c"),
            ):
                with pytest.raises(RuntimeError, match="another coroutine is already waiting"):
                    await second
            end.say(b"abcd")
            assert await first == b"abc"
            assert await reader.readexactly(1) == b"d"

    loop.run(main())


# Both, beside asyncio's, over a connection ------------------------------------------------------


@contextlib.asynccontextmanager
async def opened(
    peer: Peer, policy: Policy | None = None, **options: Any
) -> AsyncIterator[tuple[SafeStreamReader, SafeStreamWriter, PeerEnd]]:
    """The streams of a connection, and its other end."""
    reader, writer = await open_connection(*peer.address, policy=policy, **options)
    try:
        yield reader, writer, peer.accept()
    finally:
        await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    """Closes it; that the connection was lost before is no failure."""
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter, PeerEnd]


def on_both(
    loop: Loop, peer: Peer, body: Callable[..., Coroutine[Any, Any, object]], **options: Any
) -> object:
    """What *body* gives, which must be the same over asyncio's streams and over safesock's."""

    async def over(opener: Callable[..., Any]) -> object:
        reader, writer = await opener(*peer.address, **options)
        end = peer.accept()
        try:
            return await body(reader, writer, end)
        finally:
            await closed(writer)
            end.close()

    theirs, ours = (loop.run(over(opener)) for opener in OPENERS)
    assert ours == theirs
    return ours


READS: dict[str, tuple[Any, ...]] = {
    "read": (("read", 3), ("read", 0), ("read", 100), ("read", 100), ("read", 1)),
    "read_all": (("read",), ("read",), ("read", -1)),
    "readline": (("readline",),) * 5,
    "anext": (("__anext__",),) * 5,
    "readuntil": (("readuntil", b"\r\n"), ("readuntil", b"th"), ("readuntil", b"!")),
    "readexactly": (("readexactly", 0), ("readexactly", 12), ("readexactly", 999), ("read",)),
    "negative": (("readexactly", -1), ("readline",)),
    "no_separator": (("readuntil", b""), ("readline",)),
    "mixed": (("readline",), ("read", 2), ("readexactly", 4), ("readuntil", b"e"), ("readline",)),
    "tuples": (("readuntil", (b"!", b"\n", b"\r\n")), ("readuntil", ()), ("readuntil", (b"i",))),
}
TEXT = [b"one\r\ntwo ", b"and a half\nthr", b"ee\n", b"the end"]


@pytest.mark.parametrize("in_pieces", [False, True], ids=["at_once", "in_pieces"])
@pytest.mark.parametrize("reads", READS.values(), ids=READS)
def test_reading_gives_what_asyncio_gives(
    loop: Loop, peer: Peer, reads: tuple[Any, ...], in_pieces: bool
) -> None:
    async def body(reader: Any, writer: Any, end: PeerEnd) -> object:
        sock = writer.get_extra_info("socket")
        if not in_pieces:
            end.say(b"".join(TEXT))
            await until(lambda: held(reader) == len(b"".join(TEXT)), "it has come")
        pieces = iter(TEXT if in_pieces else [])
        answers = []
        for name, *arguments in reads:
            call = asyncio.ensure_future(answer(getattr(reader, name)(*arguments)))
            await settle()
            while not call.done():  # It wants more: a piece, or the end.
                piece = next(pieces, None)
                if piece is None:
                    end.half_close()
                    break
                end.say(piece)
                await until(lambda: not kernel.unread(sock), "a piece has come")
                await settle()
            answers.append((await call, reader.at_eof()))
        return answers

    on_both(loop, peer, body)


@pytest.mark.parametrize("call", ["readline", "__anext__", "readuntil"])
@pytest.mark.parametrize("size", [10, 11, 12, 20, 21, 300])
@pytest.mark.parametrize("newline", [b"", b"\n", b"\nab\n"], ids=["none", "last", "amid"])
def test_a_limit_that_is_overrun_is_told_as_in_asyncio(
    loop: Loop, peer: Peer, call: str, size: int, newline: bytes
) -> None:
    async def body(reader: Any, _: Any, end: PeerEnd) -> object:
        end.say(b"x" * size + newline)
        end.half_close()
        return [await answer(getattr(reader, call)()) for _ in range(4)]

    first = on_both(loop, peer, body, limit=10)[0]  # type: ignore[index]
    assert (first == b"x" * size + b"\n") == (size == 10 and newline != b"")


def test_lines_are_iterated_to_the_last_which_has_no_end(loop: Loop, peer: Peer) -> None:
    async def body(reader: Any, _: Any, end: PeerEnd) -> object:
        end.say(b"a\nb\n\nc")
        end.half_close()
        return [line async for line in reader]

    assert on_both(loop, peer, body) == [b"a\n", b"b\n", b"\n", b"c"]


def test_a_reset_is_raised_by_every_read_as_in_asyncio(loop: Loop, peer: Peer) -> None:
    async def body(reader: Any, writer: Any, end: PeerEnd) -> object:
        end.rst()
        calls = ("read", 1), ("read",), ("readline",), ("readexactly", 1), ("readuntil", b"x")
        answers = [await answer(getattr(reader, name)(*rest)) for name, *rest in calls]
        answers.append(await answer(writer.drain()))
        answers.append(await answer(writer.wait_closed()))
        return [[answer[0] for answer in answers], type(reader.exception()), writer.is_closing()]  # type: ignore[index]

    given = on_both(loop, peer, body)
    assert given == [[ConnectionResetError] * 7, ConnectionResetError, True]


def test_what_came_before_a_reset_is_not_read_after_it_as_in_asyncio(
    loop: Loop, peer: Peer
) -> None:
    async def body(reader: Any, _: Any, end: PeerEnd) -> object:
        end.say(b"abc")
        await until(lambda: held(reader) == 3, "it has come")
        end.rst()
        await until(lambda: reader.exception() is not None, "the reset has come")
        return [(await answer(reader.read(2)))[0], held(reader)]  # type: ignore[index]

    assert on_both(loop, peer, body) == [ConnectionResetError, 3]


# Writing -----------------------------------------------------------------------------------------


def test_what_is_written_arrives_in_order(loop: Loop, peer: Peer) -> None:
    async def body(_: Any, writer: Any, end: PeerEnd) -> object:
        answers = [writer.can_write_eof(), writer.is_closing()]
        writer.write(b"ab")
        writer.write(bytearray(b"cd"))
        writer.write(memoryview(b"e-f-")[::1])
        writer.writelines([b"gh", bytearray(b"ij"), memoryview(b"kl"), array("B", b"!")])
        writer.writelines(part for part in (b"m", b"", b"n"))
        writer.writelines([])
        writer.write(b"")
        await writer.drain()
        writer.write_eof()
        writer.write_eof()
        answers.append(await asyncio.to_thread(end.read_to_end))
        answers.append(await answer(write(writer.write, b"more")))
        with pytest.raises(RuntimeError, match=r"after write_eof"):
            writer.writelines([b"more"])
        answers.append(writer.is_closing())
        return answers

    given = on_both(loop, peer, body)
    assert given[2] == (b"abcde-f-ghijkl!mn", EOF)  # type: ignore[index]


async def write(call: Callable[..., object], *arguments: object) -> object:
    return call(*arguments)


@pytest.mark.parametrize("data", ["text", 5, None, [1, 2]], ids=repr)
def test_what_is_no_bytes_is_refused_and_nothing_sent(loop: Loop, peer: Peer, data: Any) -> None:
    async def body(_: Any, writer: Any, end: PeerEnd) -> object:
        told = [await answer(write(writer.write, data))]
        with contextlib.suppress(TypeError):
            writer.writelines([b"x", data] if data != [1, 2] else 5)
            told.append("taken")
        writer.write_eof()
        return [told[0][0], told[1:], await asyncio.to_thread(end.read_to_end)]  # type: ignore[index]

    # Over asyncio alone it depends on the version whether what came before is sent.
    async def main() -> None:
        async with opened(peer) as (reader, writer, end):
            assert await body(reader, writer, end) == [TypeError, [], (b"", EOF)]

    loop.run(main())


def test_the_other_half_is_read_after_write_eof(loop: Loop, peer: Peer) -> None:
    async def body(reader: Any, writer: Any, end: PeerEnd) -> object:
        writer.write(b"question")
        writer.write_eof()
        question = await asyncio.to_thread(end.read_to_end)
        end.say(b"answer")
        end.half_close()
        return [question, await reader.read(), reader.at_eof()]

    assert on_both(loop, peer, body) == [(b"question", EOF), b"answer", True]


def test_drain_waits_until_the_peer_reads(loop: Loop) -> None:
    with Peer(receive_buffer=4096) as peer:

        async def body(_: Any, writer: Any, end: PeerEnd) -> object:
            data = bytes(range(256)) * (1 << 14)  # 4 MiB
            writer.write(data)
            drained = asyncio.create_task(writer.drain())
            await settle()
            waited = not drained.done()
            held_back = writer.transport.get_write_buffer_size() > 65536
            reading = asyncio.create_task(asyncio.to_thread(end.read, len(data)))
            await drained
            below = writer.transport.get_write_buffer_size() <= 65536
            return [waited, held_back, below, await reading == data]

        assert on_both(loop, peer, body) == [True] * 4


@pytest.mark.parametrize("call", ["write", "writelines"])
def test_what_its_owner_changes_after_write_is_sent_as_it_was(loop: Loop, call: str) -> None:
    with Peer(receive_buffer=4096) as peer:

        async def main() -> None:
            async with opened(peer) as (_, writer, end):
                data = bytearray(b"x" * (1 << 20))
                writer.write(data) if call == "write" else writer.writelines([data, data])
                count = len(data) * (1 if call == "write" else 2)
                data[:] = b"y" * len(data)
                assert await asyncio.to_thread(end.read, count) == b"x" * count

        loop.run(main())


@pytest.mark.parametrize("name", ["peername", "sockname", "socket", "sslcontext", "nonsense"])
def test_extra_info_is_that_of_asyncio(loop: Loop, peer46: Peer, name: str) -> None:
    async def body(_: Any, writer: Any, end: PeerEnd) -> object:
        info = writer.get_extra_info(name, "default")
        if name == "socket":
            return [info.getpeername() == end.sock.getsockname(), info.type, info.family]
        if name == "sockname":
            return [info == end.sock.getpeername(), type(info)]
        return info

    on_both(loop, peer46, body)


def test_they_are_what_asyncio_gives_by_class(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        async with opened(peer, Policy(close=Abort())) as (reader, writer, _):
            assert isinstance(reader, asyncio.StreamReader)
            assert isinstance(reader, SafeStreamReader)
            assert isinstance(writer, asyncio.StreamWriter)
            assert isinstance(writer.transport, asyncio.Transport)
            assert isinstance(writer.transport, SafeTransport)
            assert writer.policy is writer.transport.policy
            assert writer.policy == Policy(close=Abort())
            assert writer.loss is None
            assert writer.close_report is None

    loop.run(main())


WRONG: dict[str, dict[str, Any]] = {
    "nothing": {},
    "limit 0": {"host": "h", "port": 1, "limit": 0},
    "limit below 0": {"host": "h", "port": 1, "limit": -1},
    "server_hostname without ssl": {"host": "h", "port": 1, "server_hostname": "h"},
    "handshake timeout without ssl": {"host": "h", "port": 1, "ssl_handshake_timeout": 1},
    "shutdown timeout without ssl": {"host": "h", "port": 1, "ssl_shutdown_timeout": 1},
    "ssl without host": {"port": 1, "ssl": True},
    "unknown": {"host": "h", "port": 1, "nonsense": True},
    "a null in the host": {"host": "127.0.0.1\0.example.com", "port": 1},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused_as_in_asyncio(wrong: dict[str, Any]) -> None:
    async def main() -> list[object]:
        return [await answer(opener(**wrong)) for opener in OPENERS]

    theirs, ours = (told[0] for told in asyncio.run(main()))  # type: ignore[index]
    assert issubclass(theirs, (TypeError, ValueError))
    assert ours is theirs


@pytest.mark.parametrize("port", [-1, 65536 + 1])
def test_a_port_that_is_none_is_refused_as_in_asyncio(port: int) -> None:
    """The resolver would take it modulo 65536."""

    async def main() -> list[object]:
        return [await answer(opener("127.0.0.1", port)) for opener in OPENERS]

    theirs, ours = (told[0] for told in asyncio.run(main()))  # type: ignore[index]
    assert theirs is ours is OverflowError


def test_a_refused_connection_is_told_as_in_asyncio() -> None:
    async def main(port: int) -> list[object]:
        return [await answer(opener("127.0.0.1", port)) for opener in OPENERS]

    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        theirs, ours = asyncio.run(main(nobody_listens.getsockname()[1]))
    assert theirs == ours
    assert theirs[0] is ConnectionRefusedError  # type: ignore[index]


def test_host_and_sock_together_are_refused_as_in_asyncio(peer: Peer) -> None:
    async def main() -> list[object]:
        with create_connection(peer.address, TIMEOUT) as sock:
            return [await answer(opener(*peer.address, sock=sock)) for opener in OPENERS]

    theirs, ours = asyncio.run(main())
    assert theirs == ours
    assert theirs[0] is ValueError  # type: ignore[index]


def test_a_policy_that_is_none_is_refused(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=r"takes a safesock\.Policy"):
            await open_connection(*peer.address, policy="abort")  # type: ignore[arg-type]

    loop.run(main())


# The end -----------------------------------------------------------------------------------------

LIMIT = 1000
# More than the reader takes at this limit, in two parts, and less than the kernel holds.
PLENTY = bytes(range(251)) * 160


class Ends:
    """One connection in the kernel's tables, from our side."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.local, self.peer = (writer.get_extra_info(name) for name in ("sockname", "peername"))

    @property
    def state(self) -> str | None:
        return kernel.state(self.local, self.peer)

    def are_ended(self) -> bool:
        """We have closed our side."""
        return self.state not in ("ESTABLISHED", "CLOSE_WAIT")


async def wait_for_the_end(writer: SafeStreamWriter) -> None:
    """Until the descriptor is closed."""
    await until(lambda: writer.close_report is not None, "it is closed")
    await until(lambda: writer.get_extra_info("socket").fileno() == -1, "so is its descriptor")


async def fill(reader: SafeStreamReader, writer: SafeStreamWriter, end: PeerEnd) -> None:
    """The peer says PLENTY, and the reader pauses."""
    half = len(PLENTY) // 2
    end.say(PLENTY[:half])
    sock = writer.get_extra_info("socket")
    await until(lambda: reader._paused, "reading is paused")
    end.say(PLENTY[half:])
    await until(lambda: held(reader) + kernel.unread(sock) == len(PLENTY), "all has come")


@contextlib.asynccontextmanager
async def full_of_unsent(
    peer: Peer, policy: Policy, count: int = 16 << 20, **options: Any
) -> AsyncIterator[tuple[SafeStreamReader, SafeStreamWriter, PeerEnd, asyncio.Task[None]]]:
    """The writer waits in drain, since the peer does not read."""
    async with opened(peer, policy, **options) as (reader, writer, end):
        writer.write(b"x" * count)
        drained = asyncio.create_task(writer.drain())
        await settle()
        assert not drained.done()
        yield reader, writer, end, drained


@by_mode
def test_a_fin_ends_it_by_its_policy_while_nobody_reads(
    loop: Loop, peer: Peer, mode: CloseMode
) -> None:
    async def main() -> None:
        async with opened(peer, Policy(close=mode, grace=NEVER)) as (reader, writer, end):
            ends = Ends(writer)
            writer.write(b"question")
            assert end.read(8) == b"question"
            end.say(b"abc")
            end.half_close()
            assert await asyncio.to_thread(end.read_to_end) == (b"", seen_by_peer(mode))
            await wait_for_the_end(writer)
            assert ends.are_ended()
            loss, report = writer.loss, writer.close_report
            assert loss is not None
            assert report is not None
            for one in (loss, report):
                assert (one.cause, one.error) == (Cause.FIN, None)
                assert (one.local, one.peer) == (ends.local, ends.peer)
                assert (one.sent, one.unacknowledged, one.unread) == (8, 0, 0)
            assert (report.mode, report.reset) == (mode, isinstance(mode, Abort))
            assert writer.is_closing()
            assert await reader.readexactly(3) == b"abc"
            assert await reader.read() == b""
            assert reader.at_eof()
            await writer.wait_closed()
            writer.write(b"more")
            with pytest.raises(ConnectionResetError):
                await writer.drain()
            assert writer.loss is loss

    loop.run(main())


@by_mode
def test_a_reset_ends_it_while_nobody_reads(loop: Loop, peer: Peer, mode: CloseMode) -> None:
    async def main() -> None:
        async with opened(peer, Policy(close=mode, grace=NEVER)) as (reader, writer, end):
            ends = Ends(writer)
            end.rst()
            await wait_for_the_end(writer)
            assert ends.state is None
            assert writer.loss is not None
            assert writer.close_report is not None
            assert writer.loss.cause is writer.close_report.cause is Cause.RST
            assert isinstance(writer.loss.error, ConnectionResetError)
            assert not writer.close_report.reset
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            with pytest.raises(ConnectionResetError):
                await writer.wait_closed()

    loop.run(main())


@by_mode
@pytest.mark.parametrize("has_room", [True, False], ids=["reads_on", "never_reads_again"])
def test_a_fin_behind_a_full_buffer_ends_it_and_what_is_unread_stays(
    loop: Loop, peer: Peer, mode: CloseMode, has_room: bool
) -> None:
    async def main() -> None:
        policy = Policy(close=mode, grace=0.1)
        async with opened(peer, policy, limit=LIMIT) as (reader, writer, end):
            ends = Ends(writer)
            await fill(reader, writer, end)
            end.half_close()
            # The reader does nothing all the while.
            await until(lambda: writer.loss is not None, "the FIN is noticed")
            assert await asyncio.to_thread(end.read_to_end) == (b"", seen_by_peer(mode))
            assert ends.are_ended()
            assert writer.loss is not None
            assert writer.loss.cause is Cause.FIN
            assert writer.loss.unread == len(PLENTY) - held(reader)
            assert writer.close_report is None
            if has_room:
                assert await reader.read() == PLENTY
                assert reader.at_eof()
                await wait_for_the_end(writer)
                await writer.wait_closed()

    loop.run(main())


@pytest.mark.parametrize("size", [10, 10 * LIMIT])
def test_what_came_before_a_reset_is_read_first(loop: Loop, peer: Peer, size: int) -> None:
    """The loop sees both at once."""

    async def main() -> None:
        async with opened(peer, Policy(watch=False)) as (reader, writer, end):
            await asyncio.sleep(0)
            writer.transport.read_size = LIMIT  # type: ignore[attr-defined]
            sock = writer.transport._sock
            end.sock.sendall(bytes(size))
            end.rst()
            wait_until(lambda: kernel.state_of(sock) == "CLOSE")
            assert await reader.readexactly(size) == bytes(size)
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            with pytest.raises(ConnectionResetError):
                await writer.wait_closed()

    loop.run(main())


def test_a_reset_behind_a_full_buffer_is_noticed_and_told(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        policy = Policy(grace=0.1)
        async with opened(peer, policy, limit=LIMIT) as (reader, writer, end):
            await fill(reader, writer, end)
            end.rst()
            await until(lambda: writer.loss is not None, "the RST is noticed")
            assert writer.loss is not None
            assert writer.loss.cause is Cause.RST
            data = bytearray()
            with pytest.raises(ConnectionResetError):  # noqa: PT012 - which read, it leaves open
                for _ in range(len(PLENTY)):
                    part = await reader.read(100)
                    assert part
                    data += part
            assert PLENTY.startswith(data)
            assert len(data) >= LIMIT
            await wait_for_the_end(writer)

    loop.run(main())


def test_within_the_grace_a_paused_stream_is_left_alone(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        policy = Policy(grace=NEVER)
        async with opened(peer, policy, limit=LIMIT) as (reader, writer, end):
            ends = Ends(writer)
            await fill(reader, writer, end)
            end.half_close()
            await until(lambda: ends.state == "CLOSE_WAIT", "the FIN arrives")
            assert await reader.read() == PLENTY
            await wait_for_the_end(writer)
            assert ends.are_ended()

    loop.run(main())


@by_mode
def test_a_fin_ends_it_while_the_writer_waits_in_drain(loop: Loop, mode: CloseMode) -> None:
    with Peer(receive_buffer=4096) as peer:

        async def main() -> None:
            policy = Policy(close=mode, grace=NEVER)
            async with full_of_unsent(peer, policy) as (reader, writer, end, drained):
                ends = Ends(writer)
                end.half_close()
                reading = asyncio.create_task(asyncio.to_thread(end.read_to_end))
                with pytest.raises(ConnectionResetError):
                    await drained
                data, how = await reading
                await wait_for_the_end(writer)
                assert ends.are_ended()
                assert how == seen_by_peer(mode)
                loss, report = writer.loss, writer.close_report
                assert loss is not None
                assert report is not None
                assert loss.cause is report.cause is Cause.FIN
                assert (loss.sent, loss.unacknowledged) == (report.sent, report.unacknowledged)
                assert loss.sent == 16 << 20
                # Among them those that the kernel never got.
                assert loss.unacknowledged is not None
                if isinstance(mode, Abort):  # An acknowledgement may be on its way.
                    assert 0 < loss.unacknowledged <= 16 << 20
                else:
                    assert (16 << 20) - loss.unacknowledged <= len(data) < 16 << 20
                assert await reader.read() == b""

        loop.run(main())


def test_a_reset_ends_it_while_the_writer_waits_in_drain(loop: Loop) -> None:
    with Peer(receive_buffer=4096) as peer:

        async def main() -> None:
            async with full_of_unsent(peer, Policy(grace=NEVER)) as (_, writer, end, drained):
                end.rst()
                with pytest.raises(ConnectionResetError):
                    await drained
                await wait_for_the_end(writer)
                assert writer.loss is not None
                assert writer.loss.cause is Cause.RST
                assert writer.loss.sent == 16 << 20
                assert 0 < (writer.loss.unacknowledged or 0) <= 16 << 20

        loop.run(main())


# Not Abort: as long as the peer takes nothing, and input is unread, the kernel sends no RST.
@pytest.mark.parametrize("mode", [Graceful(), Drain(1), Linger(1)], ids=repr)
def test_drain_ends_after_the_grace_though_reading_is_paused(loop: Loop, mode: CloseMode) -> None:
    with Peer(receive_buffer=4096) as peer:

        async def main() -> None:
            policy = Policy(close=mode, grace=0.1)
            async with full_of_unsent(peer, policy, limit=LIMIT) as (reader, writer, end, drained):
                await fill(reader, writer, end)
                end.half_close()
                with pytest.raises(ConnectionError):
                    await drained
                reading = asyncio.create_task(asyncio.to_thread(end.read_to_end))
                await wait_for_the_end(writer)
                assert writer.loss is not None
                assert writer.loss.cause is Cause.FIN
                assert (await reading)[1] == seen_by_peer(mode)

        loop.run(main())


# The owner ends it -----------------------------------------------------------------------------


@by_mode
def test_close_ends_it_by_its_policy(loop: Loop, peer: Peer, mode: CloseMode) -> None:
    async def main() -> None:
        async with opened(peer, Policy(close=mode), limit=LIMIT) as (reader, writer, end):
            ends = Ends(writer)
            await fill(reader, writer, end)
            unread = kernel.unread(writer.get_extra_info("socket"))
            assert unread
            writer.write(b"bye")
            writer.close()
            assert writer.is_closing()
            if isinstance(mode, (Graceful, Abort)):
                assert writer.get_extra_info("socket").fileno() == -1
            seen = await asyncio.to_thread(end.read_to_end)
            assert seen[1] == seen_by_peer(mode)
            assert seen[0] == b"bye" or isinstance(mode, Abort)
            end.close()
            await writer.wait_closed()
            assert ends.are_ended()
            assert writer.loss is None
            report = writer.close_report
            assert report is not None
            assert (report.cause, report.mode) == (Cause.CLOSED, mode)
            assert (report.sent, report.unread) == (3, unread)
            assert report.reset == isinstance(mode, Abort)
            writer.close()
            assert writer.close_report is report

    loop.run(main())


@by_mode
def test_close_sends_first_what_was_written(loop: Loop, mode: CloseMode) -> None:
    with Peer(receive_buffer=4096) as peer:

        async def main() -> None:
            policy = Policy(close=mode)
            async with full_of_unsent(peer, policy, 8 << 20) as (_, writer, end, drained):
                writer.close()
                data, how = await asyncio.to_thread(end.read_to_end)
                end.close()
                await answer(drained)
                await writer.wait_closed()
                report = writer.close_report
                assert report is not None
                assert report.sent == 8 << 20
                assert how == seen_by_peer(mode)
                assert report.unacknowledged is not None
                if isinstance(mode, Abort):
                    # An acknowledgement may be on its way.
                    assert 0 < report.unacknowledged <= 8 << 20
                else:
                    assert len(data) == 8 << 20

        loop.run(main())


@by_mode
@pytest.mark.parametrize("is_shared", [False, True], ids=["alone", "duplicated"])
def test_abort_is_a_reset(loop: Loop, mode: CloseMode, is_shared: bool) -> None:
    with Peer(receive_buffer=4096) as peer:

        async def main() -> None:
            policy = Policy(close=mode)
            async with full_of_unsent(peer, policy, 8 << 20) as (_, writer, end, drained):
                ends = Ends(writer)
                sock = writer.get_extra_info("socket")
                other = os.dup(sock.fileno()) if is_shared else None
                try:
                    writer.transport.abort()
                    assert sock.fileno() == -1
                    assert (await asyncio.to_thread(end.read_to_end))[1] == RESET
                    assert ends.state is None
                finally:
                    if other is not None:
                        os.close(other)
                await answer(drained)
                await writer.wait_closed()
                report = writer.close_report
                assert report is not None
                assert (report.mode, report.reset) == (Abort(), True)
                assert report.sent == 8 << 20
                assert report.unacknowledged

        loop.run(main())


@pytest.mark.parametrize("mode", [Linger(60), Drain(60)], ids=["Linger", "Drain"])
@pytest.mark.parametrize("how", ["close", "loss"])
def test_a_close_that_waits_does_not_block_the_loop(loop: Loop, mode: CloseMode, how: str) -> None:
    if how == "loss" and isinstance(mode, Drain):
        how = "end"  # The peer has closed: there is nothing to be waited for.
    with Peer(receive_buffer=4096) as peer:

        async def main() -> None:
            async with opened(peer, Policy(close=mode)) as (_, writer, end):
                data = b"x" * 200_000
                writer.write(data)
                assert not writer.transport.get_write_buffer_size()
                assert kernel.unacknowledged(writer.get_extra_info("socket"))
                if how == "loss":
                    end.half_close()
                    await until(writer.is_closing, "the loss is noticed")
                else:
                    writer.close()
                closing = asyncio.create_task(writer.wait_closed())
                await until(closers, "it waits in a thread")
                for _ in range(10):
                    await settle()
                assert not closing.done()  # The loop goes on, and it waits.
                assert await asyncio.to_thread(end.read_to_end) == (data, EOF)
                end.close()
                await closing
                assert writer.close_report is not None
                assert not writer.close_report.reset

        loop.run(main())


def test_a_drain_that_meets_its_timeout_is_a_reset(loop: Loop, peer: Peer) -> None:
    async def main() -> None:
        async with opened(peer, Policy(close=Drain(0.1))) as (_, writer, end):
            writer.write(b"bye")
            writer.close()
            await writer.wait_closed()  # The peer does not close.
            assert writer.close_report is not None
            assert writer.close_report.reset
            with contextlib.suppress(ConnectionResetError):
                assert end.sock.recv(3) == b"bye"
            assert end.read_to_end()[1] in (RESET, EOF)  # The reset has been told, or is now.
            assert kernel.state_of(end.sock) == "CLOSE"

    loop.run(main())


@pytest.mark.parametrize("mode", [Linger(1), Drain(0.1)], ids=["Linger", "Drain"])
def test_what_cannot_be_sent_in_the_time_of_the_mode_is_dropped_and_counted(
    loop: Loop, mode: CloseMode
) -> None:
    with Peer(receive_buffer=4096) as peer:

        async def main() -> None:
            policy = Policy(close=mode)
            async with full_of_unsent(peer, policy, 8 << 20) as (_, writer, end, drained):
                writer.close()
                await writer.wait_closed()  # The peer does not read.
                await answer(drained)
                assert writer.close_report is not None
                assert writer.close_report.sent == 8 << 20
                assert writer.close_report.unacknowledged
                data, how = await asyncio.to_thread(end.read_to_end)
                assert how == RESET
                assert len(data) <= (8 << 20) - writer.close_report.unacknowledged

        loop.run(main())
