"""Real clients under `safesock run`, against real servers: no CLOSE_WAIT, and nothing else is new.

Each client, with one connection and with many, runs twice at the same time, once as it is: it uses
its connections, idles while the server closes them, and uses them twice more. What it is given,
raises and logs is the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kernel
import pytest
from clients.uses import comparable
from command import PIPE, PROGRAM, Command, running
from kernel import wait_until
from servers.base import Server, Servers
from servers.brokers import Mosquitto, MosquittoWebSocket, RabbitMq
from servers.databases import MariaDb, Memcached, Postgres, Redis
from servers.sessions import Dovecot, Exim, OpenSsh, Vsftpd
from servers.web import Nginx

# Seconds for a server to close, some of which do so when they have heard nothing for a while; and
# for a client to do its work, which has timeouts of its own.
CLOSES, WORKS = 60.0, 150.0
# For what is to be looked at again and again: a look takes some milliseconds.
PAUSE = 0.05
# Its grace is a second; this is only for machines that have much else to do.
STEPS_IN = 30.0
SEEN = re.compile(r"^safesock: process \d+: (\d+) connections? seen, .*\n", re.MULTILINE)


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
        self._output = b""

    def uses(self) -> list[str]:
        """What the next use of its connections gave."""
        while b"\n" not in self._output:
            self._output += self._more()
        line, _, self._output = self._output.partition(b"\n")
        uses: list[str] = json.loads(line)
        return uses

    def _more(self) -> bytes:
        process = self._command.process
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], WORKS)[0]:
            process.send_signal(signal.SIGABRT)  # Python tells then where its threads are.
            process.wait(WORKS)
            raise AssertionError(f"it hung for {WORKS} s:\n{self._log.read_text()}")
        more = os.read(process.stdout.fileno(), 1 << 16)
        assert more, f"it ended:\n{self._log.read_text()}"
        return more

    def states(self) -> dict[int, str]:
        """By local port."""
        return kernel.states_of_process(self._command.process.pid, self._port)

    def in_close_wait(self) -> int:
        return list(self.states().values()).count("CLOSE_WAIT")

    def goes_on(self) -> None:
        self._command.say(b"\n")

    def ends(self) -> tuple[int, str]:
        """Its status, and all that it has logged, but for safesock's report."""
        status = self._command.end().status
        return status, comparable(SEEN.sub("", self._log.read_text()))

    def seen(self) -> int:
        """By the report, the connections that safesock has seen."""
        return sum(map(int, SEEN.findall(self._log.read_text())))


@contextlib.contextmanager
def begun(
    case: Case, server: Server, tls: bool, count: int, log: Path, *run: str
) -> Iterator[Client]:
    port = server.tls_port if tls else server.port
    words = [case.name, str(port), str(count), str(server.folder)]
    program = [sys.executable, "-m", "clients", *words, *([str(server.authority)] if tls else [])]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {
        "PYTHONPATH": path,
        "PYTHONFAULTHANDLER": "1",
        # Clients load the system's own authorities for each connection, which takes them long.
        "SSL_CERT_FILE": str(server.authority),
    }
    with (
        log.open("wb") as errors,
        running([*run, *program], PIPE, errors.fileno(), PIPE, **environment) as command,
    ):
        yield Client(command, port, log)


@pytest.mark.parametrize(("case", "tls", "count"), list(cases()))
def test_a_client_behaves_as_before_and_nothing_stays_in_close_wait(
    servers: Servers, tmp_path: Path, case: Case, tls: bool, count: int
) -> None:
    if importlib.util.find_spec(case.module) is None:
        pytest.skip(f"{case.name} is not installed")
    server = servers.get(case.server)
    run = [*PROGRAM, "run", "--report", *(["--sweep", "1"] if case.sweep else []), "--"]
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

        wait_until(are_closed, "the server closes", CLOSES, PAUSE)
        wait_until(lambda: not enforced.in_close_wait(), "safesock steps in", STEPS_IN, PAUSE)
        # Without it they stay, but for those that see the end by themselves.
        if case.sees or (tls and case.sees_tls):
            wait_until(lambda: not plain.in_close_wait(), "it sees the end", STEPS_IN, PAUSE)
        else:
            assert plain.in_close_wait() == count

        outcomes = []
        for one in (plain, enforced):
            one.goes_on()
            outcomes.append((one.uses(), one.uses(), one.ends()))
        assert outcomes[0] == outcomes[1]
        # It has been there, also where the client needs nobody.
        assert case.sweep or enforced.seen() >= count
