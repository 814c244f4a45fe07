"""Streams of event loops, which speak Redis' own protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from clients.uses import HOST, Uses, Where, client, told_by

_PING = b"PING\r\n"


@client("asyncio")
async def asyncio_streams(where: Where) -> AsyncIterator[Uses]:
    made = [
        await asyncio.open_connection(*where.address, ssl=where.context) for _ in range(where.count)
    ]

    async def ping(one: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> object:
        reader, writer = one
        writer.write(_PING)
        await writer.drain()
        return await reader.readline()

    while True:
        yield [await told_by(ping, one) for one in made]


@client("anyio")
async def anyio_streams(where: Where) -> AsyncIterator[Uses]:
    import anyio

    made: list[Any] = []
    for _ in range(where.count):
        if where.context:
            stream: Any = await anyio.connect_tcp(HOST, where.port, ssl_context=where.context)
        else:
            stream = await anyio.connect_tcp(HOST, where.port)
        made.append(stream)

    async def ping(one: Any) -> object:
        await one.send(_PING)
        return await one.receive(100)

    while True:
        yield [await told_by(ping, one) for one in made]


@client("trio", trio=True)
async def trio_streams(where: Where) -> AsyncIterator[Uses]:
    import trio

    made: list[Any] = []
    for _ in range(where.count):
        stream: Any = await trio.open_tcp_stream(*where.address)
        if where.context:
            stream = trio.SSLStream(stream, where.context, server_hostname=HOST)
        made.append(stream)

    async def ping(one: Any) -> object:
        await one.send_all(_PING)
        return await one.receive_some(100)

    while True:
        yield [await told_by(ping, one) for one in made]
