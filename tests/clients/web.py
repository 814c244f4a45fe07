"""Clients of HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from clients.uses import HOST, TIMEOUT, Uses, Where, at_once, client, told, told_by


@client("http.client")
def http_client(where: Where) -> Iterator[Uses]:
    import http.client

    def ask(connection: http.client.HTTPConnection) -> object:
        connection.request("GET", "/")
        answer = connection.getresponse()
        return answer.status, answer.read()

    context = where.context
    made: list[http.client.HTTPConnection] = [
        http.client.HTTPSConnection(HOST, where.port, timeout=TIMEOUT, context=context)
        if context
        else http.client.HTTPConnection(HOST, where.port, timeout=TIMEOUT)
        for _ in range(where.count)
    ]
    while True:
        yield [told(ask, one) for one in made]


@client("urllib3")
def urllib3_pool(where: Where) -> Iterator[Uses]:
    import urllib3

    def read(answer: urllib3.BaseHTTPResponse) -> object:
        return answer.status, answer.read()

    with urllib3.PoolManager(maxsize=where.count, ca_certs=where.ca, timeout=TIMEOUT) as pool:
        url = where.url("http")
        while True:
            yield at_once(
                where.count,
                lambda: pool.request("GET", url, preload_content=False, retries=False),
                read,
            )


@client("requests")
def requests_session(where: Where) -> Iterator[Uses]:
    import requests
    import requests.adapters

    with requests.Session() as session:
        session.trust_env = False
        session.verify = where.ca or True
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=where.count)
        session.mount(where.url("http"), adapter)
        url = where.url("http")
        while True:
            yield at_once(
                where.count,
                lambda: session.get(url, stream=True, timeout=TIMEOUT),
                lambda answer: (answer.status_code, answer.content),
            )


def _of_httpx(where: Where) -> dict[str, Any]:
    import httpx

    count = where.count
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)
    verify = where.context or False
    return {"verify": verify, "limits": limits, "timeout": TIMEOUT, "trust_env": False}


@client("httpx")
def httpx_client(where: Where) -> Iterator[Uses]:
    import httpx

    def read(answer: httpx.Response) -> object:
        return answer.status_code, answer.read()

    with httpx.Client(**_of_httpx(where)) as made:
        request = made.build_request("GET", where.url("http"))
        while True:
            yield at_once(where.count, lambda: made.send(request, stream=True), read)


@client("httpx, async")
async def httpx_async_client(where: Where) -> AsyncIterator[Uses]:
    import asyncio

    import httpx

    async with httpx.AsyncClient(**_of_httpx(where)) as made:

        async def ask(barrier: asyncio.Barrier) -> object:
            async with made.stream("GET", where.url("http")) as answer:
                await barrier.wait()
                return answer.status_code, await answer.aread()

        while True:
            barrier = asyncio.Barrier(where.count)
            asked = (told_by(ask, barrier) for _ in range(where.count))
            yield await asyncio.wait_for(asyncio.gather(*asked), TIMEOUT)


@client("aiohttp")
async def aiohttp_session(where: Where) -> AsyncIterator[Uses]:
    import asyncio

    import aiohttp

    connector = aiohttp.TCPConnector(limit=where.count, ssl=where.context or True)
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))

        async def ask(barrier: asyncio.Barrier) -> object:
            async with session.get(where.url("http")) as answer:
                await barrier.wait()
                return answer.status, await answer.read()

        while True:
            barrier = asyncio.Barrier(where.count)
            asked = (told_by(ask, barrier) for _ in range(where.count))
            yield await asyncio.wait_for(asyncio.gather(*asked), TIMEOUT)
