"""Redis, memcached, PostgreSQL and MariaDB."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from servers.base import HOST, Server, program


class Redis(Server):
    needs = ("redis-server",)
    package = "redis-server"

    def command(self) -> list[str]:
        tls = {
            "tls-port": self.tls_port,
            "tls-cert-file": self.certificate,
            "tls-key-file": self.key,
            "tls-ca-cert-file": self.authority,
            "tls-auth-clients": "no",
        }
        options = {"bind": HOST, "port": self.port, "dir": self.folder, "save": "", **tls}
        return ["redis-server", *(w for name, v in options.items() for w in (f"--{name}", str(v)))]

    def drop(self) -> None:
        with socket.create_connection((HOST, self.port)) as sock, sock.makefile("rb") as answers:
            for kind in (b"normal", b"pubsub"):
                sock.sendall(b"CLIENT KILL TYPE %s\r\n" % kind)
                assert answers.readline().startswith(b":")


class Memcached(Server):
    needs = ("memcached",)
    package = "memcached"
    user = "memcache"

    def command(self) -> list[str]:
        certificates = f"ssl_chain_cert={self.certificate},ssl_key={self.key}"
        listen = f"notls:{HOST}:{self.port},{HOST}:{self.tls_port}"
        return ["memcached", "-l", listen, "-Z", "-o", certificates, "-c", "512"]

    def drop(self) -> None:
        """Its operator restarts it: it never closes an idle connection unless told to."""
        self.restart()


class Postgres(Server):
    needs = ("initdb", "postgres", "psql")
    package = "postgresql"
    user = "postgres"
    # One port for both.
    has_tls = False
    ends_by = signal.SIGINT  # SIGTERM would wait for its clients.

    @classmethod
    def find(cls, name: str) -> str | None:
        return program(name, *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))))

    def prepare(self) -> None:
        self.tls_port = self.port
        data = str(self.folder / "data")
        self.run(str(self.find("initdb")), "-A", "trust", "-U", "tester", "-N", "-D", data)

    def command(self) -> list[str]:
        options = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 150,
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": self.certificate,
            "ssl_key_file": self.key,
        }
        given = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [str(self.find("postgres")), "-D", str(self.folder / "data"), *given]

    def answers(self) -> bool:
        return super().answers() and "ready to accept" in self.log.read_text()

    def drop(self) -> None:
        end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        others = f"{end} WHERE usename = 'tester' AND pid <> pg_backend_pid()"
        where = ["-h", HOST, "-p", str(self.port), "-U", "tester", "-d", "postgres"]
        self.run(str(self.find("psql")), *where, "-c", others)


class MariaDb(Server):
    needs = ("mariadbd", "mariadb-install-db", "mariadb")
    package = "mariadb-server"
    user = "mysql"
    has_tls = False

    def prepare(self) -> None:
        self.tls_port = self.port
        quick = "--auth-root-authentication-method=normal"
        made = ["--no-defaults", f"--datadir={self.folder}/data", quick, "--skip-test-db"]
        self.run("mariadb-install-db", *made)
        allow = self.folder / "allow.sql"
        allow.write_text("GRANT ALL ON *.* TO tester@'127.0.0.1' IDENTIFIED BY '';\n")

    def command(self) -> list[str]:
        options = {
            "datadir": self.folder / "data",
            "bind-address": HOST,
            "port": self.port,
            "socket": self.folder / "socket",
            "pid-file": self.folder / "pid",
            "init-file": self.folder / "allow.sql",
            "ssl-cert": self.certificate,
            "ssl-key": self.key,
            "max-connections": 300,
            "innodb-flush-log-at-trx-commit": 0,
        }
        return [
            "mariadbd",
            "--no-defaults",
            "--skip-name-resolve",
            *(f"--{n}={value}" for n, value in options.items()),
        ]

    def drop(self) -> None:
        where = ["--no-defaults", "-h", HOST, "-P", str(self.port), "-u", "tester", "-N"]
        listed = self.run(
            "mariadb", *where, "-e",
            "SELECT id FROM information_schema.processlist WHERE user = 'tester'"
            " AND id <> connection_id()",
        )  # fmt: skip
        kills = ";".join(f"KILL {number}" for number in listed.split())
        self.run("mariadb", *where, "--force", "-e", kills)
