"""httpcore's network backends, with a policy for its connections; httpx is built on them.

    from safesock.adapters.httpcore import NetworkBackend

    with httpcore.ConnectionPool(network_backend=NetworkBackend(policy)) as pool:
        pool.request("GET", "https://example.org/")

`AsyncNetworkBackend` is for `httpcore.AsyncConnectionPool`, on asyncio and trio. The streams are
httpcore's own, above a `SafeSocket`, which `stream.get_extra_info("socket")` gives.
"""

from __future__ import annotations

import socket

import anyio
import httpcore
from httpcore._backends.anyio import AnyIOStream

from safesock._open import wrap
from safesock._socket import SafeSocket
from safesock.adapters import anyio as safe_anyio
from safesock.adapters._policies import for_client

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable
    from typing import Any

    from safesock._policy import Policy

__all__ = ["AsyncNetworkBackend", "NetworkBackend"]


class NetworkBackend(httpcore.SyncBackend):
    """httpcore's for threads, with a *policy*. Raises ValueError for on_loss="close"."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = for_client(policy)

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        """As httpcore's; the connection goes by the policy."""
        return _Stream(super().connect_tcp(*args, **kwargs), self.policy)


class _Stream(httpcore.NetworkStream):
    """Another one, whose socket it takes over."""

    def __init__(self, stream: Any, policy: Policy) -> None:
        made: socket.socket = stream.get_extra_info("socket")
        if not isinstance(made, SafeSocket):  # It is one where this is TLS in TLS.
            stream._sock = wrap(made, policy)
        self._stream: httpcore.NetworkStream = stream
        self._policy = policy

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout), self._policy)


class AsyncNetworkBackend(httpcore.AnyIOBackend):
    """httpcore's for asyncio and trio, with a *policy*. Raises ValueError for on_loss="close"."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = for_client(policy)

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
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(error) from error
        except OSError as error:
            raise httpcore.ConnectError(error) from error
        for option in socket_options or ():
            stream.extra(anyio.abc.SocketAttribute.raw_socket).setsockopt(*option)
        return AnyIOStream(stream)
