"""What goes over a connection: a header that names it, and bytes that no other connection has."""

from __future__ import annotations

import random
import re
import struct

# The longest that one connection carries each way.
LONGEST = 1 << 19
_SPAN = 1 << 20
_BLOCK = memoryview(random.Random(2).randbytes(_SPAN + LONGEST))

HEADER = struct.Struct("!2sBxQII")
_PLAIN = re.compile(rb"CH..(.{8})", re.DOTALL)
_NAMED = re.compile(rb"(?:GET /|(?<=[\x00-\x1f]))([0-9a-f]{16})(?:/|\.test)")
# Where no token has been found by then, there is none.
FAR = 4096

# What the server does when it has read what the client sends, and sent its own.
CLOSE, WAIT, HASTE = range(3)  # HASTE: it closes amid what the client sends.


def up(token: int) -> memoryview:
    """What the client of this connection sends, after the header."""
    return _stream(token * 0x9E3779B97F4A7C15 + 1)


def down(token: int) -> memoryview:
    """What the server sends on it."""
    return _stream(token * 0xC2B2AE3D27D4EB4F + 2)


def _stream(mixed: int) -> memoryview:
    start = (mixed & (1 << 64) - 1) >> 44
    return _BLOCK[start : start + LONGEST]


def header(token: int, sizes: tuple[int, int], act: int) -> bytes:
    return HEADER.pack(b"CH", act, token, *sizes)


def hostname(token: int) -> str:
    """By which TLS names the connection, in clear (SNI)."""
    return f"{token:016x}.test"


def path(token: int, number: int, size: int) -> str:
    """Of the request *number* on this connection, in HTTP."""
    return f"/{token:016x}/{number}/{size}"


def token_in(first: bytes) -> int | None:
    """That of the connection which begins with these bytes, if it is among them."""
    if found := _PLAIN.match(first):
        return int.from_bytes(found[1])
    found = _NAMED.search(first)
    return None if found is None else int(found[1], 16)
