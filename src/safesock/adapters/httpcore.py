"""httpcore's network backends, with a policy for its connections; httpx is built on them.

    from safesock.adapters.httpcore import NetworkBackend

    with httpcore.ConnectionPool(network_backend=NetworkBackend(policy)) as pool:
        pool.request("GET", "https://example.org/")

`AsyncNetworkBackend` is for `httpcore.AsyncConnectionPool`, on asyncio and trio. The streams are
httpcore's own, above a `SafeSocket`, which `stream.get_extra_info("socket")` gives.
"""

from __future__ import annotations

from safesock._extras import brought_by
from safesock._open import wrap
from safesock._tls import before_handshake
from safesock.adapters._policies import for_client
from safesock.asyncio._connect import give_up

with brought_by("httpx"):
    import anyio
    import httpcore
    from httpcore._backends.anyio import AnyIOStream
    from httpcore._backends.sync import SyncStream

    from safesock.adapters import anyio as safe_anyio

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable
    from typing import Any

    from safesock._policy import Policy
    from safesock._socket import SafeSocket
    from safesock._tls import SafeSSLSocket

__all__ = ["AsyncNetworkBackend", "NetworkBackend"]


class NetworkBackend(httpcore.SyncBackend):
    """httpcore's for threads, with a *policy*. Raises ValueError for on_loss="close"."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy: Policy = for_client(policy)

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        """As httpcore's; the connection goes by the policy."""
        stream = super().connect_tcp(*args, **kwargs)
        return _Stream(wrap(stream.get_extra_info("socket"), self.policy))


class _Stream(SyncStream):
    """httpcore's own, whose connection stays the one that it is when TLS begins on it."""

    def start_tls(self, ssl_context: Any, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        return super().start_tls(_Context(ssl_context), *args, **kwargs)  # type: ignore[arg-type]


class _Context:
    """What `start_tls` needs of a context, which others may share: it stays as it is."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def wrap_socket(self, sock: SafeSocket, server_hostname: str | None) -> SafeSSLSocket:
        made = before_handshake(sock, self._context, server_hostname)
        try:
            made.do_handshake()
        except BaseException:
            made.close()
            raise
        return made


class AsyncNetworkBackend(httpcore.AnyIOBackend):
    """httpcore's for asyncio and trio, with a *policy*. Raises ValueError for on_loss="close"."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy: Policy = for_client(policy)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """As httpcore's; the connection goes by the policy."""
        try:
            with anyio.fail_after(timeout):
                stream = await safe_anyio.connect_tcp(
                    host, port, local_host=local_address, policy=self.policy
                )
            sock: Any = stream.extra(anyio.abc.SocketAttribute.raw_socket)
            try:
                for option in socket_options or ():
                    sock.setsockopt(*option)
            except BaseException:
                give_up(sock)
                raise
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(error) from error
        except (OSError, OverflowError) as error:  # The latter for a port that is none.
            raise httpcore.ConnectError(error) from error
        return AnyIOStream(stream)
