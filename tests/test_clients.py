"""Real clients under `safesock run`, against real servers: no CLOSE_WAIT, and nothing else is new.

Each client runs twice at the same time, once as it is: it uses its connections, idles while the
server closes them, and uses them twice more. What it is given, raised and logs is the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kernel
import pytest
from clients.uses import without_numbers
from command import PIPE, PROGRAM, Command, running
from kernel import wait_until
from servers.base import Server
from servers.brokers import Mosquitto, MosquittoWebSocket, RabbitMq
from servers.databases import MariaDb, Memcached, Postgres, Redis
from servers.sessions import Dovecot, Exim, OpenSsh, Vsftpd
from servers.web import Nginx
from tls_peer import Certificates

# Long enough for a server that closes when it has heard nothing for a while.
CLOSES = 60.0


class Case(NamedTuple):
    """A client, the module that it needs, and whom it asks."""

    name: str
    module: str
    server: type[Server]
    # Whether it sees the end by itself, and closes; or does so with TLS only.
    sees: bool = False
    sees_tls: bool = False
    tls: bool = True
    sweep: bool = False


CASES = [
    Case("http.client", "http", Nginx),
    Case("urllib3", "urllib3", Nginx),
    Case("requests", "requests", Nginx),
    Case("httpx", "httpx", Nginx),
    Case("httpx, async", "httpx", Nginx),
    Case("aiohttp", "aiohttp", Nginx, sees=True),
    Case("redis-py", "redis", Redis),
    Case("redis-py, pub/sub", "redis", Redis),
    Case("redis-py, async", "redis", Redis, sees_tls=True),
    Case("asyncio", "asyncio", Redis, sees_tls=True),
    Case("anyio", "anyio", Redis),
    Case("trio", "trio", Redis),
    Case("pymemcache", "pymemcache", Memcached),
    Case("PyMySQL", "pymysql", MariaDb),
    Case("pg8000", "pg8000", Postgres),
    Case("psycopg", "psycopg", Postgres, sweep=True),
    Case("asyncpg", "asyncpg", Postgres, sees=True),
    Case("paho-mqtt", "paho", Mosquitto),
    Case("websocket-client", "websocket", MosquittoWebSocket),
    Case("websockets", "websockets", MosquittoWebSocket, sees=True),
    Case("websockets, async", "websockets", MosquittoWebSocket, sees=True),
    Case("pika", "pika", RabbitMq),
    Case("smtplib", "smtplib", Exim),
    Case("ftplib", "ftplib", Vsftpd),
    Case("imaplib", "imaplib", Dovecot),
    Case("paramiko", "paramiko", OpenSsh, sees=True, tls=False),
]
# Those that run every time.
QUICK = ("http.client", "smtplib")


class Servers:
    """Each is started when it is first asked for."""

    def __init__(self, folder: Path, certificates: Certificates, stack: contextlib.ExitStack):
        self._folder, self._certificates, self._stack = folder, certificates, stack
        self._started: dict[type[Server], Server] = {}

    def get(self, kind: type[Server]) -> Server:
        if reason := kind.why_not():
            pytest.skip(reason)
        if kind not in self._started:
            folder = self._folder / kind.__name__
            folder.mkdir(mode=0o755)
            made = kind(folder, self._certificates)
            self._started[kind] = self._stack.enter_context(made)
        return self._started[kind]


@pytest.fixture(scope="session")
def servers(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    # They run as users of their own, to whom pytest's folders are closed.
    for path in (folder, *folder.parents[:3]):
        if path.owner() == "root" and path != Path("/tmp"):
            path.chmod(0o755)
    with contextlib.ExitStack() as stack:
        yield Servers(folder, certificates, stack)


def cases() -> Iterator[Any]:
    for case in CASES:
        for tls in (False, True) if case.tls else (False,):
            for count in (1, 50):
                quick = case.name in QUICK and count == 1
                yield pytest.param(
                    case,
                    tls,
                    count,
                    id=f"{case.name}{', TLS' if tls else ''} x {count}",
                    marks=[] if quick else [pytest.mark.campaign],
                )


class Client:
    """One run of a client, and its connections to the server."""

    def __init__(self, command: Command, port: int, log: Path) -> None:
        self._command, self._port, self._log = command, port, log

    def uses(self) -> list[str]:
        """What the next use of its connections gave."""
        assert self._command.process.stdout is not None
        line = self._command.process.stdout.readline()
        assert line, self._log.read_text()
        uses: list[str] = json.loads(line)
        return uses

    def states(self) -> dict[int, str]:
        """By local port."""
        return kernel.states_of_process(self._command.process.pid, self._port)

    def goes_on(self) -> None:
        self._command.say(b"\n")

    def ends(self) -> tuple[int, str]:
        """Its status, and all that it has logged."""
        status = self._command.end().status
        return status, without_numbers(self._log.read_text())


@contextlib.contextmanager
def begun(
    case: Case, server: Server, tls: bool, count: int, log: Path, *run: str
) -> Iterator[Client]:
    port = server.tls_port if tls else server.port
    words = [case.name, str(port), str(count), str(server.folder)]
    program = [sys.executable, "-m", "clients", *words, *([str(server.authority)] if tls else [])]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with (
        log.open("wb") as errors,
        running([*run, *program], stderr=errors.fileno(), stdin=PIPE, PYTHONPATH=path) as command,
    ):
        yield Client(command, port, log)


@pytest.mark.parametrize(("case", "tls", "count"), list(cases()))
def test_a_client_behaves_as_before_and_nothing_stays_in_close_wait(
    servers: Servers, tmp_path: Path, case: Case, tls: bool, count: int
) -> None:
    if importlib.util.find_spec(case.module) is None:
        pytest.skip(f"{case.name} is not installed")
    server = servers.get(case.server)
    run = [*PROGRAM, "run", *(["--sweep", "1"] if case.sweep else []), "--"]
    with (
        begun(case, server, tls, count, tmp_path / "plain") as plain,
        begun(case, server, tls, count, tmp_path / "enforced", *run) as enforced,
    ):
        first = plain.uses()
        assert first == enforced.uses()
        assert len(first) == count
        assert not [use for use in first if use.startswith("raised")]

        before = [one.states().keys() for one in (plain, enforced)]
        server.drop()

        def are_closed() -> bool:
            now = plain.states() | enforced.states()
            return all(now.get(port) != "ESTABLISHED" for ports in before for port in ports)

        wait_until(are_closed, "the server closes", CLOSES)
        wait_until(lambda: "CLOSE_WAIT" not in enforced.states().values(), "safesock steps in")
        # Without it they stay, but for those that see the end by themselves.
        left = 0 if case.sees or (tls and case.sees_tls) else count
        assert list(plain.states().values()).count("CLOSE_WAIT") == left

        outcomes = []
        for one in (plain, enforced):
            one.goes_on()
            outcomes.append((one.uses(), one.uses(), one.ends()))
        assert outcomes[0] == outcomes[1]
