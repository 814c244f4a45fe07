"""The peer for tests that are coroutines, on asyncio: the same, and what waits is awaited."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Self, TypeVar

from safesock.testing._acts import End
from safesock.testing._base import BaseEnd, BasePeer
from safesock.testing._peer import READS
from safesock.testing._wait import Steps, Waits, given_up, late

Result = TypeVar("Result")


class _Waiting(Waits):
    """Those of tasks."""

    def __init__(self) -> None:
        # A loop tells of each socket to one task only.
        self.reads, self.writes, self.shakes = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._removals: dict[asyncio.Future[None], Callable[[], object]] = {}

    def prepare(self, sock: socket.socket, timeout: float) -> None:  # noqa: ARG002
        sock.setblocking(False)

    async def run(
        self, steps: Steps[Result], lock: asyncio.Lock, timeout: float, what: str
    ) -> Result:
        """Waits as *steps* ask for it, one after the other for each *lock*. Raises TimeoutError."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "AsyncScriptedPeer is for asyncio: with trio, await ScriptedPeer's calls in threads"
            ) from None
        limit = asyncio.timeout(timeout)
        try:
            async with limit, lock:
                return await self._run(steps)
        except TimeoutError:
            if limit.expired():
                raise late(timeout, what) from None
            raise  # ETIMEDOUT, of the connection itself.
        finally:
            steps.close()

    def give_up(self) -> None:
        for future, remove in list(self._removals.items()):
            remove()
            if not future.done():
                future.set_exception(given_up())
        self._removals.clear()

    async def _run(self, steps: Steps[Result]) -> Result:
        try:
            while True:
                await self._ready(*next(steps))
        except StopIteration as end:
            result: Result = end.value
            return result

    async def _ready(self, sock: socket.socket, write: bool) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        # For a signal of a thread's several tasks may wait, each by a number of its own.
        with sock.dup() if sock.family == socket.AF_UNIX else contextlib.nullcontext(sock) as own:
            number = own.fileno()
            (loop.add_writer if write else loop.add_reader)(number, _tell, future)
            remove = loop.remove_writer if write else loop.remove_reader
            self._removals[future] = lambda: remove(number)
            try:
                await future
            finally:
                self._removals.pop(future, bool)()


def _tell(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class AsyncPeerEnd(BaseEnd):
    """`PeerEnd` with the same names. What may have to wait is a coroutine; what acts at once is a
    plain method. A read that is cancelled loses nothing: the next one gets it."""

    _waits = _Waiting
    _waiting: _Waiting

    async def say(self, data: bytes) -> None:
        """As `PeerEnd.say`."""
        await self._write(self._acts.say(data), READS)

    async def read(self, count: int) -> bytes:
        """As `PeerEnd.read`."""
        return await self._read(self._acts.read(count), f"{count} bytes from the client")

    async def read_until(self, separator: bytes) -> bytes:
        """As `PeerEnd.read_until`."""
        return await self._read(self._acts.read_until(separator), f"{separator!r} from the client")

    async def read_to_end(self) -> tuple[bytes, End]:
        """As `PeerEnd.read_to_end`."""
        return await self._read(self._acts.read_to_end(), "the client's end, by FIN or RST")

    async def goodbye_then_fin(self, data: bytes) -> None:
        """As `PeerEnd.goodbye_then_fin`."""
        await self.say(data)
        self.fin()

    async def handshake(self) -> None:
        """As `PeerEnd.handshake`."""
        steps = self._acts.handshake()
        await self._waiting.run(steps, self._waiting.shakes, self.timeout, "the TLS handshake")

    async def close_notify(self) -> None:
        """As `PeerEnd.close_notify`."""
        what = "the TLS handshake, before close_notify is sent"
        await self._write(self._acts.close_notify(), what)

    async def _read(self, steps: Steps[Result], what: str) -> Result:
        return await self._waiting.run(steps, self._waiting.reads, self.timeout, what)

    async def _write(self, steps: Steps[Result], what: str) -> Result:
        return await self._waiting.run(steps, self._waiting.writes, self.timeout, what)


class AsyncScriptedPeer(BasePeer[AsyncPeerEnd]):
    """`ScriptedPeer` with the same names, in `async with`. `accept` is a coroutine; what acts at
    once, as `refusing` does, is a plain method."""

    _end = AsyncPeerEnd
    _waits = _Waiting
    _waiting: _Waiting

    async def accept(self) -> AsyncPeerEnd:
        """As `ScriptedPeer.accept`."""
        what = f"a connection to {self.address}"
        return await self._waiting.run(self._take(), self._waiting.reads, self.timeout, what)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
