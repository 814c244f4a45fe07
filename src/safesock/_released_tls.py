"""What a plain `SSLSocket` becomes when its connection has been ended under it."""

from __future__ import annotations

from safesock._kept import Kept
from safesock._tls_transfer import GovernedSSLSocket


class ReleasedSSLSocket(GovernedSSLSocket, Kept):  # type: ignore[misc]
    """Of ssl.SSLSocket."""
