"""The same sequences by streams, on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import warnings
from collections.abc import Callable
from typing import Any

import kernel
import sequences
from peer import TIMEOUT
from sequences import CLOSES, LOCAL, SENT, Line, Result, Sequence
from sequences_tls import Contexts, TlsLine
from tls_peer import NAME

import safesock.asyncio
from safesock import CloseMode, Policy

# A loop is for one thread, and a forked child has no use for it.
STREAM = tuple(act for act in LOCAL if act not in ("close in a thread", "fork"))
# With TLS there is no write_eof.
TLS_STREAM = tuple(act for act in STREAM if act != "shutdown")
_TURNS = 6  # Of the loop, until it has done all that it can.


async def connect(listener: socket.socket, policy: Policy | None, mode: CloseMode) -> AsyncLine:
    if policy is None:
        sock: Any = sequences.plain_connection(listener.getsockname(), mode)
        streams: Any = await asyncio.open_connection(sock=sock)
    else:
        streams = await safesock.asyncio.open_connection(*listener.getsockname(), policy=policy)
        sock = streams[1].transport._sock
    return AsyncLine(streams, sock, listener, policy, mode)


class AsyncLine(Line):
    def __init__(self, streams: Any, sock: Any, *arguments: Any) -> None:
        self.reader, self.writer = streams
        self._made = sock
        super().__init__(*arguments)

    def _connect(self, *_: object) -> Any:
        made, self._made = self._made, None
        return made

    async def act_async(self, name: str) -> str:
        """As `act`."""
        if name not in LOCAL:
            is_told = name != "data" and self.is_open and self.connection is not None
            self._far_act(name)
            if is_told:  # By a thread, where the close may take a while.
                await _until(lambda: self.reader._eof or self.reader._exception)
            await _settle()
            return ""
        try:
            return str(await self._local_async(name))
        except (OSError, RuntimeError) as error:  # RuntimeError: to write after write_eof.
            return f"{type(error).__name__} {getattr(error, 'errno', None)}"

    async def _local_async(self, name: str) -> object:
        match name:
            case "send":
                await self._send_async()
            case "recv":
                return await self._read_async()
            case "shutdown":
                self.writer.write_eof()
                await _settle()
            case "close":
                self.writer.close()
                await self.writer.wait_closed()
            case "drop":
                if self.policy is None:
                    self.writer.close()  # asyncio leaves it open for ever.
                self.reader = self.writer = self.sock = None
        await _settle()
        if name in CLOSES and self.far.fileno() >= 0:
            await _until(lambda: kernel.state_of(self.far) not in sequences.PEER_OPEN)
        return None

    async def _send_async(self) -> None:
        ended = self.writer.transport.is_closing() or not self.is_open
        released = self.connection is not None and self.connection.released
        self.writer.write(SENT)
        await self.writer.drain()
        await _settle()
        if ended or released:
            return
        if self.far.fileno() < 0:
            await _until(lambda: self.state() in (None, "CLOSE"))
            await _settle()
        elif self.is_open:
            self.accepted += len(SENT)
            self._waits_for_far(lambda: len(self._read()) >= self.accepted)

    async def _read_async(self) -> object:
        task = asyncio.ensure_future(self.reader.read(64))
        await _settle()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            return "would block"
        return task.result()


class AsyncTlsLine(AsyncLine, TlsLine):
    """Of a handshake that has been made."""

    def __init__(self, far: ssl.SSLSocket, *arguments: Any) -> None:
        self._far = far
        super().__init__(*arguments)

    def _accept(self, _: socket.socket) -> Any:
        return self._far

    def _shake(self) -> None:
        pass


async def connect_tls(
    contexts: Contexts, listener: socket.socket, policy: Policy | None, mode: CloseMode
) -> AsyncLine:
    address, sock = listener.getsockname(), None
    if policy is None:
        sock = sequences.plain_connection(address, mode)
        opening: Any = asyncio.open_connection(
            sock=sock, ssl=contexts.plain, server_hostname=NAME, ssl_shutdown_timeout=0.01
        )
    else:
        opening = safesock.asyncio.open_connection(
            *address,
            policy=policy,
            ssl=contexts.plain,
            server_hostname=NAME,
            ssl_shutdown_timeout=0.01,
        )
    task = asyncio.ensure_future(opening)
    await _until(lambda: select.select([listener], [], [], 0)[0])
    far = contexts.server.wrap_socket(
        listener.accept()[0], server_side=True, do_handshake_on_connect=False
    )
    far.setblocking(False)

    def is_made() -> bool:
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            far.do_handshake()
        return bool(task.done())

    await _until(is_made)
    streams = task.result()
    made = sock or streams[1].transport._sock
    return AsyncTlsLine(far, streams, made, contexts, listener, policy, mode)


async def _settle() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.0005)


async def run(line: AsyncLine, sequence: Sequence) -> Result:
    """As `sequences.run`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            acts = [await line.act_async(act) for act in sequence]
            if line.sock is not None:
                acts.append(await line.act_async("close"))
            if "drop" in sequence:  # Nobody can wait for that, and it may be done by a thread.
                await _until(lambda: kernel.state(*line.ends) not in sequences.HELD)
            return sequences.result(line, acts)
        finally:
            line.finish()
            await _settle()
