"""safesock's streams beside those of asyncio, anyio and trio, on the same work in the same run.

Round trips of 64 bytes; lines read one by one; and 64 KiB at a time, received and sent. The server
is a process of its own with blocking sockets, the same for all. The round trips are made on eight
connections at once, by a task for each, and their server asks its sockets again and again instead
of sleeping: so there is always an answer to go on with, and nobody sleeps. With one connection the
kernel's sleeping and waking took most of the time, and whoever was too slow to fall asleep before
the answer came was the quickest.

All is done twice: by a process that is new, and later, when it has once freed a block of some
megabytes. asyncio asks for 256 KiB each time it reads, and glibc gives it fresh pages each time,
until then (M_MMAP_THRESHOLD in mallopt(3)); uvloop frees such blocks itself. All take turns, in a
different order in each round; a figure is the median of the rounds' ratios. What has come is
checked in each round.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.abc
import anyio.streams.buffered
import trio
import uvloop

import safesock.asyncio
from benchmarks.report import Compared, Row
from benchmarks.server import AT_ONCE, BLOCK, LINE, serving

Address = tuple[str, int]
# One round of some work: the seconds that it took, for so many pieces.
Work = Callable[[Address, int], Awaitable[float]]

MESSAGE = bytes(range(64))
# Freed, it changes what malloc does with smaller ones.
BIG = 4 << 20
# The bars, for the works in this order.
WORKS = (
    "round trips of 64 bytes",
    "readline",
    "received, 64 KiB at a time",
    "sent, 64 KiB at a time",
)
BARS: dict[str, tuple[float | None, ...]] = {
    "asyncio": (0.70, 0.60, 0.75, 0.75),
    "anyio": (0.95, None, 1.0, 1.0),
    "trio": (1.0, None, None, None),
}


# asyncio and safesock ---------------------------------------------------------------------------


def over_streams(open_connection: Callable[..., Awaitable[Any]]) -> tuple[Work, ...]:
    async def on_one(streams: Any, count: int) -> None:
        reader, writer = streams
        for _ in range(count):
            writer.write(MESSAGE)
            await writer.drain()
            answer = await reader.readexactly(64)
        assert answer == MESSAGE

    async def round_trips(address: Address, count: int) -> float:
        pairs = [await open_connection(*address) for _ in range(AT_ONCE)]
        begin = time.perf_counter()
        await asyncio.gather(*(on_one(pair, count // AT_ONCE) for pair in pairs))
        seconds = time.perf_counter() - begin
        for _, writer in pairs:
            writer.close()
        return seconds

    async def lines(address: Address, count: int) -> float:
        reader, writer = await open_connection(*address)
        writer.write(b"%8d" % count)
        begin = time.perf_counter()
        for _ in range(count):
            line = await reader.readline()
        seconds = time.perf_counter() - begin
        assert line == LINE
        writer.close()
        return seconds

    async def receive(address: Address, count: int) -> float:
        reader, writer = await open_connection(*address)
        writer.write(b"%8d" % count)
        left = count * len(BLOCK)
        begin = time.perf_counter()
        while left:
            left -= len(await reader.read(len(BLOCK)))
        seconds = time.perf_counter() - begin
        writer.close()
        return seconds

    async def send(address: Address, count: int) -> float:
        reader, writer = await open_connection(*address)
        begin = time.perf_counter()
        writer.write(b"%8d" % count)
        for _ in range(count):
            writer.write(BLOCK)
            await writer.drain()
        assert await reader.readexactly(1) == b"!"
        seconds = time.perf_counter() - begin
        writer.close()
        return seconds

    return round_trips, lines, receive, send


# anyio ------------------------------------------------------------------------------------------


async def anyio_on_one(stream: anyio.abc.SocketStream, count: int) -> None:
    for _ in range(count):
        await stream.send(MESSAGE)
        answer = await stream.receive(64)
        while len(answer) < 64:
            answer += await stream.receive(64 - len(answer))
    assert answer == MESSAGE


async def anyio_round_trips(address: Address, count: int) -> float:
    streams = [await anyio.connect_tcp(*address) for _ in range(AT_ONCE)]
    begin = time.perf_counter()
    async with anyio.create_task_group() as group:
        for stream in streams:
            group.start_soon(anyio_on_one, stream, count // AT_ONCE)
    seconds = time.perf_counter() - begin
    for stream in streams:
        await stream.aclose()
    return seconds


async def anyio_lines(address: Address, count: int) -> float:
    async with await anyio.connect_tcp(*address) as stream:
        buffered = anyio.streams.buffered.BufferedByteReceiveStream(stream)
        await stream.send(b"%8d" % count)
        begin = time.perf_counter()
        for _ in range(count):
            line = await buffered.receive_until(b"\n", 1000)
        seconds = time.perf_counter() - begin
    assert line == LINE[:-1]
    return seconds


async def anyio_receive(address: Address, count: int) -> float:
    async with await anyio.connect_tcp(*address) as stream:
        await stream.send(b"%8d" % count)
        left = count * len(BLOCK)
        begin = time.perf_counter()
        while left:
            left -= len(await stream.receive(len(BLOCK)))
        return time.perf_counter() - begin


async def anyio_send(address: Address, count: int) -> float:
    async with await anyio.connect_tcp(*address) as stream:
        begin = time.perf_counter()
        await stream.send(b"%8d" % count)
        for _ in range(count):
            await stream.send(BLOCK)
        assert await stream.receive(1) == b"!"
        return time.perf_counter() - begin


# trio -------------------------------------------------------------------------------------------


async def trio_on_one(stream: trio.SocketStream, count: int) -> None:
    for _ in range(count):
        await stream.send_all(MESSAGE)
        answer = await stream.receive_some(64)
        while len(answer) < 64:
            answer += await stream.receive_some(64 - len(answer))
    assert answer == MESSAGE


async def trio_round_trips(address: Address, count: int) -> float:
    streams = [await trio.open_tcp_stream(*address) for _ in range(AT_ONCE)]
    begin = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(trio_on_one, stream, count // AT_ONCE)
    seconds = time.perf_counter() - begin
    for stream in streams:
        await stream.aclose()
    return seconds


async def trio_receive(address: Address, count: int) -> float:
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(b"%8d" % count)
        left = count * len(BLOCK)
        begin = time.perf_counter()
        while left:
            left -= len(await stream.receive_some(len(BLOCK)))
        return time.perf_counter() - begin


async def trio_send(address: Address, count: int) -> float:
    async with await trio.open_tcp_stream(*address) as stream:
        begin = time.perf_counter()
        await stream.send_all(b"%8d" % count)
        for _ in range(count):
            await stream.send_all(BLOCK)
        assert await stream.receive_some(1) == b"!"
        return time.perf_counter() - begin


# All of them --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """The works, None for what it has nothing of its own for, and what runs a coroutine."""

    works: tuple[Work | None, ...]
    run: Callable[[Work, Address, int], float]


def _on_asyncio(work: Any, address: Address, count: int) -> float:
    return float(asyncio.run(work(address, count)))


def _on_uvloop(work: Any, address: Address, count: int) -> float:
    return float(uvloop.run(work(address, count)))


def _on_trio(work: Any, address: Address, count: int) -> float:
    return float(trio.run(work, address, count))


_SAFESOCK = over_streams(safesock.asyncio.open_connection)
_ASYNCIO = over_streams(asyncio.open_connection)
_ANYIO = (anyio_round_trips, anyio_lines, anyio_receive, anyio_send)
_TRIO = (trio_round_trips, None, trio_receive, trio_send)
CONTESTANTS = {
    "safesock": Contestant(_SAFESOCK, _on_asyncio),
    "asyncio": Contestant(_ASYNCIO, _on_asyncio),
    "anyio": Contestant(_ANYIO, _on_asyncio),
    "trio": Contestant(_TRIO, _on_trio),
    "safesock on uvloop": Contestant(_SAFESOCK, _on_uvloop),
    "asyncio on uvloop": Contestant(_ASYNCIO, _on_uvloop),
    "anyio on uvloop": Contestant(_ANYIO, _on_uvloop),
}
_MODES = ("spin", "lines", "give", "take")


def rows(quick: bool) -> Iterator[Row]:
    yield from _rows(quick, [one for one in CONTESTANTS if "uvloop" not in one], "", BARS)
    del [bytes(BIG)][0]
    yield from _rows(quick, list(CONTESTANTS), ", later", {})


def _rows(
    quick: bool, names: list[str], when: str, bars: dict[str, tuple[float | None, ...]]
) -> Iterator[Row]:
    sizes = ((5, 400), (3, 20_000), (3, 500), (3, 500))
    if not quick:
        sizes = ((25, 8_000), (7, 1_000_000), (7, 16_384), (7, 16_384))
    for number, (rounds, count) in enumerate(sizes):
        taken: dict[str, list[float]] = {}
        able = [name for name in names if CONTESTANTS[name].works[number] is not None]
        for turn in range(rounds):
            with serving(_MODES[number]) as address:
                for name in able[turn % len(able) :] + able[: turn % len(able)]:
                    one = CONTESTANTS[name]
                    taken.setdefault(name, []).append(one.run(one.works[number], address, count))  # type: ignore[arg-type]
        for name, seconds in taken.items():
            if not name.startswith("safesock"):
                ours = taken["safesock on uvloop" if name.endswith("uvloop") else "safesock"]
                bar = bars[name][number] if name in bars else None
                yield Compared.of(ours, seconds).row(WORKS[number] + when, name, bar, each=count)


if __name__ == "__main__":
    for row in rows(quick=False):
        print(row, flush=True)
