"""What all servers have in common: a folder, two ports, and a process that is ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import pytest
from kernel import wait_until
from tls_peer import Certificates

from servers.keeper import as_user, descendants

HOST = "127.0.0.1"
# Seconds until a server answers; some are slow where four of them start at once.
STARTS = 120.0
# And until it has ended.
ENDS = 30.0
_KEEPER = Path(__file__).with_name("keeper.py")
_SEARCHED = ["/usr/sbin", "/usr/local/sbin", *os.get_exec_path()]


def program(name: str, *folders: str) -> str | None:
    """Where it is installed; those of servers are often not in PATH."""
    return shutil.which(name, path=os.pathsep.join([*folders, *_SEARCHED]))


class Server:
    """Between `with`, it answers on `port`, and with TLS on `tls_port`."""

    # Without which it cannot be started, and the packages that have them.
    needs: ClassVar[Sequence[str]] = ()
    package: ClassVar[str]
    # Whom it runs as, where it refuses to be root; and those that only root can start.
    user: ClassVar[str | None] = None
    needs_root = False
    has_tls = True
    # How it is told to end.
    ends_by: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self.folder = folder
        self._reserved: list[socket.socket] = []
        self.port, self.tls_port = self.reserve_port(), self.reserve_port()
        self.log = folder / "log"
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        self.authority = folder / "ca.pem"
        certificates.authority.cert_pem.write_to_path(str(self.authority))
        certificates.certificate.private_key_pem.write_to_path(str(self.key))
        certificates.certificate.cert_chain_pems[0].write_to_path(str(self.certificate))
        self.key.chmod(0o600)
        self.pid = 0
        self._keeper: subprocess.Popen[bytes] | None = None

    @classmethod
    def why_not(cls) -> str | None:
        """Why it cannot be started here, if it cannot."""
        if cls.needs_root and os.getuid():
            return f"only root can start {cls.__name__}"
        missing = [name for name in cls.needs if not cls.find(name)]
        return f"{cls.package} is not installed: no {missing[0]}" if missing else None

    @classmethod
    def find(cls, name: str) -> str | None:
        return program(name)

    # For those that derive from it ---------------------------------------------------------------

    def prepare(self) -> None:
        """Once, before it is started."""

    def command(self) -> list[str]:
        """In the foreground."""
        raise NotImplementedError

    def drop(self) -> None:
        """Closes all connections of its clients, and goes on. As its own kind does it."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------

    def reserve_port(self) -> int:
        """One that nobody gets by chance as long as the server has not bound it, or is restarted:
        it is bound here, which with SO_REUSEADDR only another one that listens would forbid."""
        sock = socket.socket()
        self._reserved.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port

    @property
    def ports(self) -> tuple[int, ...]:
        return (self.port, self.tls_port) if self.has_tls else (self.port,)

    def start(self) -> None:
        keeper = [sys.executable, "-IS", str(_KEEPER), self.user or "", *self.command()]
        with self.log.open("ab") as log:
            self._keeper = subprocess.Popen(
                keeper,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._keeper.stdout is not None
        self.pid = int(self._keeper.stdout.readline())
        wait_until(self.answers, f"{type(self).__name__} answers", STARTS)

    def answers(self) -> bool:
        assert self._keeper is not None
        assert self._keeper.poll() is None, self.log.read_text(errors="replace")[-4000:]
        return all(self._listens(port) for port in self.ports)

    def _listens(self, port: int) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex((HOST, port)) == 0

    def stop(self) -> None:
        """By its signal, or by force when it takes its time; nothing of it is left."""
        keeper = self._keeper
        if keeper is None:
            return
        try:
            self.tell(self.ends_by)
            keeper.wait(ENDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._keeper = None
            keeper.communicate(timeout=ENDS)

    def tell(self, number: signal.Signals) -> None:
        """A signal, to the server's first process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def restart(self) -> None:
        self.stop()
        self.start()

    def signal_sessions(self, number: signal.Signals, name: str | None = None) -> None:
        """To the processes that it has started, each for a connection; to those of this *name*."""
        for pid in descendants(self.pid):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                if name in (None, Path(f"/proc/{pid}/comm").read_text().strip()):
                    os.kill(pid, number)

    def __enter__(self) -> Self:
        if self.user and not os.getuid():
            shutil.chown(self.folder, self.user)
            for file in self.folder.iterdir():
                shutil.chown(file, self.user)
        try:
            self.prepare()
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self.stop()
        for sock in self._reserved:
            sock.close()

    def run(self, *command: str) -> str:
        """A command of its package, as the user that it runs as; gives what that printed."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command,
            check=False,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STARTS,
            **as_user(self.user),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


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
