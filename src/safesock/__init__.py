"""safesock makes client TCP sockets end properly: no CLOSE_WAIT, nothing left behind.

A peer that has closed sends FIN; a program that neither reads nor closes then holds the descriptor
and the local port for ever. Start with `create_connection` or `wrap`, and a `Policy`.
"""

from __future__ import annotations

from safesock._loss import Cause, CloseReport, Loss
from safesock._open import create_connection, wrap
from safesock._policy import Abort, CloseMode, Drain, Graceful, KeepAlive, Linger, Policy
from safesock._socket import SafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from safesock._tls import SafeSSLSocket, secure

__all__ = [
    "Abort",
    "Cause",
    "CloseMode",
    "CloseReport",
    "Drain",
    "Graceful",
    "KeepAlive",
    "Linger",
    "Loss",
    "Policy",
    "SafeSSLSocket",
    "SafeSocket",
    "create_connection",
    "secure",
    "wrap",
]
__version__ = "0.1.0"


if not TYPE_CHECKING:

    def __getattr__(name):
        # ssl takes as long to import as all the rest: only who uses it pays for it.
        if name in ("SafeSSLSocket", "secure"):
            from safesock import _tls

            return getattr(_tls, name)
        raise AttributeError(f"module 'safesock' has no attribute {name!r}")

    def __dir__():
        return sorted([*globals(), "SafeSSLSocket", "secure"])
