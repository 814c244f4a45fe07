"""The client of coroutines: streams, with TLS and without, the Connector, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import tenacity

import safesock.asyncio
from chaos import stream
from chaos.places import Places, draw_policy
from chaos.tally import Account, BrokenPromiseError, Tally
from safesock import Reconnect

_SECONDS = 0.5
_AT_ONCE = 8


class Asynchronous:
    """Each round has a loop of its own, in which several tasks are at it."""

    def __init__(
        self,
        places: Places,
        rng: random.Random,
        tally: Tally,
        loop: Callable[[], asyncio.AbstractEventLoop],
    ) -> None:
        self._places, self._rng, self._tally = places, rng, tally
        self._loop = loop
        self._context = places.tls()

    def round(
        self, count: int, sky: contextlib.AbstractContextManager[None], go_on: Callable[[], bool]
    ) -> None:
        with asyncio.Runner(loop_factory=self._loop) as runner:
            runner.run(self._round(count, sky, go_on))

    async def _round(
        self, count: int, sky: contextlib.AbstractContextManager[None], go_on: Callable[[], bool]
    ) -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        left = iter(range(count))

        async def some() -> None:
            for _ in left:
                if not go_on():
                    return
                await self._exchange()

        with sky:
            async with asyncio.TaskGroup() as group:
                for _ in range(_AT_ONCE):
                    group.create_task(some())
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks or complaints:
            raise BrokenPromiseError(f"left over: tasks {tasks}, complaints {complaints}")

    async def _exchange(self) -> None:
        kinds = (self._streams, self._streams, self._with_tls, self._in_turns, self._cancelled)
        await self._rng.choice(kinds)()

    async def _streams(self, context: ssl.SSLContext | None = None) -> None:
        peer, address = self._places.draw(self._rng, 0.15)
        policy = draw_policy(self._rng)
        name = None if context is None else self._tally.name()
        account = self._tally.account(name)
        how: dict[str, Any] = {"policy": policy}
        if name is not None:
            how |= {"ssl": context, "server_hostname": stream.hostname(name)}
            how["ssl_shutdown_timeout"] = _SECONDS
        with self._met():
            async with asyncio.timeout(_SECONDS):
                reader, writer = await safesock.asyncio.open_connection(*address, **how)
            port = writer.get_extra_info("sockname")[1]
            try:
                await self._talk(reader, writer, account)
            finally:
                await self._end(writer, account, port, peer)

    async def _with_tls(self) -> None:
        await self._streams(self._context)

    async def _in_turns(self) -> None:
        peer, address = self._places.draw(self._rng, 0.15)
        left = self._rng.randrange(2, 6)
        connector = safesock.asyncio.Connector(
            address,
            policy=draw_policy(self._rng),
            reconnect=Reconnect(4, 2.0, tenacity.wait_random(0, 0.05), stable_after=0.2),
            timeout=_SECONDS,
        )
        with self._met():
            async with connector:
                async for reader, writer in connector:
                    self._tally.counts["turns of a connector"] += 1
                    account = self._tally.account()
                    port = writer.get_extra_info("sockname")[1]
                    try:
                        with self._met():
                            await self._talk(reader, writer, account)
                            connector.confirm()
                    finally:
                        await self._end(writer, account, port, peer)
                    left -= 1
                    if not left:
                        break

    async def _cancelled(self) -> None:
        """Some time amid it."""
        task = asyncio.create_task(self._rng.choice((self._streams, self._with_tls))())
        await asyncio.wait([task], timeout=self._rng.random() * 0.01)
        if task.cancel():
            self._tally.counts["cancelled"] += 1
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _talk(
        self,
        reader: safesock.asyncio.SafeStreamReader,
        writer: safesock.asyncio.SafeStreamWriter,
        account: Account,
    ) -> None:
        rng = self._rng
        async with asyncio.timeout(_SECONDS):
            act = rng.choice((stream.CLOSE, stream.CLOSE, stream.WAIT, stream.HASTE))
            _write(writer, account, stream.header(account.token, account.sizes, act))
            body = stream.up(account.token)[: account.sizes[0]]
            step = rng.choice((100, 5000, 1 << 20))
            for start in range(0, len(body), step):
                if writer.transport.is_closing():
                    return
                _write(writer, account, bytes(body[start : start + step]))
                if rng.random() < 0.5:
                    await writer.drain()
            await writer.drain()
            way = rng.random()
            if way < 0.15:
                return
            upto = account.sizes[1] if way < 0.9 else rng.randrange(1 + account.sizes[1])
            await self._read(reader, account, upto, to_end=way < 0.7)

    async def _read(
        self, reader: asyncio.StreamReader, account: Account, upto: int, *, to_end: bool
    ) -> None:
        if self._rng.random() < 0.3:
            try:
                account.reads(await reader.readexactly(upto))
            except asyncio.IncompleteReadError as error:
                account.reads(error.partial)
        while to_end or account.got < upto:
            data = await reader.read(65536 if to_end else upto - account.got)
            if not data:
                return
            account.reads(data)

    async def _end(
        self,
        writer: safesock.asyncio.SafeStreamWriter,
        account: Account,
        port: int,
        peer: str,
    ) -> None:
        """Closed and waited for, also by a task that has been cancelled."""
        way = self._rng.random()
        aborts = way < 0.1
        if aborts:
            writer.transport.abort()
        else:
            writer.close()
        ended = asyncio.ensure_future(writer.transport._wait_ended())
        cancelled = False
        while not ended.done():
            try:
                async with asyncio.timeout(20):
                    await asyncio.shield(ended)
            except asyncio.CancelledError:
                cancelled = True
            except TimeoutError:
                raise BrokenPromiseError(f"does not end: {writer.transport!r}") from None
        report = writer.close_report
        if report is None:
            raise BrokenPromiseError(f"closed, and no report: {writer.transport!r}")
        # What the reader has ahead of its owner has been read, for the connection.
        self._tally.ended(
            account,
            port,
            writer.loss,
            report,
            writer.policy,
            peer=peer,
            may_lag=True,
            reads_ahead=True,
        )
        if cancelled:
            raise asyncio.CancelledError

    @contextlib.contextmanager
    def _met(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._tally.meets(error)


def _write(writer: Any, account: Account, data: bytes) -> None:
    account.most += len(data)
    writer.write(data)
    if not writer.transport.is_closing():
        account.least = account.most
