"""A connected `SafeSocket`, made without blocking the loop: names, addresses, connect(2)."""

from __future__ import annotations

import asyncio
import functools
import socket
from asyncio import base_events, staggered

from safesock import _kernel
from safesock._attempt import refuse_itself
from safesock._open import connect_from, name_the_holder
from safesock._policy import Graceful, seconds_of
from safesock._resolve import check_port, numeric
from safesock._socket import SafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, TypeAlias

    from safesock._policy import Policy
    from safesock._resolve import Resolved

    Local: TypeAlias = tuple[int | None, tuple[Any, ...]]


async def addresses(address: tuple[Any, ...], **hints: Any) -> list[Resolved]:
    """The TCP addresses of *address*, a pair of host and port. Raises socket.gaierror."""
    check_port(address[1])
    found = numeric(address, **hints)
    if not found:
        loop = asyncio.get_running_loop()
        answer = await loop.getaddrinfo(*address[:2], type=socket.SOCK_STREAM, **hints)
        found = [((family, kind, proto), where) for family, kind, proto, _, where in answer]
    return found


async def connect_to_one_of(
    found: list[Resolved],
    local: list[Local],
    policy: Policy,
    *,
    delay: float | None,
    interleave: int | None,
    all_errors: bool,
) -> SafeSocket:
    """The first that can be had: in turn, or, with a *delay* (RFC 8305), in a race.

    Not in a race over one fixed port: the one would hold it when the other wants it.
    """
    if delay is not None and interleave is None:
        interleave = 1
    if interleave:
        flat = [(*made, "", where) for made, where in found]
        found = [(one[:3], one[4]) for one in base_events._interleave_addrinfos(flat, interleave)]  # type: ignore[attr-defined]
    attempts = _Attempts(local, policy)
    try:
        if delay is None or any(where[1] for _, where in local):
            for made, sockaddr in found:
                if await attempts.succeeds(made, sockaddr):
                    break
        else:
            calls = [functools.partial(attempts.or_raise, *one) for one in found]
            await staggered.staggered_race(calls, delay)
        return attempts.result(all_errors)
    except BaseException:
        attempts.close()
        raise


class _Attempts:
    def __init__(self, local: list[Local], policy: Policy) -> None:
        self._local = local
        self._policy = policy
        self._made: SafeSocket | None = None
        self._errors: list[OSError] = []

    async def succeeds(self, made: tuple[int, int, int], sockaddr: Any) -> bool:
        try:
            await self.or_raise(made, sockaddr)
        except OSError:
            return False
        return True

    async def or_raise(self, made: tuple[int, int, int], sockaddr: Any) -> None:
        try:
            sock = await self._connect(made, sockaddr)
        except OSError as error:
            self._errors.append(error)
            raise
        if self._made is None:
            self._made = sock
        else:
            give_up(sock)  # The second in a race.

    async def _connect(self, made: tuple[int, int, int], sockaddr: Any) -> SafeSocket:
        if not self._local:
            return await connect(made, sockaddr, None, self._policy)
        failed = OSError(f"no local address of the family of {sockaddr!r}")
        for family, local in self._local:
            if family in (None, made[0]):
                try:
                    return await connect(made, sockaddr, local, self._policy)
                except OSError as error:
                    failed = error
        try:
            raise failed
        finally:
            del failed  # Its traceback holds this frame: a reference cycle.

    def result(self, all_errors: bool) -> SafeSocket:
        """Raises as asyncio does where there is more than one error."""
        if self._made is not None:
            return self._made
        errors, self._errors = self._errors, []
        try:
            if all_errors:
                raise ExceptionGroup("create_connection failed", errors)
            if len({str(error) for error in errors}) == 1:
                raise errors[0]
            told = ", ".join(map(str, errors))
            raise OSError(f"Multiple exceptions: {told}")
        finally:
            del errors  # Their tracebacks hold this frame: a reference cycle.

    def close(self) -> None:
        if self._made is not None:
            give_up(self._made)


def running_loop() -> asyncio.AbstractEventLoop:
    """The running loop. Raises NotImplementedError for one that cannot wait for descriptors."""
    loop = asyncio.get_running_loop()
    if type(loop).add_reader is asyncio.AbstractEventLoop.add_reader:
        raise NotImplementedError(
            f"safesock.asyncio takes a loop with add_reader: not {type(loop).__name__}; on Windows,"
            " asyncio.SelectorEventLoop"
        )
    return loop


async def _writable(sock: SafeSocket) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    fd = sock.fileno()
    loop.add_writer(fd, wake, done)
    try:
        await done
    finally:
        loop.remove_writer(fd)


async def connect(
    made: tuple[int, int, int],
    sockaddr: Any,
    local: tuple[Any, ...] | None,
    policy: Policy,
    previous: int | None = None,
    writable: Callable[[SafeSocket], Awaitable[None]] = _writable,
) -> SafeSocket:
    """bind(2) to *local*, and connect(2), for which *writable* waits. Nothing is left open when
    this fails, or is cancelled. *previous*: the number of the connection that it comes back from.
    """
    sock = SafeSocket(*made, policy=policy)
    try:
        sock.setblocking(False)
        sock._prepare(previous)
        try:
            connect_from(sock, local, sockaddr)
        except (BlockingIOError, InterruptedError):
            await writable(sock)
            try:
                number = sock.getsockopt(*_kernel.ERROR)
                if number:
                    raise OSError(number, f"Connect call failed {sockaddr}") from None
            except OSError as error:
                name_the_holder(error, sock, "connect", local, sockaddr)
                raise
        refuse_itself(sock)
    except BaseException:
        give_up(sock)
        raise
    return sock


def give_up(sock: SafeSocket) -> None:
    """Closes what nothing has been sent over: there is nothing that the loop should wait for."""
    if seconds_of(sock.policy.close):
        sock._close_by(Graceful())
    sock.close()


def wake(waiter: asyncio.Future[None]) -> None:
    """Where it still waits."""
    if not waiter.done():
        waiter.set_result(None)
