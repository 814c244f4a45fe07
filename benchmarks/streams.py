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

import argparse
import asyncio
import importlib.util
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.streams.buffered
import trio
import uvloop

import safesock.asyncio
from benchmarks.report import Row
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
    "safesock, uvloop": Contestant(_SAFESOCK, _on_uvloop),
    "asyncio, uvloop": Contestant(_ASYNCIO, _on_uvloop),
    "anyio, uvloop": Contestant(_ANYIO, _on_uvloop),
}
_MODES = ("spin", "lines", "give", "take")


@dataclass(frozen=True)
class Result:
    """Of one work: by contestant the median ratio of safesock to it on the same loop, and the
    median of the seconds."""

    work: str
    bars: dict[str, float | None]
    ratios: dict[str, float]
    seconds: dict[str, float]


def measured(quick: bool) -> Iterator[Result]:
    yield from _measured(quick, [one for one in CONTESTANTS if "uvloop" not in one], WORKS, BARS)
    del [bytes(BIG)][0]
    later = tuple(f"{work}, later" for work in WORKS)
    yield from _measured(quick, list(CONTESTANTS), later, {})


def _measured(
    quick: bool, names: list[str], works: tuple[str, ...], bars: dict[str, tuple[float | None, ...]]
) -> Iterator[Result]:
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
        ratios = {}
        for name, seconds in taken.items():
            ours = taken["safesock, uvloop" if name.endswith("uvloop") else "safesock"]
            ratios[name] = statistics.median(a / b for a, b in zip(ours, seconds, strict=True))
        medians = {name: statistics.median(each) for name, each in taken.items()}
        yield Result(
            works[number], {name: each[number] for name, each in bars.items()}, ratios, medians
        )


def rows(quick: bool) -> Iterator[Row]:
    for result in measured(quick):
        for name, ratio in result.ratios.items():
            if not name.startswith("safesock"):
                yield Row(f"{result.work}, of {name}", ratio, result.bars.get(name), "x")


def _plot(file: Path, results: list[Result]) -> None:
    matplotlib, figures = (importlib.import_module(f"matplotlib{part}") for part in ("", ".figure"))
    matplotlib.rcParams["svg.hashsalt"] = "streams"  # The same file for the same figures.
    figure = figures.Figure((9, 10), layout="constrained")
    figure.suptitle("The time of the same work; safesock on asyncio's loop is 1")
    panels = figure.subplots(len(results) // 2, 2).T.flat
    for axes, result in zip(panels, results, strict=True):
        names = list(result.seconds)[::-1]
        values = [result.seconds[name] / result.seconds["safesock"] for name in names]
        colours = ["C0" if name.startswith("safesock") else "C7" for name in names]
        axes.barh(names, values, color=colours)
        axes.set_title(result.work)
        axes.axvline(1, color="C0", linewidth=1)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="few rounds: noisy, but it has run")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as .svg or .png")
    arguments = parser.parse_args()
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot takes matplotlib: pip install -e '.[bench]'")
    results = []
    for result in measured(arguments.quick):
        results.append(result)
        for name, ratio in result.ratios.items():
            taken = f"{result.seconds[name]:8.3f} s   x{ratio:.2f}"
            print(f"{result.work:<34} {name:<18} {taken}", flush=True)
    if arguments.plot:
        _plot(arguments.plot, results)


if __name__ == "__main__":
    main()
