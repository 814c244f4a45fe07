"""redis.asyncio, with a policy for its connections.

    from safesock.adapters.redis.asyncio import Connection

    pool = redis.asyncio.ConnectionPool(connection_class=Connection, host=host, policy=policy)
    client = redis.asyncio.Redis.from_pool(pool)

`SSLConnection` is the one for TLS, which is asyncio's own, above the socket.
"""

from __future__ import annotations

import asyncio

from safesock._extras import brought_by
from safesock.adapters._policies import for_event_loop
from safesock.adapters.asyncio import connect

with brought_by("redis"):
    import redis.asyncio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from safesock._policy import Policy
    from safesock._socket import SafeSocket

    Base = redis.asyncio.Connection
else:
    Base = object

__all__ = ["Connection", "SSLConnection"]


class _Governed(Base):
    """What both kinds of connection differ in from redis-py's own."""

    _made: SafeSocket | None = None

    def __init__(self, *args: Any, policy: Policy | None = None, **kwargs: Any) -> None:
        self.policy: Policy = for_event_loop(policy)
        super().__init__(*args, **kwargs)

    async def _connect(self) -> None:
        async with asyncio.timeout(self.socket_connect_timeout):
            self._made = sock = await connect((self.host, self.port), policy=self.policy)
            try:
                await super()._connect()  # type: ignore[no-untyped-call]
            except BaseException:
                sock.close()
                raise
            finally:
                self._made = None

    def _connection_arguments(self) -> Mapping[str, Any]:
        given = dict(super()._connection_arguments())
        host = given.pop("host")
        del given["port"]
        if given.get("ssl"):
            given.setdefault("server_hostname", host)
        return {**given, "sock": self._made}


class Connection(_Governed, redis.asyncio.Connection):
    """redis-py's, with a *policy*. Raises ValueError for on_loss="close", `Drain` and `Linger`."""


class SSLConnection(_Governed, redis.asyncio.SSLConnection):
    """redis-py's, with a *policy*. Raises ValueError for on_loss="close", `Drain` and `Linger`."""
