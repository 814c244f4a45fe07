"""A program of a user whose mypy is strict: what the names of safesock come to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from typing import assert_type

import safesock
import safesock.asyncio
import safesock.testing

Address = tuple[str, int]


def policy() -> safesock.Policy:
    keepalive = safesock.KeepAlive(idle=30, interval=5, count=3)
    mode: safesock.CloseMode = safesock.Drain(timeout=1.5)
    modes = (safesock.Graceful(), safesock.Linger(seconds=2), safesock.Abort(), mode)
    made = safesock.Policy(close=modes[0], on_loss="keep", keepalive=keepalive, user_timeout=20)
    assert_type(made.close, safesock.CloseMode)
    assert_type(made.grace, float)
    return made


def sockets(address: Address, plain: socket.socket, tls: ssl.SSLSocket) -> None:
    assert_type(safesock.wrap(plain), safesock.SafeSocket)
    assert_type(safesock.wrap(tls), safesock.SafeSSLSocket)
    assert_type(safesock.secure(ssl.create_default_context(), policy()), ssl.SSLContext)
    try:
        sock = safesock.create_connection(address, timeout=5, policy=policy())
    except safesock.LocalPortBusyError as error:
        assert_type(error.holders, tuple[safesock.PortHolder, ...])
        assert_type(error.seconds_left, float | None)
        return
    with sock as same:
        assert_type(same, safesock.SafeSocket)
        assert_type(same.recv(1), bytes)
    assert_type(sock.policy, safesock.Policy)
    assert_type(sock.loss, safesock.Loss | None)
    assert_type(sock.close_report, safesock.CloseReport | None)


def records(loss: safesock.Loss, report: safesock.CloseReport) -> None:
    assert_type(loss.cause, safesock.Cause)
    assert_type(loss.error, BaseException | None)
    assert_type(loss.lifetime, float)
    assert_type(
        (loss.sent, loss.unacknowledged, loss.unread), tuple[int | None, int | None, int | None]
    )
    assert_type((report.mode, report.reset), tuple[safesock.CloseMode, bool])


def connections(address: Address) -> Iterator[safesock.SafeSocket]:
    reconnect = safesock.Reconnect(attempts=3, deadline=10)
    with safesock.Connector(address, reconnect=reconnect, on_connect=print) as connector:
        assert_type(connector.connect(), safesock.SafeSocket)
        for sock in connector:
            assert_type(sock, safesock.SafeSocket)
            yield sock
        life: safesock.SafeSocket = connector.socket()
        assert isinstance(life, safesock.ReconnectingSocket)
        try:
            life.sendall(b"")
        except safesock.ReconnectError as error:
            assert_type(error.attempts, list[BaseException])


def process() -> None:
    with safesock.enforce(policy(), only=bool, sweep=30.0) as enforcement:
        assert_type(enforcement, safesock.Enforcement)
        assert_type(enforcement.report(), safesock.Report)
    found = safesock.audit()
    assert_type(found, safesock.Audit)
    assert_type([one.age for one in found], list[float | None])
    assert_type(found.found(older_than=60), tuple[safesock.HeldConnection, ...])


async def streams(host: str, port: int) -> None:
    reader, writer = await safesock.asyncio.open_connection(host, port, policy=policy())
    assert_type(reader, safesock.asyncio.SafeStreamReader)
    assert_type(writer, safesock.asyncio.SafeStreamWriter)
    assert_type(writer.transport, safesock.asyncio.SafeTransport)
    assert_type((writer.loss, await reader.readline()), tuple[safesock.Loss | None, bytes])
    transport, protocol = await safesock.asyncio.create_connection(asyncio.Protocol, host, port)
    assert_type(transport, safesock.asyncio.SafeTransport)
    assert_type(protocol, asyncio.Protocol)
    assert_type(safesock.asyncio.wrap_transport(transport), safesock.asyncio.SafeTransport)
    async for pair in safesock.asyncio.Connector((host, port), local_address=("", 40000)):
        assert_type(
            pair, tuple[safesock.asyncio.SafeStreamReader, safesock.asyncio.SafeStreamWriter]
        )


def a_test() -> None:
    with safesock.testing.ScriptedPeer() as peer:
        assert_type(peer.address, Address)
        end = peer.accept()
        assert_type(end, safesock.testing.PeerEnd)
        assert_type(end.read_to_end(), tuple[bytes, safesock.testing.End])


async def an_async_test() -> None:
    async with safesock.testing.AsyncScriptedPeer() as peer:
        end = await peer.accept()
        assert_type(end, safesock.testing.AsyncPeerEnd)
        assert_type(await end.read(1), bytes)
