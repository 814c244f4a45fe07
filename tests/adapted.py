"""Other people's clients, each as it is and with its adapter: one connection to a real server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, NamedTuple

from clients.uses import TIMEOUT, Where
from servers.base import Server
from servers.brokers import MosquittoWebSocket
from servers.databases import MariaDb, Memcached, Postgres, Redis
from servers.sessions import OpenSsh
from servers.web import Nginx

from safesock import Policy, SafeSocket, secure


class Client:
    """A client that has its connection, or makes it when it is first used."""

    def __init__(self, use: Callable[[], Any], sock: Callable[[], Any] = lambda: None) -> None:
        # Its result is the same each time.
        self.use = use
        # The socket of its connection, as far as it is exposed.
        self.sock = sock


Opened = Callable[[Where, Policy | None], AbstractContextManager[Client]]


class Adapted(NamedTuple):
    """A client: *open* with policy None is the bare one."""

    name: str
    modules: tuple[str, ...]
    server: type[Server]
    open: Opened
    tls: bool
    # Whether it sees the end by itself, and closes; or does so with TLS only.
    sees: bool
    sees_tls: bool
    # Whether it closes its socket on an event loop.
    on_loop: bool
    # Whether a send raises what it meets, where the bare client raises it in the next call.
    is_prompt: bool
    # Whether it calls shutdown(2), and so sends FIN, when TLS has ended.
    shuts_tls: bool


ADAPTED: dict[str, Adapted] = {}


def _add(
    name: str,
    modules: str,
    server: type[Server],
    open: Opened,
    *,
    tls: bool = True,
    sees: bool = False,
    sees_tls: bool = False,
    on_loop: bool = False,
    is_prompt: bool = False,
    shuts_tls: bool = False,
) -> None:
    ways = (sees, sees_tls, on_loop, is_prompt, shuts_tls)
    ADAPTED[name] = Adapted(name, tuple(modules.split()), server, open, tls, *ways)


def adapted(name: str, modules: str, server: type[Server], **about: bool) -> Callable[[Any], Any]:
    """The generator function yields that client."""

    def register(function: Callable[[Where, Policy | None], Iterator[Client]]) -> Any:
        _add(name, modules, server, contextlib.contextmanager(function), **about)
        return function

    return register


def adapted_async(
    name: str, modules: str, server: type[Server], *backends: str, **about: bool
) -> Callable[[Any], Any]:
    """The asynchronous generator function does, whose `use` is a coroutine function; its event loop
    runs in another thread all the time."""

    def register(function: Callable[[Where, Policy | None], AsyncIterator[Client]]) -> Any:
        for backend in backends or ("asyncio",):
            made = contextlib.asynccontextmanager(function)
            title = f"{name}, {backend}" if backends else name
            _add(title, modules, server, _in_portal(made, backend), **about)
        return function

    return register


def _in_portal(
    made: Callable[[Where, Policy | None], AbstractAsyncContextManager[Client]], backend: str
) -> Opened:
    @contextlib.contextmanager
    def opened(where: Where, policy: Policy | None) -> Iterator[Client]:
        import anyio.from_thread

        with (
            anyio.from_thread.start_blocking_portal(backend) as portal,
            portal.wrap_async_context_manager(made(where, policy)) as client,
        ):
            use: Callable[[], Awaitable[Any]] = client.use
            yield Client(lambda: portal.call(use), client.sock)

    return opened


# HTTP -------------------------------------------------------------------------------------------


@adapted("urllib3", "urllib3", Nginx)
def urllib3_pool(where: Where, policy: Policy | None) -> Iterator[Client]:
    import urllib3

    import safesock.adapters.urllib3

    options: dict[str, Any] = {"ca_certs": where.ca, "timeout": TIMEOUT}
    pool = (
        safesock.adapters.urllib3.PoolManager(policy=policy, **options)
        if policy
        else urllib3.PoolManager(**options)
    )
    seen: list[Any] = []

    def use() -> object:
        answer: Any = pool.request("GET", where.url("http"), preload_content=False, retries=False)
        seen.append(answer.connection.sock)
        try:
            return answer.status, answer.read()
        finally:
            answer.release_conn()

    with pool:
        yield Client(use, lambda: seen[-1])


@adapted("requests", "requests", Nginx)
def requests_session(where: Where, policy: Policy | None) -> Iterator[Client]:
    import requests

    import safesock.adapters.requests

    seen: list[Any] = []
    with requests.Session() as session:
        session.trust_env = False
        session.verify = where.ca or True
        if policy:
            adapter = safesock.adapters.requests.HTTPAdapter(policy=policy)
            session.mount(where.url("http"), adapter)

        def use() -> object:
            answer: Any = session.get(where.url("http"), stream=True, timeout=TIMEOUT)
            seen.append(answer.raw.connection.sock)
            return answer.status_code, answer.content

        yield Client(use, lambda: seen[-1])


def _socket_of(answer: Any) -> Any:
    return answer.extensions["network_stream"].get_extra_info("socket")


@adapted("httpx", "httpx", Nginx)
def httpx_client(where: Where, policy: Policy | None) -> Iterator[Client]:
    import httpx

    import safesock.adapters.httpx

    options: dict[str, Any] = {"verify": where.context or False, "trust_env": False}
    transport = (
        safesock.adapters.httpx.HTTPTransport(policy=policy, **options)
        if policy
        else httpx.HTTPTransport(**options)
    )
    seen: list[Any] = []
    with httpx.Client(transport=transport, timeout=TIMEOUT) as made:

        def use() -> object:
            with made.stream("GET", where.url("http")) as answer:
                seen.append(_socket_of(answer))
                return answer.status_code, answer.read()

        yield Client(use, lambda: seen[-1])


@adapted_async("httpx, async", "httpx anyio", Nginx, "asyncio", "trio")
async def httpx_async(where: Where, policy: Policy | None) -> AsyncIterator[Client]:
    import httpx

    import safesock.adapters.httpx

    options: dict[str, Any] = {"verify": where.context or False, "trust_env": False}
    transport = (
        safesock.adapters.httpx.AsyncHTTPTransport(policy=policy, **options)
        if policy
        else httpx.AsyncHTTPTransport(**options)
    )
    seen: list[Any] = []
    async with httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as made:

        async def use() -> object:
            async with made.stream("GET", where.url("http")) as answer:
                seen.append(_socket_of(answer))
                return answer.status_code, await answer.aread()

        yield Client(use, lambda: seen[-1])


@adapted_async("aiohttp", "aiohttp anyio", Nginx, sees=True, on_loop=True)
async def aiohttp_session(where: Where, policy: Policy | None) -> AsyncIterator[Client]:
    import aiohttp

    import safesock.adapters

    seen: list[Any] = []
    options: dict[str, Any] = {"ssl": where.context or True}
    if policy:
        make = safesock.adapters.socket_factory(policy)

        def factory(answer: Any) -> Any:
            seen.append(make(answer))
            return seen[-1]

        options["socket_factory"] = factory
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**options)) as session:

        async def use() -> object:
            async with session.get(where.url("http")) as answer:
                return answer.status, await answer.read()

        yield Client(use, lambda: seen[-1])


# Databases and caches ---------------------------------------------------------------------------


def _of_redis(where: Where) -> dict[str, Any]:
    tls = {"ssl_ca_certs": where.ca} if where.ca else {}
    patience = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
    return {"host": where.host, "port": where.port, **patience, **tls}


@adapted("redis-py", "redis", Redis)
def redis_pool(where: Where, policy: Policy | None) -> Iterator[Client]:
    import redis

    import safesock.adapters.redis

    module: Any = safesock.adapters.redis if policy else redis
    kind = module.SSLConnection if where.ca else module.Connection
    options: dict[str, Any] = {"policy": policy} if policy else {}
    pool = redis.ConnectionPool(connection_class=kind, **_of_redis(where), **options)
    seen: list[Any] = []

    def use() -> object:
        connection: Any = pool.get_connection()
        try:
            connection.send_command("PING")
            seen.append(connection._sock)
            return connection.read_response()
        finally:
            pool.release(connection)

    with contextlib.closing(pool):
        yield Client(use, lambda: seen[-1])


@adapted_async("redis-py, async", "redis anyio", Redis, sees_tls=True, on_loop=True)
async def redis_async_pool(where: Where, policy: Policy | None) -> AsyncIterator[Client]:
    import redis.asyncio

    import safesock.adapters.redis.asyncio

    module: Any = safesock.adapters.redis.asyncio if policy else redis.asyncio
    kind = module.SSLConnection if where.ca else module.Connection
    options: dict[str, Any] = {"policy": policy} if policy else {}
    pool: Any = redis.asyncio.ConnectionPool(connection_class=kind, **_of_redis(where), **options)
    seen: list[Any] = []

    async def use() -> object:
        connection = await pool.get_connection()
        try:
            await connection.send_command("PING")
            # asyncio shows what it has for a socket in a cover.
            seen.append(connection._writer.get_extra_info("socket")._sock)
            return await connection.read_response()
        finally:
            await pool.release(connection)

    yield Client(use, lambda: seen[-1])
    await pool.disconnect()


@adapted("PyMySQL", "pymysql", MariaDb)
def mysql(where: Where, policy: Policy | None) -> Iterator[Client]:
    import pymysql

    import safesock.adapters.pymysql

    options: dict[str, Any] = {"host": where.host, "port": where.port, "user": "tester"}
    options |= {"ssl": where.context, "connect_timeout": int(TIMEOUT)}
    made: Any = (
        safesock.adapters.pymysql.connect(policy=policy, **options)
        if policy
        else pymysql.connect(**options)
    )

    def use() -> object:
        with made.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchall()

    sock = made._sock
    yield Client(use, lambda: sock)
    with contextlib.suppress(pymysql.err.Error):  # It has been lost, and it knows.
        made.close()


@adapted("pg8000", "pg8000", Postgres)
def pg8000_connection(where: Where, policy: Policy | None) -> Iterator[Client]:
    import pg8000.native

    import safesock.adapters

    options: dict[str, Any] = {"ssl_context": where.fresh_context or False}
    if policy:
        options["sock"] = safesock.adapters.create_connection(where.address, policy=policy)
        if where.ca:
            secure(options["ssl_context"], policy)
    made = pg8000.native.Connection(
        "tester", host=where.host, port=where.port, database="postgres", **options
    )
    sock = made._usock
    yield Client(lambda: made.run("SELECT 1"), lambda: sock)
    with contextlib.suppress(pg8000.native.InterfaceError):
        made.close()


@adapted("pymemcache", "pymemcache", Memcached)
def memcached(where: Where, policy: Policy | None) -> Iterator[Client]:
    from pymemcache.client.base import PooledClient

    import safesock.adapters

    options: dict[str, Any] = {"tls_context": where.fresh_context, "timeout": TIMEOUT}
    if policy:
        options["socket_module"] = safesock.adapters.SocketModule(policy)
        if where.ca:
            secure(options["tls_context"], policy)
    made = PooledClient(where.address, **options)

    def sock() -> Any:
        return made.client_pool._free_objs[-1].sock

    yield Client(lambda: made.set("key", "value", 0, False), sock)
    made.close()


# Sessions ---------------------------------------------------------------------------------------


@adapted("paramiko", "paramiko", OpenSsh, tls=False, sees=True)
def ssh(where: Where, policy: Policy | None) -> Iterator[Client]:
    import paramiko

    import safesock.adapters

    made = paramiko.SSHClient()
    made.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    options: dict[str, Any] = {}
    if policy:
        options["sock"] = safesock.adapters.create_connection(where.address, policy=policy)
    made.connect(
        where.host,
        where.port,
        "root",
        key_filename=f"{where.folder}/client",
        look_for_keys=False,
        allow_agent=False,
        banner_timeout=TIMEOUT,
        auth_timeout=TIMEOUT,
        **options,
    )

    def use() -> object:
        return made.exec_command("echo hello", timeout=TIMEOUT)[1].read()

    with made:
        yield Client(use, lambda: options.get("sock"))


# MQTT 3.1.1: CONNECT with a clean session and no name, PINGREQ.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"
_PING = b"\xc0\x00"


def _of_websockets(where: Where) -> dict[str, Any]:
    patience = {"open_timeout": TIMEOUT, "ping_interval": None, "close_timeout": TIMEOUT}
    return {"subprotocols": ["mqtt"], "ssl": where.fresh_context, "proxy": None, **patience}


@adapted("websockets", "websockets", MosquittoWebSocket, sees=True, shuts_tls=True)
def websockets_in_threads(where: Where, policy: Policy | None) -> Iterator[Client]:
    from websockets.sync.client import connect

    import safesock.adapters

    options = _of_websockets(where)
    if policy:
        options["sock"] = safesock.adapters.create_connection(where.address, policy=policy)
        if where.ca:
            secure(options["ssl"], policy)
    with connect(where.url("ws"), **options) as made:
        made.send(_CONNECT)
        made.recv(TIMEOUT)

        def use() -> object:
            made.send(_PING)
            return made.recv(TIMEOUT)

        yield Client(use, lambda: made.socket)


@adapted_async("websockets, async", "websockets anyio", MosquittoWebSocket, sees=True, on_loop=True)
async def websockets_async(where: Where, policy: Policy | None) -> AsyncIterator[Client]:
    from websockets.asyncio.client import connect

    import safesock.adapters.asyncio

    options = _of_websockets(where)
    if policy:
        options["sock"] = await safesock.adapters.asyncio.connect(where.address, policy=policy)
    async with connect(where.url("ws"), **options) as made:
        await made.send(_CONNECT)
        await made.recv()

        async def use() -> object:
            await made.send(_PING)
            return await made.recv()

        yield Client(use, lambda: options.get("sock"))


# Streams ----------------------------------------------------------------------------------------


@adapted_async("anyio", "anyio", Redis, "asyncio", "trio", is_prompt=True)
async def anyio_stream(where: Where, policy: Policy | None) -> AsyncIterator[Client]:
    import anyio

    import safesock.adapters.anyio

    stream: Any
    if policy:
        stream = await safesock.adapters.anyio.connect_tcp(
            where.host, where.port, ssl_context=where.context, policy=policy
        )
    elif where.context:
        stream = await anyio.connect_tcp(where.host, where.port, ssl_context=where.context)
    else:
        stream = await anyio.connect_tcp(where.host, where.port)

    async def use() -> object:
        await stream.send(b"PING\r\n")
        return await stream.receive(100)

    sock: SafeSocket | None = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    yield Client(use, lambda: sock)
    with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):
        await stream.aclose()
