"""One policy for one client of other people's: each adapter uses the client's own extension point.

    import safesock.adapters.urllib3

    with safesock.adapters.urllib3.PoolManager(policy=policy) as pool:
        pool.request("GET", url)

There is a module for each client that needs more than one line: `urllib3`, `requests`, `httpcore`,
`httpx`, `redis`, `redis.asyncio`, `pymysql` and `anyio`. The others take a socket, or the maker of
one, and get it here:

    create_connection   a connected socket: pg8000, paramiko, websockets in threads
    socket_factory      what makes one: aiohttp
    SocketModule        what stands for the module `socket`: pymemcache
    asyncio.connect     a connected socket, by a coroutine: websockets in asyncio

TLS of clients that call `SSLContext.wrap_socket` by themselves, on a socket from here, takes
`safesock.secure(context, policy)` besides.

In all of them *policy* None is `Policy(on_loss="release")`, and on_loss="close" is a ValueError:
clients keep the descriptor. What the client itself does to its socket stays as it is: its results,
exceptions and timeouts, and what it sends before it closes.
"""

from __future__ import annotations

from safesock.adapters._sockets import SocketModule, create_connection, socket_factory

__all__ = ["SocketModule", "create_connection", "socket_factory"]
