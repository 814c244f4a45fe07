from __future__ import annotations

import contextlib
import gc
import itertools
import signal
import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import kernel
import netns
import pytest
from loops import LOOPS, Loop
from netns import Network
from peer import Peer
from servers.base import Servers
from tls_peer import Certificates, TlsPeer


def pytest_configure() -> None:
    # A shell starts what runs in its background with SIGINT ignored, and programs inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    # Many tests collect garbage, and need not look each time through thousands of tests for it.
    # hypothesis comes at the end anyway, and then finds nobody who refers to what is frozen.
    import hypothesis  # noqa: F401

    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[str] = Counter()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        for name, value in (
            getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ()
        ):
            if name == "sequences":
                counts[value[0]] += value[1]
    for what, count in sorted(counts.items()):
        terminalreporter.write_line(f"{count:,} sequences {what}")


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as one:
        yield one


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def peer46(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """Once over IPv4, once over IPv6."""
    with Peer(request.param) as one:
        yield one


@pytest.fixture
def network() -> Iterator[Network]:
    """Two hosts of our own, and a cable."""
    if reason := netns.why_not():
        pytest.skip(reason)
    with netns.network() as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left_enforced() -> Iterator[None]:
    """Or all tests that come after would be under it."""
    yield
    assert not vars(socket.socket).keys() & {"connect", "connect_ex", "getsockopt"}


@pytest.fixture
def nothing_is_left_open() -> Iterator[None]:
    before = kernel.descriptors()
    yield
    assert kernel.left_open(before) == []


# TLS --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificates() -> Certificates:
    return Certificates()


@pytest.fixture
def tls(certificates: Certificates) -> Iterator[TlsPeer]:
    with TlsPeer(certificates.server()) as one:
        yield one


@pytest.fixture(params=["1.2", "1.3"], ids=["TLS 1.2", "TLS 1.3"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    return certificates.client()


@pytest.fixture
def context23(certificates: Certificates, version: str) -> ssl.SSLContext:
    """Once TLS 1.2, once 1.3."""
    return certificates.client(version)


# Real servers ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def servers(certificates: Certificates) -> Iterator[Servers]:
    # They run as users of their own, to whom pytest's folders are closed; and leave much.
    with (
        tempfile.TemporaryDirectory(prefix="safesock-servers-") as folder,
        contextlib.ExitStack() as stack,
    ):
        Path(folder).chmod(0o755)
        yield Servers(Path(folder), certificates, stack)


# asyncio ----------------------------------------------------------------------------------------


@pytest.fixture(params=list(LOOPS))
def loop(request: pytest.FixtureRequest) -> Loop:
    """Once asyncio's own loop, once uvloop."""
    return Loop(request.param)
