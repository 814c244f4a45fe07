"""Other people's clients with an adapter, beside the same ones without, on real servers."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import pickle
import socket
from collections.abc import Iterator
from typing import Any

import kernel
import pytest
from adapted import ADAPTED, Adapted
from clients.uses import HOST, Where, told
from kernel import wait_until
from relay import Proxy, Relay
from servers.base import Server, Servers
from servers.web import Nginx
from tls_peer import Certificates

from safesock import Abort, Cause, Drain, Graceful, Policy, SafeSocket
from safesock.testing import End

pytestmark = pytest.mark.campaign
# Seconds for a server to close, and for the watcher, whose grace is one; and between two looks.
CLOSES, STEPS_IN, PAUSE = 60.0, 30.0, 0.05
# Of this host, but not in the certificate.
ELSEWHERE = "127.0.0.2"
RELEASE = Policy(on_loss="release")


def cases(*ways: bool) -> list[Any]:
    """All clients; in clear, or with TLS where they have that."""
    return [
        pytest.param(one, tls, id=f"{one.name}{', TLS' if tls else ''}")
        for one in ADAPTED.values()
        for tls in ways
        if one.tls or not tls
    ]


each_client = pytest.mark.parametrize(("client", "tls"), cases(False, True))


def started(client: Adapted, servers: Servers) -> Server:
    for module in client.modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    return servers.get(client.server)


def where_is(server: Server, tls: bool, port: int | None = None) -> Where:
    its_own = server.tls_port if tls else server.port
    ca = str(server.authority) if tls else None
    return Where(port or its_own, 1, ca, str(server.folder))


def in_state(where: Where, state: str) -> set[int]:
    """The local ports of this process's connections to the server that are in this state."""
    states = kernel.states_of_process(os.getpid(), where.port)
    return {port for port, one in states.items() if one == state}


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    """Once the server has been started, which takes descriptors too."""
    gc.collect()
    before = kernel.descriptors()
    yield
    gc.collect()

    def nothing() -> bool:  # Servers that are started again have other pipes.
        return all(one.startswith("pipe:") for one in kernel.left_open(before))

    # Where a client's thread is in a read, it is the last one out, and closes.
    wait_until(nothing, "all descriptors are closed")


@each_client
def test_an_idle_client_whose_server_closes_leaves_nothing_in_close_wait(
    servers: Servers, client: Adapted, tls: bool
) -> None:
    server = started(client, servers)
    where = where_is(server, tls)
    with nothing_left_open(), client.open(where, None) as plain:
        first = told(plain.use)
        of_plain = in_state(where, "ESTABLISHED")
        with client.open(where, RELEASE) as safe:
            assert told(safe.use) == first
            assert not first.startswith("raised")
            sock = safe.sock()
            assert isinstance(sock, SafeSocket)
            assert sock.policy.on_loss == "release"
            of_safe = in_state(where, "ESTABLISHED") - of_plain
            assert len(of_plain) == len(of_safe) == 1

            server.drop()
            wait_until(
                lambda: not in_state(where, "ESTABLISHED") & (of_plain | of_safe),
                "the server closes",
                CLOSES,
                PAUSE,
            )
            wait_until(
                lambda: not in_state(where, "CLOSE_WAIT") & of_safe, "it ends", STEPS_IN, PAUSE
            )
            sees = client.sees or (tls and client.sees_tls)
            if not sees:
                assert in_state(where, "CLOSE_WAIT") == of_plain
            # What sees TLS's own end closes before the FIN has come.
            end = sock.loss or sock.close_report
            assert end is not None
            assert end.cause is Cause.FIN or (sees and tls)
            assert end.peer == (HOST, where.port)

            assert told(plain.use) == told(safe.use)
            bare, ours = told(plain.use), told(safe.use)
            assert bare == ours or (client.is_prompt and "BrokenPipeError" in ours)


@each_client
@pytest.mark.parametrize("mode", [Graceful(), Abort()], ids=["Graceful", "Abort"])
def test_what_the_policy_says_is_what_the_server_sees(
    servers: Servers, client: Adapted, tls: bool, mode: Any
) -> None:
    server = started(client, servers)
    port = where_is(server, tls).port
    with nothing_left_open(), Relay((HOST, port)) as relay:
        where = where_is(server, tls, relay.port)
        with client.open(where, Policy(mode, on_loss="release")) as safe:
            assert not told(safe.use).startswith("raised")
            sock = safe.sock()
        shuts = tls and client.shuts_tls
        expected = End.RST if isinstance(mode, Abort) and not shuts else End.FIN
        assert relay.ends() == [expected]
        assert sock.close_report.mode == mode
        assert shuts or sock.close_report.reset == isinstance(mode, Abort)
        wait_until(lambda: sock.fileno() == -1, "a client's thread leaves its read")


@each_client
def test_a_policy_that_a_client_cannot_live_with_is_refused(
    servers: Servers, client: Adapted, tls: bool
) -> None:
    where = where_is(started(client, servers), tls)

    def refused(policy: Policy, why: str) -> None:
        # Pools make their connections when they are used.
        with pytest.raises(ValueError, match=why), client.open(where, policy) as made:
            made.use()

    refused(Policy(), 'on_loss="release"')
    if client.on_loop:
        refused(Policy(Drain(), on_loss="release"), "Graceful")


