"""httpx, with a policy for its connections.

    from safesock.adapters.httpx import HTTPTransport

    with httpx.Client(transport=HTTPTransport(policy=policy)) as client:
        client.get("https://example.org/")

`AsyncHTTPTransport` is for `httpx.AsyncClient`, on asyncio and trio. Both take what httpx's own
take, `verify`, `limits` and `proxy` among them: a client to which a transport is given ignores its
own. `response.extensions["network_stream"].get_extra_info("socket")` is the `SafeSocket`.
"""

from __future__ import annotations

from safesock._extras import brought_by
from safesock.adapters.httpcore import AsyncNetworkBackend, NetworkBackend

with brought_by("httpx"):
    import httpx

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._policy import Policy

__all__ = ["AsyncHTTPTransport", "HTTPTransport"]


class HTTPTransport(httpx.HTTPTransport):
    """httpx's, with a *policy*. Raises ValueError for on_loss="close"."""

    def __init__(self, *args: Any, policy: Policy | None = None, **kwargs: Any) -> None:
        backend = NetworkBackend(policy)
        super().__init__(*args, **kwargs)
        _put(self._pool, backend)


class AsyncHTTPTransport(httpx.AsyncHTTPTransport):
    """httpx's, with a *policy*. Raises ValueError for on_loss="close"."""

    def __init__(self, *args: Any, policy: Policy | None = None, **kwargs: Any) -> None:
        backend = AsyncNetworkBackend(policy)
        super().__init__(*args, **kwargs)
        _put(self._pool, backend)


def _put(pool: Any, backend: NetworkBackend | AsyncNetworkBackend) -> None:
    # httpcore takes it as a parameter, which httpx has no way to give.
    if not hasattr(pool, "_network_backend"):
        raise RuntimeError("this version of httpcore keeps its backend elsewhere: use 1.x")
    pool._network_backend = backend
