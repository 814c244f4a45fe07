"""What adapters for other people's clients do that needs no server of the client's own."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from typing import Any

import pytest
from kernel import wait_until
from peer import TIMEOUT, Peer

import safesock
from safesock import Abort, Policy
from safesock.events import Closed, Connected
from safesock.testing import ScriptedPeer

# The clients themselves are there for the campaigns only.
pytestmark = pytest.mark.campaign
ABORT = Policy(Abort(), on_loss="release")
HTTP = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def test_tls_of_httpx_is_one_connection(certificates: Any) -> None:
    httpx = pytest.importorskip("httpx")
    from safesock.adapters.httpx import HTTPTransport

    def serve(peer: ScriptedPeer) -> None:
        end = peer.accept()
        end.read_until(b"\r\n\r\n")
        end.say(HTTP)

    context = certificates.client()
    told: list[Any] = []
    with (
        ScriptedPeer(tls=certificates.server(), timeout=TIMEOUT) as peer,
        safesock.subscribe(told.append),
    ):
        server = threading.Thread(target=serve, args=(peer,))
        server.start()
        transport = HTTPTransport(policy=ABORT, verify=context)
        with (
            httpx.Client(transport=transport, timeout=TIMEOUT) as client,
            client.stream("GET", "https://{}:{}/".format(*peer.address)) as answer,
        ):
            sock = answer.extensions["network_stream"].get_extra_info("socket")
            assert answer.read() == b"hello"
        server.join(TIMEOUT)
        wait_until(lambda: any(isinstance(one, Closed) for one in told), "the end is told")
    assert sock.close_report.reset
    assert context.sslsocket_class is ssl.SSLSocket  # Others may use it.
    assert [type(one) for one in told] == [Connected, Closed]


@pytest.mark.usefixtures("nothing_is_left_open")
def test_an_option_or_a_port_that_cannot_be_is_httpcores_error_and_leaves_nothing(
    peer: Peer,
) -> None:
    httpcore = pytest.importorskip("httpcore")
    from safesock.adapters.httpcore import AsyncNetworkBackend

    async def run() -> None:
        backend = AsyncNetworkBackend()
        with pytest.raises(httpcore.ConnectError):
            await backend.connect_tcp(*peer.address, socket_options=[(socket.SOL_SOCKET, 9999, 1)])
        with pytest.raises(httpcore.ConnectError, match="65535"):
            await backend.connect_tcp("127.0.0.1", 0x10000)

    asyncio.run(run())


def test_a_pool_of_urllib3_refuses_a_policy_at_once() -> None:
    pytest.importorskip("urllib3")
    from safesock.adapters.urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    pools: list[Any] = [HTTPConnectionPool, HTTPSConnectionPool]
    for pool in pools:
        with pytest.raises(ValueError, match='on_loss="release"'):
            pool("localhost", policy=Policy())
        assert pool("localhost", policy=ABORT)._new_conn().policy == ABORT


def test_a_proxy_that_another_thread_is_the_first_to_ask_is_governed() -> None:
    pytest.importorskip("requests")
    import urllib3

    from safesock.adapters.requests import HTTPAdapter

    adapter = HTTPAdapter(policy=ABORT)
    proxy = "http://localhost:1"
    # As far as requests has come in the other thread.
    adapter.proxy_manager[proxy] = urllib3.proxy_from_url(proxy)
    pool: Any = adapter.proxy_manager_for(proxy).connection_from_url("http://localhost/")
    assert pool._new_conn().policy == ABORT
