from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from peer import Peer


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as one:
        yield one


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def peer46(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """Once over IPv4, once over IPv6."""
    with Peer(request.param) as one:
        yield one
