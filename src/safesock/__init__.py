"""safesock makes client TCP sockets end properly: no CLOSE_WAIT, nothing left behind.

A peer that has closed sends FIN; a program that neither reads nor closes then holds the descriptor
and the local port for ever. Start with `create_connection` or `wrap`, and a `Policy`; with
`Connector` for a connection that comes back; for coroutines, import `safesock.asyncio`.
"""

from __future__ import annotations

from safesock._errors import LocalPortBusyError, PortHolder, ReconnectError
from safesock._loss import Cause, CloseReport, Loss
from safesock._open import create_connection, wrap
from safesock._policy import Abort, CloseMode, Drain, Graceful, KeepAlive, Linger, Policy
from safesock._socket import SafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from safesock import events as events
    from safesock._audit import audit
    from safesock._audit_records import Audit, HeldConnection
    from safesock._connector import Connector
    from safesock._enforce import Enforcement, Report, enforce
    from safesock._reconnect import Reconnect
    from safesock._reconnecting import ReconnectingSocket
    from safesock._subscribe import Subscription, subscribe
    from safesock._tls import SafeSSLSocket, secure

__all__ = [
    "Abort",
    "Audit",
    "Cause",
    "CloseMode",
    "CloseReport",
    "Connector",
    "Drain",
    "Enforcement",
    "Graceful",
    "HeldConnection",
    "KeepAlive",
    "Linger",
    "LocalPortBusyError",
    "Loss",
    "Policy",
    "PortHolder",
    "Reconnect",
    "ReconnectError",
    "ReconnectingSocket",
    "Report",
    "SafeSSLSocket",
    "SafeSocket",
    "Subscription",
    "audit",
    "create_connection",
    "enforce",
    "secure",
    "subscribe",
    "wrap",
]
__version__ = "0.1.0"


if not TYPE_CHECKING:
    # ssl and tenacity take as long to import as all the rest: only who uses them pays for them.
    _LATER = {
        "Audit": "_audit_records",
        "Connector": "_connector",
        "Reconnect": "_reconnect",
        "ReconnectingSocket": "_reconnecting",
        "Enforcement": "_enforce",
        "HeldConnection": "_audit_records",
        "Report": "_enforce",
        "SafeSSLSocket": "_tls",
        "Subscription": "_subscribe",
        "audit": "_audit",
        "enforce": "_enforce",
        "secure": "_tls",
        "subscribe": "_subscribe",
    }

    def __getattr__(name):
        if name not in _LATER and name != "events":
            raise AttributeError(f"module 'safesock' has no attribute {name!r}")
        import importlib

        if name == "events":
            return importlib.import_module("safesock.events")
        return getattr(importlib.import_module(f"safesock.{_LATER[name]}"), name)

    def __dir__():
        return sorted({*globals(), *_LATER, "events"})
