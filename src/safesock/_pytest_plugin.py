"""The pytest plugin: the fixture `scripted_peer`. It imports what it needs when it is asked for."""

from __future__ import annotations

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from safesock.testing import AsyncScriptedPeer, ScriptedPeer


@pytest.fixture
def scripted_peer() -> Iterator[ScriptedPeer]:
    """A `safesock.testing.ScriptedPeer` on a free port of 127.0.0.1, closed after the test."""
    from safesock.testing import ScriptedPeer

    with ScriptedPeer() as peer:
        yield peer


@pytest.fixture
def async_scripted_peer() -> Iterator[AsyncScriptedPeer]:
    """A `safesock.testing.AsyncScriptedPeer`, likewise, for coroutines on asyncio. Nothing here is
    awaited: it is for pytest-asyncio, anyio, and asyncio.run in a plain test."""
    from safesock.testing import AsyncScriptedPeer

    peer = AsyncScriptedPeer()
    try:
        yield peer
    finally:
        peer.close()
