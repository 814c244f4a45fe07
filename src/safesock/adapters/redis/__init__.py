"""redis-py, with a policy for its connections.

    from safesock.adapters.redis import Connection

    pool = redis.ConnectionPool(connection_class=Connection, host=host, port=port, policy=policy)
    client = redis.Redis(connection_pool=pool)

`SSLConnection` is the one for TLS, with redis-py's own parameters. Pub/sub and pipelines take their
connections from the same pool. For `redis.asyncio` there is `safesock.adapters.redis.asyncio`.

What differs: redis-py sends FIN by shutdown(2) before it closes; here the close goes by the policy.
"""

from __future__ import annotations

from safesock._extras import brought_by
from safesock._open import wrap
from safesock.adapters._policies import for_client

with brought_by("redis"):
    import redis

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._policy import Policy
    from safesock._socket import SafeSocket

    Base = redis.Connection
else:
    Base = object

__all__ = ["Connection", "SSLConnection"]


class _Governed(Base):
    """What both kinds of connection differ in from redis-py's own."""

    def __init__(self, *args: Any, policy: Policy | None = None, **kwargs: Any) -> None:
        self.policy: Policy = for_client(policy)
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _connect(self) -> SafeSocket:
        return wrap(super()._connect(), self.policy)  # type: ignore[no-untyped-call]

    def disconnect(self, *args: Any) -> None:
        """As redis-py's, but the socket is closed by the policy."""
        # Its shutdown(2), which sends FIN whatever the policy, finds it closed; it expects that.
        made: SafeSocket | None = self._sock
        if made is not None:
            made.close()
        super().disconnect(*args)  # type: ignore[no-untyped-call]


class Connection(_Governed, redis.Connection):
    """redis-py's, with a *policy*. Raises ValueError for on_loss="close"."""


class SSLConnection(_Governed, redis.SSLConnection):
    """redis-py's, with a *policy*. Raises ValueError for on_loss="close"."""
