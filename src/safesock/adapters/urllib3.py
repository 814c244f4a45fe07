"""urllib3, with a policy for its connections.

    from safesock.adapters.urllib3 import PoolManager

    with PoolManager(policy=safesock.Policy(safesock.Abort(), on_loss="release")) as pool:
        pool.request("GET", "https://example.org/")

`PoolManager` and `ProxyManager` take what urllib3's own take, and *policy*. Names, addresses,
proxies, TLS, timeouts and exceptions stay urllib3's: what it has connected is taken over at the end
of its `connect`, TLS included. A connection to an HTTPS proxy that tunnels TLS in TLS is ended by
the policy too. A fixed port in *source_address* gets SO_REUSEADDR: see `Policy.reuse_address`.

SOCKS proxies have pools of their own, in urllib3.contrib.socks, which are not covered.
"""

from __future__ import annotations

import functools

from safesock import _kernel
from safesock._extras import brought_by
from safesock._open import wrap
from safesock.adapters._policies import for_client

with brought_by("urllib3"):
    import urllib3
    import urllib3.connection
    from urllib3.util.ssltransport import SSLTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._policy import Policy

    Base = urllib3.connection.HTTPConnection
    BasePool = urllib3.HTTPConnectionPool
else:
    Base = BasePool = object

__all__ = [
    "HTTPConnection",
    "HTTPConnectionPool",
    "HTTPSConnection",
    "HTTPSConnectionPool",
    "PoolManager",
    "ProxyManager",
    "govern",
]


class _Governed(Base):
    """What both kinds of connection differ in from urllib3's own."""

    sock: Any
    socket_options: Any

    def __init__(self, *args: Any, policy: Policy | None = None, **kwargs: Any) -> None:
        self.policy: Policy = for_client(policy)
        super().__init__(*args, **kwargs)
        fixed = bool(self.source_address and self.source_address[1])
        reuse = self.policy.reuse_address
        if fixed if reuse is None else reuse:  # Once it is bound it is too late.
            more = (*_kernel.REUSE_ADDRESS, 1)
            self.socket_options = [*(self.socket_options or ()), more]

    def connect(self) -> None:
        """As urllib3's; then the connection goes by the policy."""
        super().connect()
        made: Any = self.sock
        if isinstance(made, SSLTransport):  # TLS in TLS: the one below is what is connected.
            made.socket = wrap(made.socket, self.policy)
        else:
            self.sock = wrap(made, self.policy)


class HTTPConnection(_Governed, urllib3.connection.HTTPConnection):
    """urllib3's, with a *policy*. Raises ValueError for on_loss="close"."""


class HTTPSConnection(_Governed, urllib3.connection.HTTPSConnection):
    """urllib3's, with a *policy*. Raises ValueError for on_loss="close"."""


class _GovernedPool(BasePool):
    """What both kinds of pool differ in from urllib3's own."""

    def __init__(self, *args: Any, policy: Policy | None = None, **kwargs: Any) -> None:
        # Like all that a pool does not know, it goes to the connections.
        super().__init__(*args, policy=for_client(policy), **kwargs)


class HTTPConnectionPool(_GovernedPool, urllib3.HTTPConnectionPool):
    """urllib3's, with a *policy*. Raises ValueError for on_loss="close"."""

    ConnectionCls = HTTPConnection


class HTTPSConnectionPool(_GovernedPool, urllib3.HTTPSConnectionPool):
    """urllib3's, with a *policy*. Raises ValueError for on_loss="close"."""

    ConnectionCls = HTTPSConnection


def govern(manager: urllib3.PoolManager, policy: Policy | None) -> None:
    """A manager whose pools are yet to be made makes them with the policy."""
    chosen = for_client(policy)
    pools: Any = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}
    made = {scheme: functools.partial(pool, policy=chosen) for scheme, pool in pools.items()}
    manager.pool_classes_by_scheme = made  # type: ignore[assignment]


class PoolManager(urllib3.PoolManager):
    """urllib3's, with a *policy*. Raises ValueError for on_loss="close"."""

    def __init__(self, *args: Any, policy: Policy | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        govern(self, policy)


class ProxyManager(urllib3.ProxyManager):
    """urllib3's, with a *policy*. Raises ValueError for on_loss="close"."""

    def __init__(self, *args: Any, policy: Policy | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        govern(self, policy)