@pytest.mark.parametrize(("client", "tls"), cases(True))
def test_a_server_of_another_name_is_refused_as_ever(
    servers: Servers, client: Adapted, tls: bool
) -> None:
    assert tls
    server = started(client, servers)
    outcomes = []
    for policy in (None, RELEASE):
        with nothing_left_open(), Relay((HOST, server.tls_port), ELSEWHERE) as relay:
            where = Where(relay.port, 1, str(server.authority), str(server.folder), ELSEWHERE)
            outcomes.append(told(used, client, where, policy))
            relay.ends()
    # The same exception; with trio httpx has no words for it.
    bare, ours = (outcome.partition("(")[0] for outcome in outcomes)
    assert bare == ours
    assert "certificate" in outcomes[1].lower()


def used(client: Adapted, where: Where, policy: Policy | None) -> object:
    with client.open(where, policy) as made:
        return made.use()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("name", ["urllib3", "requests", "httpx"])
def test_tls_through_a_proxy_goes_by_the_policy(
    servers: Servers, certificates: Certificates, name: str, scheme: str
) -> None:
    started(ADAPTED[name], servers)
    server = servers.get(Nginx)
    context = certificates.server() if scheme == "https" else None
    with nothing_left_open(), Proxy((HOST, server.tls_port), context) as proxy:
        where, through = where_is(server, True), f"{scheme}://{HOST}:{proxy.port}"
        policy = Policy(Abort(), on_loss="release")
        with THROUGH[name](where, through, policy) as (ask, sock):
            assert ask() == b"hello\n"
            made = sock()
            # TLS in TLS is no socket: the one below it is.
            assert isinstance(getattr(made, "socket", made), SafeSocket)
        assert proxy.ends() == [End.RST]


def test_a_fixed_local_port_of_urllib3_is_taken_again(servers: Servers) -> None:
    started(ADAPTED["urllib3"], servers)
    from safesock.adapters.urllib3 import PoolManager

    server = servers.get(Nginx)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        local = probe.getsockname()
    for _ in range(2):  # The first one leaves TIME_WAIT.
        with PoolManager(source_address=local, retries=False) as pool:
            assert pool.request("GET", f"http://{HOST}:{server.port}/").data == b"hello\n"
        wait_until(lambda: kernel.state(local, (HOST, server.port)) == "TIME_WAIT", "it closes")


def test_requests_refuses_a_socks_proxy_and_its_adapter_can_be_pickled(servers: Servers) -> None:
    started(ADAPTED["requests"], servers)
    import requests

    from safesock.adapters.requests import HTTPAdapter

    policy = Policy(Abort(), on_loss="release")
    adapter = pickle.loads(pickle.dumps(HTTPAdapter(policy=policy)))
    assert adapter.policy == policy
    with requests.Session() as session:
        session.mount("http://", adapter)
        with pytest.raises(ValueError, match="SOCKS"):
            session.get("http://localhost/", proxies={"http": "socks5://localhost:1"})


class Channel:
    """As one of an SSH client's: what clients call of a socket, but no socket."""

    def __init__(self, address: Any) -> None:
        self._sock = socket.create_connection(address)
        self.settimeout, self.makefile = self._sock.settimeout, self._sock.makefile
        self.sendall, self.close = self._sock.sendall, self._sock.close


def test_pymysql_over_what_is_no_socket_is_left_alone(servers: Servers) -> None:
    server = started(ADAPTED["PyMySQL"], servers)
    from safesock.adapters.pymysql import Connection

    with nothing_left_open():
        made = Connection(user="tester", ssl_disabled=True, defer_connect=True, policy=RELEASE)
        channel: Any = Channel((HOST, server.port))
        made.connect(channel)
        with made, made.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == ((1,),)


def _by_urllib3(where: Where, proxy: str, policy: Policy) -> Iterator[Any]:
    from safesock.adapters.urllib3 import ProxyManager

    seen: list[Any] = []
    with ProxyManager(proxy, policy=policy, ca_certs=where.ca) as pool:

        def ask() -> bytes:
            answer: Any = pool.request("GET", where.url("http"), preload_content=False)
            seen.append(answer.connection.sock)
            body: bytes = answer.read()
            answer.release_conn()
            return body

        yield ask, lambda: seen[-1]


def _by_requests(where: Where, proxy: str, policy: Policy) -> Iterator[Any]:
    import requests

    from safesock.adapters.requests import HTTPAdapter

    seen: list[Any] = []
    with requests.Session() as session:
        session.trust_env = False
        session.verify = where.ca or True
        session.mount("https://", HTTPAdapter(policy=policy))

        def ask() -> bytes:
            answer: Any = session.get(where.url("http"), stream=True, proxies={"https": proxy})
            seen.append(answer.raw.connection.sock)
            body: bytes = answer.content
            return body

        yield ask, lambda: seen[-1]


def _by_httpx(where: Where, proxy: str, policy: Policy) -> Iterator[Any]:
    import httpx

    from safesock.adapters.httpx import HTTPTransport

    assert where.context is not None
    seen: list[Any] = []
    by = httpx.Proxy(proxy, ssl_context=where.context if proxy.startswith("https") else None)
    transport = HTTPTransport(policy=policy, verify=where.context, proxy=by)
    with httpx.Client(transport=transport) as client:

        def ask() -> bytes:
            with client.stream("GET", where.url("http")) as answer:
                seen.append(answer.extensions["network_stream"].get_extra_info("socket"))
                return answer.read()

        yield ask, lambda: seen[-1]


THROUGH = {
    "urllib3": contextlib.contextmanager(_by_urllib3),
    "requests": contextlib.contextmanager(_by_requests),
    "httpx": contextlib.contextmanager(_by_httpx),
}
