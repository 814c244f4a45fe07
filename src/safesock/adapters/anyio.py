"""anyio's streams with a policy, on asyncio and trio.

    from safesock.adapters.anyio import connect_tcp

    async with await connect_tcp(host, port, policy=policy) as stream:
        await stream.send(b"PING\\r\\n")
        print(await stream.receive())

`connect_tcp` takes what anyio's takes; with `tls`, or an `ssl_context`, it gives anyio's own
`TLSStream`. `stream.extra(anyio.abc.SocketAttribute.raw_socket)` is the `SafeSocket`.

trio takes sockets of no class but `socket.socket`, and asyncio has transports: this stream waits by
`anyio.wait_readable` instead, and so is the same on both. On asyncio that costs more per call than
a transport does.
"""

from __future__ import annotations

import socket

from safesock._extras import brought_by
from safesock._policy import seconds_of
from safesock._resolve import check_port, numeric
from safesock.adapters._policies import for_client
from safesock.asyncio._connect import connect, give_up

with brought_by("anyio"):
    import anyio
    import anyio.abc
    import anyio.lowlevel
    import anyio.to_thread
    from anyio.streams.tls import TLSStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any, Literal, NoReturn, overload

    from anyio.abc import IPAddressType

    from safesock._policy import Policy
    from safesock._resolve import Resolved
    from safesock._socket import SafeSocket

__all__ = ["SocketStream", "connect_tcp"]


