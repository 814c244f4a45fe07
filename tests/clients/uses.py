"""What a use of connections gave, as text that can be compared."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

HOST = "127.0.0.1"
TIMEOUT = 60.0
AT_ONCE = 8
Uses = list[str]

# Name to a generator function; each step of the generator uses all connections once.
CLIENTS: dict[str, Callable[[Where], Any]] = {}
# Those whose coroutines trio runs.
ON_TRIO: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Where:
    """The server, how many connections, and the authority's certificate, for TLS."""

    port: int
    count: int
    ca: str | None
    folder: str
    host: str = HOST

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def context(self) -> ssl.SSLContext | None:
        return self.tls_context if self.ca else None

    @property
    def fresh_context(self) -> ssl.SSLContext | None:
        """One that nobody else has, so that it can be changed."""
        return ssl.create_default_context(cafile=self.ca) if self.ca else None

    @property
    def tls_context(self) -> ssl.SSLContext:
        return _context(self.ca)

    def url(self, scheme: str, path: str = "/") -> str:
        return f"{scheme}{'s' if self.ca else ''}://{self.host}:{self.port}{path}"


@functools.cache
def _context(ca: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)


def client(name: str, *, trio: bool = False) -> Callable[[Any], Any]:
    """The generator function is that client's."""

    def register(function: Any) -> Any:
        CLIENTS[name] = function
        if trio:
            ON_TRIO.add(name)
        return function

    return register


class Made:
    """What a call gave, to go on with: the result, or the error, which is raised then."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._error: Exception | None = None
        try:
            self._result = call()
        except Exception as error:
            self._error = error

    def get(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result


def told(call: Callable[..., object], *arguments: Any) -> str:
    """What the call gave or raised."""
    try:
        return repr(call(*arguments))
    except Exception as error:
        return f"raised {chain(error)}"


async def told_by(call: Callable[..., Awaitable[object]], *arguments: Any) -> str:
    """The same of a coroutine."""
    try:
        return repr(await call(*arguments))
    except Exception as error:
        return f"raised {chain(error)}"


def at_once(count: int, take: Callable[[], Any], use: Callable[[Any], object]) -> Uses:
    """Takes so many connections out of a pool before the first is used, and so given back."""
    taken = [Made(take) for _ in range(count)]
    return [told(lambda one=one: use(one.get())) for one in taken]


def side_by_side(
    call: Callable[[Any], Any], arguments: Iterable[Any], at_once: int = AT_ONCE
) -> list[Any]:
    """In threads, for a server that takes its time with every one of them, but gives up those that
    it does not get to."""
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(call, arguments))


async def in_tasks(
    call: Callable[[Any], Awaitable[Any]], arguments: Iterable[Any], at_once: int = AT_ONCE
) -> list[Any]:
    """The same in tasks."""
    turns = asyncio.Semaphore(at_once)

    async def in_turn(argument: Any) -> Any:
        async with turns:
            return await call(argument)

    return await asyncio.gather(*(in_turn(argument) for argument in arguments))


def chain(error: BaseException | None) -> str:
    """An error, and what it comes of."""
    parts = []
    while error is not None:
        kind = type(error)
        parts.append(f"{kind.__module__}.{kind.__qualname__}({without_numbers(str(error))})")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return " < ".join(parts)


def without_numbers(text: str) -> str:
    """Without the ports, descriptors and addresses in memory, which are others each time. A socket
    is printed with its peer's address until the peer has answered with RST to what it was sent, as
    soon as that may be: without it."""
    text = re.sub(r"0x[0-9a-f]+|\b\d{4,}\b|(?<=\bfd=)\d+", "#", text)
    return re.sub(r", raddr=\([^)]*\)", "", text)


def comparable(log: str) -> str:
    """All that a client has logged, but for the numbers, and for where in the socket's own class a
    traceback ends: when its connection has been ended under it, a socket is of another one."""
    return without_numbers(_OF_SOCKETS.sub("", log))


_OF_SOCKETS = re.compile(
    r'^  File "[^"]*/(?:ssl|socket|safesock/\w+)\.py", line .*\n(?: {4}.*\n)*', re.MULTILINE
)
