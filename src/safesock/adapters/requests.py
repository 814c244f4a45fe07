"""requests, with a policy for the connections of a session.

    from safesock.adapters.requests import HTTPAdapter

    with requests.Session() as session:
        session.mount("https://", HTTPAdapter(policy=policy))
        session.mount("http://", HTTPAdapter(policy=policy))

An adapter is what a session sends by, so that one session can have several, by the beginnings of
addresses. Through proxies too, but not SOCKS: to ask for one raises ValueError.
"""

from __future__ import annotations

from safesock._extras import brought_by
from safesock.adapters._policies import for_client

with brought_by("requests"):
    import requests.adapters

    from safesock.adapters.urllib3 import govern

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._policy import Policy

__all__ = ["HTTPAdapter"]


class HTTPAdapter(requests.adapters.HTTPAdapter):
    """requests' own, with a *policy*. Raises ValueError for on_loss="close"."""

    __attrs__: list[str] = [*requests.adapters.HTTPAdapter.__attrs__, "policy"]

    def __init__(self, *args: Any, policy: Policy | None = None, **kwargs: Any) -> None:
        self.policy: Policy = for_client(policy)  # Before: it makes the pools.
        super().__init__(*args, **kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """As requests' own; its pools go by the policy."""
        super().init_poolmanager(*args, **kwargs)
        govern(self.poolmanager, self.policy)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """As requests' own; its pools go by the policy. Raises ValueError for a SOCKS proxy."""
        if proxy.lower().startswith("socks"):
            raise ValueError(
                "safesock's HTTPAdapter does not speak to SOCKS proxies: mount requests' own, with "
                "safesock.enforce()"
            )
        manager = super().proxy_manager_for(proxy, **kwargs)
        govern(manager, self.policy)  # Each time: another thread may have made it just now.
        return manager