class SocketStream(anyio.abc.SocketStream):
    """An `anyio.abc.SocketStream` over a connected, non-blocking `SafeSocket`.

    The exceptions are those of anyio's own. `aclose` ends the connection by its policy, in a thread
    where that waits (`Drain`, `Linger`); a cancellation does not cut that short.
    """

    def __init__(self, sock: SafeSocket) -> None:
        self._sock = sock
        self._is_closed = False
        self._reading = anyio.ResourceGuard("reading from")
        self._writing = anyio.ResourceGuard("writing to")

    @property
    def _raw_socket(self) -> SafeSocket:
        return self._sock

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """recv(2). Raises `anyio.EndOfStream` at the end."""
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        with self._reading:
            await anyio.lowlevel.checkpoint()
            while True:
                try:
                    data = self._sock.recv(max_bytes)
                except BlockingIOError:
                    await anyio.wait_readable(self._sock)
                except OSError as error:
                    self._raise(error)
                else:
                    if data:
                        return data
                    raise anyio.EndOfStream

    async def send(self, item: bytes) -> None:
        """send(2), until all is sent."""
        with self._writing:
            await anyio.lowlevel.checkpoint()
            rest = memoryview(item)
            while rest:
                try:
                    rest = rest[self._sock.send(rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._sock)
                except OSError as error:
                    self._raise(error)

    async def send_eof(self) -> None:
        """shutdown(2) with SHUT_WR."""
        with self._writing:
            await anyio.lowlevel.checkpoint()
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # As anyio's own.

    async def aclose(self) -> None:
        """Ends the connection by its policy. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        anyio.notify_closing(self._sock)
        if seconds_of(self._sock.policy.close):
            with anyio.CancelScope(shield=True):  # Or it would not be closed at all.
                await anyio.to_thread.run_sync(self._sock.close)
        else:
            self._sock.close()
            await anyio.lowlevel.checkpoint()

    def _raise(self, error: OSError) -> NoReturn:
        if self._is_closed:
            raise anyio.ClosedResourceError from None
        raise anyio.BrokenResourceError from error


if TYPE_CHECKING:

    @overload
    async def connect_tcp(
        remote_host: IPAddressType,
        remote_port: int,
        *,
        policy: Policy | None = ...,
        local_host: IPAddressType | None = ...,
        local_port: int | None = ...,
        tls: Literal[False] = ...,
        ssl_context: None = ...,
        tls_standard_compatible: bool = ...,
        tls_hostname: None = ...,
        happy_eyeballs_delay: float = ...,
    ) -> SocketStream: ...

    @overload
    async def connect_tcp(
        remote_host: IPAddressType,
        remote_port: int,
        *,
        policy: Policy | None = ...,
        local_host: IPAddressType | None = ...,
        local_port: int | None = ...,
        tls: bool = ...,
        ssl_context: ssl.SSLContext,
        tls_standard_compatible: bool = ...,
        tls_hostname: str | None = ...,
        happy_eyeballs_delay: float = ...,
    ) -> TLSStream: ...

    @overload
    async def connect_tcp(
        remote_host: IPAddressType,
        remote_port: int,
        *,
        policy: Policy | None = ...,
        local_host: IPAddressType | None = ...,
        local_port: int | None = ...,
        tls: Literal[True],
        ssl_context: ssl.SSLContext | None = ...,
        tls_standard_compatible: bool = ...,
        tls_hostname: str | None = ...,
        happy_eyeballs_delay: float = ...,
    ) -> TLSStream: ...


async def connect_tcp(
    remote_host: IPAddressType,
    remote_port: int,
    *,
    policy: Policy | None = None,
    local_host: IPAddressType | None = None,
    local_port: int | None = None,
    tls: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    tls_standard_compatible: bool = True,
    tls_hostname: str | None = None,
    happy_eyeballs_delay: float = 0.25,
) -> SocketStream | TLSStream:
    """Connects: `anyio.connect_tcp` with a *policy*; None is `Policy(on_loss="release")`.

    The addresses of the name are tried in a race (RFC 8305), each *happy_eyeballs_delay* seconds
    after the one before; over a fixed *local_port*, which takes *local_host*, one after the other.
    Raises OSError where none can be had, and ValueError for on_loss="close".
    """
    chosen = for_client(policy)
    if chosen.nodelay is None:
        chosen = chosen.__replace__(nodelay=True)  # As anyio's own.
    family, local = await _local_address(local_host, local_port)
    found = await _resolved(remote_host, remote_port, family)
    sock = await _Race(found, local, chosen).run(happy_eyeballs_delay)
    stream = SocketStream(sock)
    if not tls and not tls_hostname and ssl_context is None:
        return stream
    try:
        return await TLSStream.wrap(
            stream,
            server_side=False,
            hostname=tls_hostname or str(remote_host),
            ssl_context=ssl_context,
            standard_compatible=tls_standard_compatible,
        )
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


async def _local_address(host: IPAddressType | None, port: int | None) -> tuple[int, Any]:
    """The family that it is of, and what to bind to."""
    if not host:
        return socket.AF_UNSPEC, None
    (family, _, _, _, local), *_ = await anyio.getaddrinfo(str(host), port)
    return family, local


async def _resolved(host: IPAddressType, port: int, family: int) -> list[Resolved]:
    """One of IPv6 first and one of IPv4 second, as anyio does."""
    check_port(port)
    name: Any = host and str(host)
    found = numeric((name, port))
    if not found:
        answer = await anyio.getaddrinfo(name, port, family=family, type=socket.SOCK_STREAM)
        all_of_them = [((family, kind, proto), where) for family, kind, proto, _, where in answer]
        of_each = {one[0][0]: one for one in reversed(all_of_them)}
        found = [of_each[kind] for kind in (socket.AF_INET6, socket.AF_INET) if kind in of_each]
        found += [one for one in all_of_them if one not in found]
    return found


class _Race:
    """One connection to one of some addresses."""

    def __init__(self, found: list[Resolved], local: Any, policy: Policy) -> None:
        self._found, self._local, self._policy = found, local, policy
        self._made: SafeSocket | None = None
        self._errors: list[OSError] = []

    async def run(self, delay: float | None) -> SafeSocket:
        if self._local and self._local[1]:
            delay = None  # One would hold the port when another wants it.
        try:
            async with anyio.create_task_group() as group:
                for made, sockaddr in self._found:
                    done = anyio.Event()
                    group.start_soon(self._try, made, sockaddr, done, group.cancel_scope)
                    with anyio.move_on_after(delay):
                        await done.wait()
        except BaseException:
            if self._made is not None:
                give_up(self._made)
            raise
        if self._made is not None:
            return self._made
        errors, self._errors = self._errors, []
        try:
            group_of = ExceptionGroup("multiple connection attempts failed", errors)
            cause = errors[0] if len(errors) == 1 else group_of
            raise OSError("All connection attempts failed") from cause
        finally:
            del errors  # Their tracebacks hold this frame: a reference cycle.

    async def _try(
        self,
        made: tuple[int, int, int],
        sockaddr: Any,
        done: anyio.Event,
        others: anyio.CancelScope,
    ) -> None:
        try:
            sock = await connect(
                made, sockaddr, self._local, self._policy, writable=anyio.wait_writable
            )
        except OSError as error:
            self._errors.append(error)
        else:
            if self._made is None:
                self._made = sock
                others.cancel()
            else:
                give_up(sock)
        finally:
            done.set()
