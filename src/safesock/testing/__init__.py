"""A real server on loopback whose every act a test chooses, for tests of clients.

`ScriptedPeer` is for tests that are plain functions, `AsyncScriptedPeer` for coroutines on asyncio.
With pytest the fixtures `scripted_peer` and `async_scripted_peer` are there when safesock is
installed.
"""

from __future__ import annotations

from safesock.testing._acts import End
from safesock.testing._client import ClientCall
from safesock.testing._peer import PeerEnd, ScriptedPeer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from safesock.testing._async_peer import AsyncPeerEnd, AsyncScriptedPeer

__all__ = ["AsyncPeerEnd", "AsyncScriptedPeer", "ClientCall", "End", "PeerEnd", "ScriptedPeer"]


if not TYPE_CHECKING:

    def __getattr__(name):
        # asyncio takes as long to import as all the rest.
        if name not in ("AsyncPeerEnd", "AsyncScriptedPeer"):
            raise AttributeError(f"module 'safesock.testing' has no attribute {name!r}")
        from safesock.testing import _async_peer

        return getattr(_async_peer, name)

    def __dir__():
        return sorted({*globals(), *__all__})
