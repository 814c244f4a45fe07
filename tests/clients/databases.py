"""Clients of databases and caches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from clients.uses import HOST, TIMEOUT, Made, Uses, Where, client, told, told_by


def _of_redis(where: Where) -> dict[str, Any]:
    tls = {"ssl_ca_certs": where.ca} if where.ca else {}
    patience = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
    limit = {"max_connections": where.count}
    return {"host": HOST, "port": where.port, **limit, **patience, **tls}


@client("redis-py")
def redis_pool(where: Where) -> Iterator[Uses]:
    import redis

    kind = redis.SSLConnection if where.ca else redis.Connection
    pool = redis.ConnectionPool(connection_class=kind, **_of_redis(where))

    def ping(connection: Any) -> object:
        connection.send_command("PING")
        return connection.read_response()

    while True:
        taken = [Made(pool.get_connection) for _ in range(where.count)]
        yield [told(lambda one=one: ping(one.get())) for one in taken]
        for one in taken:
            pool.release(one.get())


@client("redis-py, pub/sub")
def redis_subscriber(where: Where) -> Iterator[Uses]:
    import redis

    server: Any = redis.Redis(ssl=bool(where.ca), **_of_redis(where))
    made = [server.pubsub() for _ in range(where.count)]
    for one in made:
        one.subscribe("news")

    def ping(one: Any) -> object:
        one.ping()
        return one.get_message(timeout=TIMEOUT)

    while True:
        yield [told(ping, one) for one in made]


@client("redis-py, async")
async def redis_async_pool(where: Where) -> AsyncIterator[Uses]:
    import redis.asyncio as redis

    kind: Any = redis.SSLConnection if where.ca else redis.Connection
    pool: Any = redis.ConnectionPool(connection_class=kind, **_of_redis(where))

    async def ping(connection: Any) -> object:
        await connection.send_command("PING")
        return await connection.read_response()

    while True:
        taken = await asyncio.gather(*(pool.get_connection() for _ in range(where.count)))
        yield [await told_by(ping, one) for one in taken]
        for one in taken:
            await pool.release(one)


@client("pymemcache")
def memcached(where: Where) -> Iterator[Uses]:
    from pymemcache.client.base import Client

    made = [
        Client(where.address, tls_context=where.context, timeout=TIMEOUT)
        for _ in range(where.count)
    ]
    while True:
        yield [told(one.set, "key", "value", 0, False) for one in made]


@client("PyMySQL")
def mysql(where: Where) -> Iterator[Uses]:
    import pymysql

    made = [
        pymysql.connect(
            host=HOST,
            port=where.port,
            user="tester",
            ssl=where.context,
            connect_timeout=int(TIMEOUT),
        )
        for _ in range(where.count)
    ]

    def ask(connection: Any) -> object:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchall()

    while True:
        yield [told(ask, one) for one in made]


@client("pg8000")
def pg8000_connections(where: Where) -> Iterator[Uses]:
    import pg8000.native

    made = [
        pg8000.native.Connection(
            "tester",
            host=HOST,
            port=where.port,
            database="postgres",
            ssl_context=where.context or False,
        )
        for _ in range(where.count)
    ]
    while True:
        yield [told(one.run, "SELECT 1") for one in made]


@client("psycopg")
def libpq(where: Where) -> Iterator[Uses]:
    import psycopg

    tls: dict[str, Any] = {"sslmode": "disable"}
    if where.ca:
        tls = {"sslmode": "verify-ca", "sslrootcert": where.ca}
    made = [
        psycopg.connect(
            host=HOST, port=where.port, user="tester", dbname="postgres", autocommit=True, **tls
        )
        for _ in range(where.count)
    ]
    while True:
        yield [told(lambda one=one: one.execute("SELECT 1").fetchall()) for one in made]


@client("asyncpg")
async def asyncpg_pool(where: Where) -> AsyncIterator[Uses]:
    import asyncpg

    pool = await asyncpg.create_pool(
        host=HOST,
        port=where.port,
        user="tester",
        database="postgres",
        ssl=where.context or False,
        min_size=where.count,
        max_size=where.count,
    )

    async def ask(barrier: asyncio.Barrier) -> object:
        async with pool.acquire() as connection:
            await barrier.wait()
            return await connection.fetchval("SELECT 1")

    while True:
        barrier = asyncio.Barrier(where.count)
        asked = (told_by(ask, barrier) for _ in range(where.count))
        yield await asyncio.wait_for(asyncio.gather(*asked), TIMEOUT)
