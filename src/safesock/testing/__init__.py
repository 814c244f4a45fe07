"""A real server on loopback whose every act a test chooses, for tests of clients.

`ScriptedPeer` is for tests that are plain functions, `AsyncScriptedPeer` for coroutines on asyncio.
With pytest the fixtures `scripted_peer` and `async_scripted_peer` are there when safesock is
installed.
"""

from __future__ import annotations

from safesock.testing._acts import End
from safesock.testing._client import ClientCall
from safesock.testing._leak_warning import LeakedConnectionWarning
from safesock.testing._peer import PeerEnd, ScriptedPeer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from safesock.testing._async_peer import AsyncPeerEnd, AsyncScriptedPeer

__all__ = [
    "AsyncPeerEnd",
    "AsyncScriptedPeer",
    "ClientCall",
    "End",
    "LeakedConnectionWarning",
    "PeerEnd",
    "ScriptedPeer",
]


if not TYPE_CHECKING:
    # asyncio takes as long to import as all the rest.
    _LATER = {"AsyncPeerEnd": "_async_peer", "AsyncScriptedPeer": "_async_peer"}

    def __getattr__(name):
        if name not in _LATER:
            raise AttributeError(f"module 'safesock.testing' has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"safesock.testing.{_LATER[name]}"), name)

    def __dir__():
        return sorted({*globals(), *__all__})
