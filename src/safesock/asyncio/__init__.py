"""safesock for asyncio: streams, transports and a `Connector`, on asyncio's own loop and uvloop."""

from __future__ import annotations

from safesock.asyncio._base import SafeTransport
from safesock.asyncio._connector import Connector
from safesock.asyncio._create import create_connection
from safesock.asyncio._streams import SafeStreamReader, SafeStreamWriter, open_connection
from safesock.asyncio._takeover import wrap_transport

__all__ = [
    "Connector",
    "SafeStreamReader",
    "SafeStreamWriter",
    "SafeTransport",
    "create_connection",
    "open_connection",
    "wrap_transport",
]
